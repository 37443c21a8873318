"""What `gf.diagnose.gradient_flow` costs: one forward and one backward pass, described while they run."""

from __future__ import annotations

from ..diagnose import gradient_flow
from ._contender import Call, Contender
from ._workload import Case


def _flow(case: Case, quantity: str) -> Call:
    problem = case.problem
    return lambda: gradient_flow(problem.model, problem.criterion, problem.batch)


CONTENDERS = (Contender("gradient-flow", _flow, ("flow by layer",), beside=("flow",), settings="defaults"),)
