"""Per-sample gradients as factors: what a layer saw and what came back to it, rather than their product.

For a weight used as `y = x W^T`, sample b's gradient is `g_b^T x_b`, with the inputs `x: [B, T, I]` and the cotangents
of the outputs `g: [B, T, O]`; T counts the positions that share the weight (tokens, time steps, uses). Every kind comes
in this one shape, `[samples, shared positions, features]`; a convolution's are unfolded into it as they are needed.
Pure algebra: no model, no graph.

A `Gradient` is the sum of one parameter's factors; `Gradients`, one a name, answer in the accumulation dtype:

    norms  norms_each  gram  dots  project      numbers of each row, `[B]`, `[B, B']`, `[B, k]`
    weighted_sum                                one product a factor
    select  concatenated  mapped  tensors       the same rows, of other samples or on other tensors
    dense                                       the only one that holds B x P
"""

from ._blocks import fitting as fitting
from ._compressed import compressed as compressed
from ._concatenated import concatenated as concatenated
from ._dense import Dense as Dense
from ._factor import Factor as Factor
from ._factor import Method as Method
from ._formed import formed as formed
from ._gradients import Gradient as Gradient
from ._gradients import Gradients as Gradients
from ._gradients import dense as dense
from ._gradients import from_rows as from_rows
from ._gradients import mapped as mapped
from ._gradients import scaled as scaled
from ._gradients import scratch_of as scratch_of
from ._gradients import select as select
from ._gradients import tensors as tensors
from ._gradients import through as through
from ._grouped import Grouped as Grouped
from ._mapped import Entrywise as Entrywise
from ._mapped import Mapped as Mapped
from ._norms import norms as norms
from ._norms import norms_each as norms_each
from ._outer import Outer as Outer
from ._projection import Projection as Projection
from ._rows import Rows as Rows
from ._sums import dots as dots
from ._sums import gram as gram
from ._sums import project as project
from ._sums import weighted_sum as weighted_sum
from ._unfolded import Unfolded as Unfolded
from ._windows import Steps as Steps


def method(factor: Factor, scratch: int) -> Method:
    """How squared norms of a factor will be computed: "gram" | "direct" | "rows" | "dense", its cost, and why."""
    return factor.method(scratch)
