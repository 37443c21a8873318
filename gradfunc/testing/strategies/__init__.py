"""Hypothesis strategies for your own tests (hypothesis: `pip install 'gradfunc[testing]'`).

All arguments are by keyword and checked at the call. Failing examples shrink towards the smallest shape, zeros and
ones, one linear layer; they print as what makes them again.

    models          small modules, one for each way in which samples meet a parameter
    losses          the losses of `gf.losses` under any of their options
    batches         what a model and a loss take
    problems        all three at once: `loss, params, batch = problem`
    per_sample_grads   rows as factors of any kind, without a loss
    transformations    chains of stages in a valid order
    weights         one number >= 0 a sample
    parameter_trees, finite_tensors     numbers that are hard on arithmetic
    TransformationConformance       every law of `gf.testing`, of a transformation of yours, in three lines
    cases           the same with how per-sample gradients are asked: engine, chunks, parameters
"""

from ._batches import Batch as Batch
from ._batches import batches as batches
from ._case import Case as Case
from ._case import Problem as Problem
from ._cases import cases as cases
from ._cases import problems as problems
from ._conformance import TransformationConformance as TransformationConformance
from ._losses import Loss as Loss
from ._losses import losses as losses
from ._models import Model as Model
from ._models import models as models
from ._per_sample import SyntheticGrads as SyntheticGrads
from ._per_sample import per_sample_grads as per_sample_grads
from ._stages import deviation as deviation
from ._stages import heavy as heavy
from ._tensors import finite_tensors as finite_tensors
from ._transformations import transformations as transformations
from ._trees import parameter_trees as parameter_trees
from ._weights import weights as weights
