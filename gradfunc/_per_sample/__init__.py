"""`per_sample_grads(loss)` and its value, `PerSampleGrads`; the choice of engine and of chunks."""

from ._function import PerSampleGradsFunction as PerSampleGradsFunction
from ._function import per_sample_grads as per_sample_grads
from ._given import factors_of as factors_of
from ._given import from_source as from_source
from ._join import concatenate as concatenate
from ._join import row_grads as row_grads
from ._value import PerSampleGrads as PerSampleGrads
