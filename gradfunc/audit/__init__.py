"""Why sum, mean and per-sample gradients disagree: estimators, verdicts, causes.

_options       precision, device, samples and seed, read once
_case          one problem at one precision: the forward pass, and the plain estimators
_losses        a problem's losses as functions of parameters and samples
_loops         the forum's loop and the user's own
_graph         the lowest precision in a graph; where rounding has a bound
_measure       every estimator of a case
_mechanisms    the causes of disagreement, as data with closed forms
_predict       what an estimator is if given mechanisms act
_causes        the smallest set of mechanisms that explains a pair
_independence  whether samples meet, and in which layer
_report        tables and JSON
_reductions    the audit itself
"""

from ._independence import Independence as Independence
from ._mechanisms import MECHANISMS as MECHANISMS
from ._mechanisms import Mechanism as Mechanism
from ._reductions import reductions as reductions
from ._report import ReductionReport as ReductionReport
