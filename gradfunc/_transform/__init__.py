"""Pure stages from per-sample gradients to an update, and their composition.

A stage has `init(params) -> state` and `update(grads, state, params) -> (out, state)`. What it takes and gives is in
its type, so that a wrong order is seen by a type checker, and when the chain is built:

    PerSampleGrads -> PerSampleGrads    per-sample stages (_rows/): clips, masks, weights, signs
    PerSampleGrads -> Grads             reductions (_reductions/): sum, mean, accumulate, robust ones
    Grads -> Grads                      stages on the batch's gradient (_batch/): clips, noise, averages
    Grads -> Updates                    rules (_rules/); updates are added to the parameters
    PerSampleGrads -> Updates           rules that need the rows
    A -> A                              identity, scale, masked, partition (_same, _parts)

`_protocol` has the types, `_stage` and `_chain` what our stages share and their composition, `_numbers` arguments that
are schedules, `_states` states as flat dictionaries, `_guarantee` what holds of an output, `_step` a batch through all.
"""

from ._batch import adaptive_gradient_clip as adaptive_gradient_clip
from ._batch import add_decayed_weights as add_decayed_weights
from ._batch import add_noise as add_noise
from ._batch import centralize as centralize
from ._batch import clip_by_ema as clip_by_ema
from ._batch import clip_by_global_norm as clip_by_global_norm
from ._batch import clip_by_parameter_norm as clip_by_parameter_norm
from ._batch import clip_by_value as clip_by_value
from ._batch import ema as ema
from ._batch import gaussian_mechanism as gaussian_mechanism
from ._batch import sign as sign
from ._batch import skip_nonfinite as skip_nonfinite
from ._batch import zero_nonfinite as zero_nonfinite
from ._chain import Chain as Chain
from ._chain import chain as chain
from ._chain import identity as identity
from ._guarantee import Guarantee as Guarantee
from ._guarantee import Sensitivity as Sensitivity
from ._parts import masked as masked
from ._parts import partition as partition
from ._protocol import Grads as Grads
from ._protocol import Transformation as Transformation
from ._protocol import Updates as Updates
from ._reductions import accumulate as accumulate
from ._reductions import from_gram as from_gram
from ._reductions import geometric_median as geometric_median
from ._reductions import mean as mean
from ._reductions import median as median
from ._reductions import sign_vote as sign_vote
from ._reductions import sum as sum
from ._reductions import trimmed_mean as trimmed_mean
from ._rows import adaptive_clip_per_sample as adaptive_clip_per_sample
from ._rows import clip_per_sample as clip_per_sample
from ._rows import clip_value_per_sample as clip_value_per_sample
from ._rows import focal_weights as focal_weights
from ._rows import mask_per_sample as mask_per_sample
from ._rows import nonfinite_per_sample as nonfinite_per_sample
from ._rows import normalize_per_sample as normalize_per_sample
from ._rows import normalize_weights as normalize_weights
from ._rows import reweight_per_sample as reweight_per_sample
from ._rows import sign_per_sample as sign_per_sample
from ._rows import top_k_loss as top_k_loss
from ._rules import adam as adam
from ._rules import adam_per_sample as adam_per_sample
from ._rules import adamw as adamw
from ._rules import descend as descend
from ._rules import from_torch_optim as from_torch_optim
from ._rules import lion as lion
from ._rules import momentum as momentum
from ._rules import muon as muon
from ._rules import noise_scaled_step as noise_scaled_step
from ._rules import orthogonalize as orthogonalize
from ._rules import scale_by_adam as scale_by_adam
from ._rules import scale_by_lion as scale_by_lion
from ._rules import sgd as sgd
from ._said import StepReport as StepReport
from ._same import scale as scale
from ._same import stateless_transform as stateless_transform
from ._states import flatten_state as flatten_state
from ._states import unflatten_state as unflatten_state
from ._step import StepFunction as StepFunction
from ._step import apply_updates as apply_updates
from ._step import make_step as make_step
