"""Gradients through time.

_tape           one forward pass in which the states are seen
_operators      torch's recurrent layers on a tape
_system         what is measured: parameters, and a pass that gives losses
_jacobians      of the steps, as matrices or as products
_products       their products: norms by lag, spectra; matrix-free by ARPACK
_exponents      Lyapunov exponents by QR
_gradients      of losses with respect to states; of parameters, clipped
_eigen          a matrix's directions, defective ones too
_linear         the recurrence of a matrix
_report, _linear_report, _words   tables and JSON
_entry          `recurrence`
_capacity       the memory capacity of a reservoir
_remedies, _remedy_report         what helps, closed forms beside measurements
"""

from ._capacity import MemoryCapacity as MemoryCapacity
from ._capacity import memory_capacity as memory_capacity
from ._eigen import Growth as Growth
from ._entry import recurrence as recurrence
from ._linear_report import LinearRecurrence as LinearRecurrence
from ._remedies import remedies as remedies
from ._remedy_report import Remedy as Remedy
from ._remedy_report import RemedyReport as RemedyReport
from ._report import RecurrenceReport as RecurrenceReport
