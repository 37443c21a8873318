"""`per_sample_grads(loss)` and its value, `PerSampleGrads`; the choice of engine."""

from ._function import PerSampleGradsFunction as PerSampleGradsFunction
from ._function import per_sample_grads as per_sample_grads
from ._value import PerSampleGrads as PerSampleGrads
