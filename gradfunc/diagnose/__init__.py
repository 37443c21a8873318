"""What goes wrong with gradients in a model: where, how much, and by what evidence.

_distribution  how the entries of tensors are distributed, in one streaming pass
_flow          gradients from layer to layer: passes, rows, thresholds, report
_nonfinite     where a NaN or infinity came from, and how to write it otherwise
_step          what an update moved, and what it did not, and why
_watch         cheap checks for every step, and the deep look where one fails
_recurrence    gradients through time: growth, vanishing, memory, clipping; the remedies
_slopes        is the gradient the derivative: central differences along directions, and the layer at fault
_doctor        why training does not work: probes, findings, the report
"""

from ._distribution import Distribution as Distribution
from ._distribution import describe as describe
from ._doctor import CAUSES as CAUSES
from ._doctor import PROBES as PROBES
from ._doctor import DoctorReport as DoctorReport
from ._doctor import Finding as Finding
from ._doctor import NotRun as NotRun
from ._doctor import Probe as Probe
from ._doctor import doctor as doctor
from ._flow import FlowReport as FlowReport
from ._flow import FlowRow as FlowRow
from ._flow import GridReport as GridReport
from ._flow import GridRow as GridRow
from ._flow import flow_grid as flow_grid
from ._flow import gradient_flow as gradient_flow
from ._nonfinite import FAULTS as FAULTS
from ._nonfinite import Fault as Fault
from ._nonfinite import NonfiniteReport as NonfiniteReport
from ._nonfinite import find_nonfinite as find_nonfinite
from ._recurrence import Growth as Growth
from ._recurrence import LinearRecurrence as LinearRecurrence
from ._recurrence import MemoryCapacity as MemoryCapacity
from ._recurrence import RecurrenceReport as RecurrenceReport
from ._recurrence import Remedy as Remedy
from ._recurrence import RemedyReport as RemedyReport
from ._recurrence import memory_capacity as memory_capacity
from ._recurrence import recurrence as recurrence
from ._recurrence import remedies as remedies
from ._step import MovedLayer as MovedLayer
from ._step import MovedReport as MovedReport
from ._step import Unmoved as Unmoved
from ._step import step_report as step_report
from ._watch import Watcher as Watcher
from ._watch import watch as watch
