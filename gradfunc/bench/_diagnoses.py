"""What diagnoses of a batch cost: `gf.diagnose.gradient_flow`, and `find_nonfinite` where nothing is wrong."""

from __future__ import annotations

from ..diagnose import find_nonfinite, gradient_flow
from ._contender import Call, Contender
from ._workload import Case


def _flow(case: Case, quantity: str) -> Call:
    problem = case.problem
    return lambda: gradient_flow(problem.model, problem.criterion, problem.batch)


def _nonfinite(case: Case, quantity: str) -> Call:
    problem = case.problem
    return lambda: find_nonfinite(problem.model, problem.criterion, problem.batch)


CONTENDERS = (
    Contender("gradient-flow", _flow, ("flow by layer",), beside=("flow",), settings="defaults"),
    Contender("find-nonfinite", _nonfinite, ("all finite",), beside=("nonfinite",), settings="a healthy batch"),
)
