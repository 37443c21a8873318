"""What goes wrong with gradients in a model: where, how much, and by what evidence.

_distribution  how the entries of tensors are distributed, in one streaming pass
_flow          gradients from layer to layer: passes, rows, thresholds, report
"""

from ._distribution import Distribution as Distribution
from ._distribution import describe as describe
from ._flow import FlowReport as FlowReport
from ._flow import FlowRow as FlowRow
from ._flow import gradient_flow as gradient_flow
