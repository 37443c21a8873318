"""Weightings: functions from the Gram matrix of rows, `[n, n]`, to one coefficient a row, `[n]`.

They are what `gf.from_gram` takes, and know nothing of samples: entry (i, j) is the inner product of rows i and j, and
the coefficients c stand for the vector `sum_i c_i g_i`. Each computes in float64 on the CPU, and gives constants (no
derivative) of the matrix's own dtype and device. Ties go to the row that comes first.
"""

from ._aligned import aligned_mtl as aligned_mtl
from ._krum import krum as krum
from ._mean import mean as mean
from ._mgda import duality_gap as duality_gap
from ._mgda import mgda as mgda
