"""gradfunc: the per-sample gradient as a value.

You write the loss of one sample as a pure function of the parameters. gradfunc hands back the gradients of every
sample in the batch as one immutable value, to reduce, compare and audit. Its meaning is `vmap(grad(loss))`; every
faster or more general way equals it.

    model, criterion, batch
        |  stateless, losses        a module becomes a function; a loss carries its weight
        v
    loss(params, x, y)  ->  Weighted(numerator, weight)
        |  per_sample_grads         factored: the loss runs forward; its autograd graph is read and cut where samples
        |                           meet a parameter (_capture); one backward pass to the cut; rows as factors
        |                           else vmap(grad), or one autograd call a sample
        v
    PerSampleGrads                  losses, weights, norms, gram, dot, weighted_sum, ...
        |  reduce, Accumulator      none | sum | mean: divided once, at the very end
        |  clip_per_sample >> mean  pure stages, composed; make_step runs a batch through them
        v
    gradients {name: tensor}
        |  clip, noise, ema, adam   stages on these, and a rule; updates are added
        v
    parameters

Files, in the order in which data flows (a row imports only rows below it; `pyproject.toml` holds the contract):

    cli/            parse, call one function, print; one command a file
    _page           a report as one HTML page: tables, figures, nothing from elsewhere
    plot/           reports as figures whose titles say what was found
    bench/          what per-sample gradients cost, as a ratio to one plain backward pass
    testing/        are these gradients right, on this model: certificate, checks, slopes layer by layer
    _export         reports and histories as flat numbers, for loggers
    store/          per-sample gradients on disk, rows or factors: shards, one manifest, queries in blocks
    train/          a small training loop: any chain, a history, checkpoints
    diagnose/       what goes wrong with gradients: from layer to layer, through time; what each remedy does
    audit/          why sum, mean and per-sample gradients disagree: estimators, verdicts, causes
    _transform/     stages and chains of them: clips, reductions, rules, make_step; what a stage guarantees
    quantities/     research quantities, one pure function each
    _reduce         reductions by name                  models/     small models as functions
    _bridge         values back to a module: .grad for torch's optimisers, parameters to be kept
    _zoo/           small modules, one for each thing that goes wrong with per-sample gradients
    init/           how parameters begin: schemes that state their variance, by rules, drawn by (seed, name)
    _per_sample/    PerSampleGrads, the value; per_sample_grads: the choice of engine and of chunks
    _certificate    what must hold between the answers of per-sample gradients
    _engines/       factored, vmap(grad), loop, rows of cotangents; kept, selected and joined rows
    _capture/       a loss that was run once -> factors of every sample's gradient, by its autograd graph
    _swap/          a function mode inside a loss: draws become keyed ones, recurrent operators become scans
    projections/    random linear maps of a row, named by (seed, parameter)
    _layers/        the uses of a model's parameters in forward order, with edges to differentiate
    _problem        what tools take: (model, criterion, batch), read once
    _factors/       rows as factors: Outer, Unfolded, Grouped, Rows, Dense and their algebra
    _stateless/     nn.Module -> a pure function        losses/     losses that carry their weight, a family a file
    _batch_stats    batch norms: found, refused, frozen  hf         attention masks of Hugging Face models
    _graph          the precisions in a graph
    _weights        Weighted, Accumulator: the only mean
    _random/        draws keyed by (seed, step, sample, use); generators forked; draws refused, recorded, replayed
    _recurrent/     lstm, gru, rnn as scans: of plain operations, by hand
    _files          files replaced as a whole; digests
    _nonfinite/     operations followed to the root of what is not finite   _frames   lines and modules of a traceback
    _report         tables and JSON                     _rounding   error bounds
    _cotangent      clipping during the backward pass   schedules   numbers that change from step to step
    weightings/     from the Gram matrix of rows to one coefficient a row: MGDA, aligned, Krum
    _tree/          arithmetic on {name: tensor} and on rows of them; batches as pytrees, static and ragged arguments
    _errors         the grammar of messages

A call of a stateless model runs on a replica of the module's tree that holds the tensors of that call: what the forward
pass assigns stays off the module, and what runs again in the backward pass (a checkpointed block) finds them.

Draws inside a loss are Philox numbers named by (seed, step, sample, use); `use` counts the draws of a forward pass. The
count lives in the seed of the forked CPU generator, which activation checkpointing saves and restores by itself, so
a region that runs again in the backward pass draws again what it drew. What torch alone can draw belongs to a chunk
under vmap; "auto" then takes the loop, where it belongs to the sample.

A training is a place (parameters, state, counts) that one line of the loop replaces by the next, so that what stops it
finds it between two steps. Order and draws are functions of (seed, epoch, step, sample), so a checkpoint is that place
and the history. What a capture function asks of a step that is not at hand is computed again, as it was.

The factored engine intercepts nothing. Its forward pass is one vmapped call of the loss (or the batch's own), behind
which torch leaves an ordinary graph: every differentiable use of a parameter is an edge of it. Which sample owns an
entry of a value is measured, by backward passes of losses weighted with powers of two; what several samples own is cut.
The backward pass stops there, before any weight gradient, and each use gives a factor: inputs and cotangents of a
product, or rows. What no rule knows is differentiated sample by sample at that operation alone. The plan is kept for
graphs of the same signature as long as what it was read from holds. Rows that take no more than their factors, and as
many of those little larger as a bound on memory allows, are formed while the pass runs: one product then answers all.

Rows are factors, and only sums, products and projections are asked of them. What multiplies a row is kept beside the
rows as steps, one number a sample each; a step may be a function of the row's norm, which then waits until a query
computes the rows, so that clipping a value that is computed in chunks is no pass of its own. A step may be of some
parameters alone (a group's clip, a masked stage). A function of entries is a source around the source: rows are formed
some samples of one parameter at a time, when they are asked.

A chain of stages is flat, its state a dictionary by stage name. When a chain that starts from rows is built, each stage
is told what holds of its input: a bound, independence, how far one sample moves it; noise takes its scale from there,
or the chain is refused. A chain knows which tensors it made itself: later stages write to these, never to what was
given. A rule that ends a step may write the new parameters at once instead of updates that nobody would see.

A value whose parameters, batch or coefficients require grad answers as any other, and each answer has one node of
autograd behind it. Its backward pass makes the value again with a graph behind its rows (by torch.func, or by autograd
with create_graph), repeats what values were made of values, asks the same and differentiates that; so higher orders
are ordinary autograd. Inside a transform of torch.func that live form is the only one.

An engine that batches samples by rules checks its first answer for each shape of input against a backward pass of a
random weighted sum. A difference is an error of method if it stays in another precision and exceeds what the
gradient's own conditioning allows; what cancellation leaves of larger numbers is not.
"""

from . import audit as audit
from . import bench as bench
from . import diagnose as diagnose
from . import hf as hf
from . import init as init
from . import losses as losses
from . import models as models
from . import plot as plot
from . import projections as projections
from . import quantities as quantities
from . import schedules as schedules
from . import store as store
from . import testing as testing
from . import train as train
from . import weightings as weightings
from ._bridge import assign_grads as assign_grads
from ._bridge import load_params as load_params
from ._cotangent import clip_cotangent as clip_cotangent
from ._errors import EngineError as EngineError
from ._errors import GradfuncWarning as GradfuncWarning
from ._export import scalars as scalars
from ._page import page as page
from ._per_sample import PerSampleGrads as PerSampleGrads
from ._per_sample import concatenate as concatenate
from ._per_sample import per_sample_grads as per_sample_grads
from ._per_sample import row_grads as row_grads
from ._reduce import reduce as reduce
from ._stateless import Stateless as Stateless
from ._stateless import stateless as stateless
from ._transform import Grads as Grads
from ._transform import Guarantee as Guarantee
from ._transform import Sensitivity as Sensitivity
from ._transform import Transformation as Transformation
from ._transform import Updates as Updates
from ._transform import accumulate as accumulate
from ._transform import adam as adam
from ._transform import adam_per_sample as adam_per_sample
from ._transform import adamw as adamw
from ._transform import adaptive_clip_per_sample as adaptive_clip_per_sample
from ._transform import adaptive_gradient_clip as adaptive_gradient_clip
from ._transform import add_decayed_weights as add_decayed_weights
from ._transform import add_noise as add_noise
from ._transform import apply_updates as apply_updates
from ._transform import centralize as centralize
from ._transform import chain as chain
from ._transform import clip_by_ema as clip_by_ema
from ._transform import clip_by_global_norm as clip_by_global_norm
from ._transform import clip_by_parameter_norm as clip_by_parameter_norm
from ._transform import clip_by_value as clip_by_value
from ._transform import clip_per_sample as clip_per_sample
from ._transform import clip_value_per_sample as clip_value_per_sample
from ._transform import descend as descend
from ._transform import ema as ema
from ._transform import flatten_state as flatten_state
from ._transform import focal_weights as focal_weights
from ._transform import from_gram as from_gram
from ._transform import from_torch_optim as from_torch_optim
from ._transform import gaussian_mechanism as gaussian_mechanism
from ._transform import geometric_median as geometric_median
from ._transform import identity as identity
from ._transform import lion as lion
from ._transform import make_step as make_step
from ._transform import mask_per_sample as mask_per_sample
from ._transform import masked as masked
from ._transform import mean as mean
from ._transform import median as median
from ._transform import momentum as momentum
from ._transform import muon as muon
from ._transform import noise_scaled_step as noise_scaled_step
from ._transform import nonfinite_per_sample as nonfinite_per_sample
from ._transform import normalize_per_sample as normalize_per_sample
from ._transform import normalize_weights as normalize_weights
from ._transform import orthogonalize as orthogonalize
from ._transform import partition as partition
from ._transform import reweight_per_sample as reweight_per_sample
from ._transform import scale as scale
from ._transform import scale_by_adam as scale_by_adam
from ._transform import scale_by_lion as scale_by_lion
from ._transform import sgd as sgd
from ._transform import sign as sign
from ._transform import sign_per_sample as sign_per_sample
from ._transform import sign_vote as sign_vote
from ._transform import skip_nonfinite as skip_nonfinite
from ._transform import stateless_transform as stateless_transform
from ._transform import sum as sum
from ._transform import top_k_loss as top_k_loss
from ._transform import trimmed_mean as trimmed_mean
from ._transform import unflatten_state as unflatten_state
from ._transform import zero_nonfinite as zero_nonfinite
from ._tree import ragged as ragged
from ._tree import static as static
from ._weights import Accumulator as Accumulator
from ._weights import Weighted as Weighted
from .losses import whole as whole

__version__ = "0.1.0"
