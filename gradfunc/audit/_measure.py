"""Every estimator of the mean gradient, measured at one precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .._problem import Problem
from .._rounding import unit_roundoff
from .._tree import Tensors, norm, scale
from . import _loops
from ._case import Case, Passes, PerSample, attempt, per_sample, reduced, refed, slice_losses, sliced
from ._graph import bounded_parameters, coarsest_roundoff

ESTIMATORS: dict[str, str] = {
    "none": "reduction='none', one backward pass a sample's loss, averaged",
    "sum / n": "reduction='sum', divided by the batch size",
    "mean": "reduction='mean'",
    "sliced": "reduction='mean' on one row of the output at a time, averaged",
    "re-fed": "the model fed one sample at a time, reduction='mean', averaged",
    "forum loop": "as 'none', but the first gradient kept without a clone (a known bug, for comparison)",
    "yours": "the gradient that your own loop collects",
}


@dataclass(frozen=True)
class Estimate:
    """One estimator's gradient, or why there is none."""

    grads: Tensors | None
    why_not: str | None = None

    @property
    def norm(self) -> float | None:
        """Norm of the gradient."""
        return None if self.grads is None else norm(self.grads)


@dataclass(frozen=True, eq=False)
class Measured:
    """A case with its estimates.

    Attributes:
        passes: how 're-fed' and 'yours' passed the batch through the model.
        scale: error scale of an averaged gradient, `sum |g_i| / n`.
        u: the coarsest unit roundoff in the graph.
        bounded: parameters for which two averages have a bound.
    """

    case: Case
    estimates: dict[str, Estimate]
    passes: dict[str, Passes]
    per_sample: PerSample | None
    scale: float
    u: float
    bounded: set[str]

    def ran(self, name: str) -> bool:
        """Whether the estimator gave a gradient."""
        return name in self.estimates and self.estimates[name].grads is not None

    def grads(self, name: str) -> Tensors:
        """The gradient of an estimator that ran."""
        grads = self.estimates[name].grads
        assert grads is not None
        return grads


def measure(problem: Problem, yours: _loops.YourLoop | None, seed: int, note: Callable[[str], None]) -> Measured:
    """Run every estimator. One that cannot run says why; the forward pass itself must run."""
    case = Case.of(problem, seed)
    n = case.size
    estimates: dict[str, Estimate] = {}
    each: PerSample | None = None
    if case.forward.elements is None:
        why = "the criterion gives one scalar for the whole batch"
        estimates |= {name: Estimate(None, why) for name in ("none", "sum / n", "sliced")}
    else:
        note("one backward pass a sample")
        each = per_sample(case)
        estimates["none"] = Estimate(scale(each.total, 1 / n))
        estimates["sum / n"] = _estimate(lambda: reduced(case, "sum"))
        estimates["sliced"] = _estimate(lambda: sliced(case))
    estimates["mean"] = _estimate(lambda: reduced(case, "mean"))
    note("one sample at a time")
    passes: dict[str, Passes] = {}
    again, why_not = attempt(lambda: refed(case))
    estimates["re-fed"] = Estimate(None if again is None else again[0], why_not)
    if again is not None:
        passes["re-fed"] = again[2]
    if each is not None:
        note("the forum's loop")
        elements = case.forward.elements
        assert elements is not None
        estimates["forum loop"] = _estimate(lambda: _loops.forum(case, (e.sum() for e in elements)))
    if yours is not None:
        note("your loop")
        collected, why_not = attempt(lambda: _loops.yours(case, yours))
        estimates["yours"] = Estimate(None if collected is None else collected[0], why_not)
        if collected is not None:
            passes["yours"] = collected[1]
    return Measured(
        case=case,
        estimates={name: estimates[name] for name in ESTIMATORS if name in estimates},
        passes=passes,
        per_sample=each,
        scale=each.norms / n if each is not None else again[1] if again is not None else 0.0,
        u=max(coarsest_roundoff(case), *(unit_roundoff(v.dtype) for v in case.leaves.values())),
        bounded=bounded_parameters(case),
    )


def measure_refed(problem: Problem, seed: int) -> Measured:
    """Only the estimator that feeds the model again."""
    case = Case.of(problem, seed)
    grads, norms, passes = refed(case)
    u = unit_roundoff(next(iter(case.leaves.values())).dtype)
    return Measured(case, {"re-fed": Estimate(grads)}, {"re-fed": passes}, None, norms, u, set())


def _estimate(fn: Callable[[], Any]) -> Estimate:
    return Estimate(*attempt(fn))


def forum_one_at_a_time(case: Case) -> Tensors:
    """The question's fourth block: its own loop once more, on losses sliced from the one output."""
    return _loops.forum(case, slice_losses(case))
