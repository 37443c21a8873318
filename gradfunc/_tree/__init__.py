"""Arithmetic on `{name: tensor}`, on rows of them, and batches as nests: the only import of a pytree library.

Two shapes of data run through gradfunc. *Tensors* are flat dictionaries: parameters, gradients, directions. *Rows* are
such dictionaries with a leading dimension of samples, one row a sample.
"""

from ._batch import Batch as Batch
from ._batch import Group as Group
from ._batch import read_batch as read_batch
from ._batch import read_groups as read_groups
from ._batch import splatted as splatted
from ._flat import Tensors as Tensors
from ._flat import add as add
from ._flat import dot as dot
from ._flat import norm as norm
from ._flat import scale as scale
from ._flat import subtract as subtract
from ._marks import Ragged as Ragged
from ._marks import Static as Static
from ._marks import ragged as ragged
from ._marks import static as static
from ._names import Selection as Selection
from ._names import by_rules as by_rules
from ._names import check_selection as check_selection
from ._names import compiled as compiled
from ._names import layer_of as layer_of
from ._names import selected as selected
from ._nests import cast as cast
from ._nests import copy_of as copy_of
from ._nests import map_all as map_all
from ._nests import map_floats as map_floats
from ._nests import map_nests as map_nests
from ._nests import map_tensors as map_tensors
from ._nests import map_with_dims as map_with_dims
from ._nests import others_of as others_of
from ._nests import rows_of as rows_of
from ._nests import same_structure as same_structure
from ._nests import tensors_of as tensors_of
from ._rows import At as At
from ._rows import at_positions as at_positions
from ._rows import compact as compact
from ._rows import count as count
from ._rows import is_whole as is_whole
from ._rows import row_norms as row_norms
from ._rows import row_sum as row_sum
from ._rows import scattered as scattered
from ._rows import weighed as weighed
from ._rows import wide as wide
from ._rows import zeros as zeros
