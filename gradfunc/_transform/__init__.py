"""Pure stages from per-sample gradients to an update, and their composition.

A stage has `init(params) -> state` and `update(grads, state, params) -> (out, state)`. What it takes and gives is in
its type, so that a wrong order is seen by a type checker, and when the chain is built:

    PerSampleGrads -> PerSampleGrads    per-sample stages: clip_per_sample
    PerSampleGrads -> Grads             reductions: sum, mean
    Grads -> Updates                    rules; updates are added to the parameters
"""

from ._base import Chain as Chain
from ._base import Grads as Grads
from ._base import Stage as Stage
from ._base import Transformation as Transformation
from ._base import Updates as Updates
from ._base import chain as chain
from ._clip import clip_per_sample as clip_per_sample
from ._guarantee import Guarantee as Guarantee
from ._guarantee import Sensitivity as Sensitivity
from ._reductions import mean as mean
from ._reductions import sum as sum
from ._said import StepReport as StepReport
from ._step import apply_updates as apply_updates
from ._step import make_step as make_step
