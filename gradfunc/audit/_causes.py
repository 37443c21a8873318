"""The cause of a discrepancy: the smallest set of mechanisms whose closed form leaves nothing but rounding.

Nothing is claimed that was not matched: the residual (measured minus predicted difference) has to pass, at two
precisions, the very test by which a pair is called rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .._random import CannotReplay
from .._rounding import is_rounding
from .._tree import Tensors, norm, subtract
from ._measure import Measured
from ._mechanisms import BY_NAME, MECHANISMS, Mechanism, parts_of, singles
from ._predict import Active, Predictor


@dataclass(frozen=True)
class Cause:
    """A match between a measured discrepancy and a closed form.

    Attributes:
        mechanisms: their names; more than one where they act together.
        detail: which variant matched, such as the number of micro-batches.
        predicted: largest entry of the predicted difference.
        relative_error: |measured - predicted| / |measured|, Euclidean norms, at the finer precision.
    """

    mechanisms: tuple[str, ...]
    detail: str
    predicted: float
    relative_error: float

    @property
    def remedy(self) -> str:
        """What to do."""
        return "; ".join(BY_NAME[name].remedy for name in self.mechanisms)


@dataclass(frozen=True)
class Candidate:
    """Mechanisms, and the difference they predict for a case."""

    mechanisms: tuple[str, ...]
    detail: str
    difference: Callable[[Predictor], Tensors]


class Search:
    """Looks for causes in one problem measured at two precisions."""

    def __init__(self, low: Measured, high: Measured) -> None:
        self.low, self.high = low, high
        self.predictors = {id(m): Predictor(m.case) for m in (low, high)}

    def causes(self, a: str, b: str) -> tuple[Cause, ...]:
        """Every match of the smallest size for the pair (a, b); none where nothing matches."""
        if "yours" in (a, b):
            groups = self._loops(a) if b == "yours" else self._loops(b)
            other = a if b == "yours" else b
            if other != "mean":
                return ()
            sign = 1 if a == "yours" else -1
        else:
            groups, sign = self._subsets(a, b), 1
        for group in groups:
            found = [cause for candidate in group if (cause := self._matched(candidate, a, b, sign)) is not None]
            if found:
                return tuple(found)
        return ()

    def _subsets(self, a: str, b: str) -> Iterator[list[Candidate]]:
        always = ("aliased_first_sample",) if "forum loop" in (a, b) else ()
        names = [
            m.name
            for m in MECHANISMS
            if m.kind in ("weight", "forward") and {a, b} & set(m.moves) and m.applies(self.high.case)
        ]
        for size in range(0 if always else 1, len(names) + 1):
            yield [
                Candidate((*always, *chosen), "", _difference(a, b, frozenset(chosen)))
                for chosen in itertools.combinations(names, size)
            ]

    def _loops(self, other: str) -> Iterator[list[Candidate]]:
        """Loops that `yours` may be, against the criterion's own mean, under none or more forward mechanisms."""
        case = self.high.case
        forwards = [m.name for m in MECHANISMS if m.kind == "forward" and m.applies(case)] if case.yours_sizes else []
        loops = [m for m in MECHANISMS if m.loop is not None and m.applies(case)]
        for size in range(1, len(forwards) + 2):
            group = []
            for chosen in itertools.combinations(forwards, size):
                group.append(Candidate(chosen, "", _as_mean(frozenset(chosen))))
            for chosen in itertools.combinations(forwards, size - 1):
                for loop in loops:
                    group += self._variants(loop, frozenset(chosen))
                group += self._as_estimators(frozenset(chosen))
            yield group

    def _variants(self, loop: Mechanism, forwards: Active) -> list[Candidate]:
        case = self.high.case
        # A loop over one forward pass, or over samples that it did not feed in order, collects single samples.
        parts = parts_of(case.yours_sizes) if len(case.yours_sizes) > 1 else singles(case.size)
        weights = self.predictors[id(self.high)].true_sample_weights()
        assert loop.loop is not None
        return [
            Candidate((loop.name, *sorted(forwards)), detail, _as_loop(loop, parts, k, forwards))
            for k, (detail, _) in enumerate(loop.loop(case, parts, weights))
        ]

    def _as_estimators(self, forwards: Active) -> list[Candidate]:
        """Yours may be the sum / n, or the mean of single means, where torch's mean weights its samples."""
        case = self.high.case
        weights = tuple(m.name for m in MECHANISMS if m.kind == "weight" and m.applies(case))
        if forwards or not weights:
            return []
        return [Candidate(weights, f"yours is '{name}'", _as_estimator(name)) for name in ("none", "sliced")]

    def _matched(self, candidate: Candidate, a: str, b: str, sign: int) -> Cause | None:
        residuals = []
        for measured in (self.low, self.high):
            difference = subtract(measured.grads(a), measured.grads(b))
            try:
                predicted = candidate.difference(self.predictors[id(measured)])
            except (CannotReplay, ValueError, RuntimeError):
                return None
            if sign < 0:
                predicted = {name: -value for name, value in predicted.items()}
            residuals.append((subtract(difference, predicted), difference, predicted))
        low, high = residuals
        if not is_rounding(
            low=largest(low[0]),
            high=largest(high[0]),
            scale_low=self.low.scale,
            scale_high=self.high.scale,
            u_low=self.low.u,
            u_high=self.high.u,
        ):
            return None
        size = norm(high[1])
        error = norm(high[0]) / size if size else 0.0
        return Cause(candidate.mechanisms, candidate.detail, largest(high[2]), error)


def largest(difference: Tensors) -> float:
    """Largest absolute entry; 0 for no entries."""
    return max((float(value.abs().max()) for value in difference.values() if value.numel()), default=0.0)


def _difference(a: str, b: str, active: Active) -> Callable[[Predictor], Tensors]:
    return lambda predictor: subtract(predictor.estimate(a, active), predictor.estimate(b, active))


def _mean(predictor: Predictor) -> Tensors:
    return predictor.estimate("mean", predictor.true_weights)


def _as_mean(forwards: Active) -> Callable[[Predictor], Tensors]:
    def difference(predictor: Predictor) -> Tensors:
        weights = predictor.true_sample_weights()
        return subtract(predictor.loop((weights > 0) / weights.sum(), forwards), _mean(predictor))

    return difference


def _as_loop(loop: Mechanism, parts: Any, k: int, forwards: Active) -> Callable[[Predictor], Tensors]:
    def difference(predictor: Predictor) -> Tensors:
        assert loop.loop is not None
        variants = list(loop.loop(predictor.case, parts, predictor.true_sample_weights()))
        return subtract(predictor.loop(variants[k][1], forwards), _mean(predictor))

    return difference


def _as_estimator(name: str) -> Callable[[Predictor], Tensors]:
    return lambda predictor: subtract(predictor.estimate(name, predictor.true_weights), _mean(predictor))
