"""Projections: random linear maps from a whole per-sample gradient to a few numbers, which keep inner products.

g.project(gf.projections.rademacher(512, seed=0))        [B, 512]
gf.projections.two_sided((16, 16))                       inputs and cotangents projected before their product
gf.projections.per_parameter(projection, names)          a block of its own for each parameter

A projection is a matrix, named by (kind, size, seed) and the parameter's name: it depends on neither the batch, how it
is cut, nor the device, and none of it is kept. `error(failure)` is how far inner products may be off.
"""

from ._count_sketch import CountSketch as CountSketch
from ._count_sketch import count_sketch as count_sketch
from ._dense import Gaussian as Gaussian
from ._dense import Rademacher as Rademacher
from ._dense import gaussian as gaussian
from ._dense import rademacher as rademacher
from ._described import from_dict as from_dict
from ._per_parameter import PerParameter as PerParameter
from ._per_parameter import per_parameter as per_parameter
from ._two_sided import TwoSided as TwoSided
from ._two_sided import two_sided as two_sided
