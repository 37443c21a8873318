"""Per-sample gradients as factors: what a layer saw and what came back to it, rather than their product.

For a weight used as `y = x W^T`, sample b's gradient is `g_b^T x_b`, with the inputs `x: [B, T, I]` and the cotangents
of the outputs `g: [B, T, O]`; T counts the positions that share the weight (tokens, time steps, uses). Every kind comes
in this one shape, `[samples, shared positions, features]`. Pure algebra: no model, no graph.
"""

from ._dense import Dense as Dense
from ._factor import Factor as Factor
from ._gradients import Gradient as Gradient
from ._gradients import Gradients as Gradients
from ._gradients import from_rows as from_rows
