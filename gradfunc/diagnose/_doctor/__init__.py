"""Why training does not work: probes that each look for some causes, and what they found.

_finding     a finding, a probe, what a probe says that could not run
_causes      every cause that the probes name, in words: the identifiers are stable
_limits      every threshold, with its reason
_case        what probes look at: each measurement taken once, when it is first asked for
_copies      passes and steps as values, copies to run them on
_trial       the user's optimiser and step, on copies
_outputs     what a criterion and an output are: kinds, last operation, range
_loss, _raised, _data, _flow, _missing, _rate, _step, _clips, _numerics, _batch     probes, a family a file
_probes      the list of them
_report      tables and JSON
_doctor      the call
"""

from ._causes import CAUSES as CAUSES
from ._doctor import doctor as doctor
from ._finding import Finding as Finding
from ._finding import NotRun as NotRun
from ._finding import Probe as Probe
from ._probes import PROBES as PROBES
from ._report import DoctorReport as DoctorReport
