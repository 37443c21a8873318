"""How rows of the per-sample gradient are computed: as factors, by `vmap(grad)`, one autograd call a sample, or a row.

A *source* answers `rows(at)` with a `Block`: the gradients of those samples as factors (dense ones here), their losses
and weights. It holds the parameters and the batch (or, for a batched loss, the graph of one forward pass) and keeps
nothing else: asked twice, it computes twice and draws the same random numbers. Sources compose: rows that are kept, a
selection, several joined.
"""

from ._call import Call as Call
from ._call import Draws as Draws
from ._call import Noticed as Noticed
from ._combine import JoinedSource as JoinedSource
from ._combine import KeptSource as KeptSource
from ._combine import SelectedSource as SelectedSource
from ._combine import gathered as gathered
from ._cotangent import CotangentSource as CotangentSource
from ._factored import FactoredSource as FactoredSource
from ._factored import factored as factored
from ._limits import Limit as Limit
from ._limits import limit_of as limit_of
from ._limits import limitation as limitation
from ._limits import out_of_memory as out_of_memory
from ._live import Live as Live
from ._live import live as live
from ._loop import LoopSource as LoopSource
from ._source import Block as Block
from ._source import Source as Source
from ._source import Traceable as Traceable
from ._source import Traced as Traced
from ._source import gradients as gradients
from ._source import spans as spans
from ._vmap import VmapSource as VmapSource
