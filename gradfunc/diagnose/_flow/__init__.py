"""`gf.diagnose.gradient_flow`: activations and gradients layer by layer.

_measure   one forward and one backward pass, described while they run
_spread    how the gradients of single samples differ
_trend     the gradient's norm over depth: factors, slope and its interval
_theory    the factor that theory gives a layer
_verdict   thresholds with their reasons, and what they say of a layer and of the net
_report    rows, tables and JSON
_flow      the call
_grid      the same of nets of equal blocks, on a grid
"""

from ._flow import gradient_flow as gradient_flow
from ._grid import GridReport as GridReport
from ._grid import GridRow as GridRow
from ._grid import flow_grid as flow_grid
from ._report import FlowReport as FlowReport
from ._report import FlowRow as FlowRow
