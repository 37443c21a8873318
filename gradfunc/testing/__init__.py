"""Checks for your own tests: are these gradients right, on this model?

_verdict     rounding or wrong, by two precisions
_report      one row a check
_certify     per-sample gradients against autograd and against themselves
"""

from ._certify import certify as certify
from ._report import CheckReport as CheckReport
from ._report import CheckRow as CheckRow
