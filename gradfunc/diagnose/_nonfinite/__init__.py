"""`gf.diagnose.find_nonfinite`: where a number that is not finite came from, and how to write it otherwise.

_faults  what is recognised, as a table: name, evidence, safe form
_passes  one forward and one backward pass, plain or watched
_search  which samples break
_report  what was found
_find    the call
"""

from ._faults import FAULTS as FAULTS
from ._faults import Fault as Fault
from ._faults import recognized as recognized
from ._find import find_nonfinite as find_nonfinite
from ._report import NonfiniteReport as NonfiniteReport
