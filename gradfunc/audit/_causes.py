"""The cause of a discrepancy: the smallest set of mechanisms whose closed form leaves nothing but rounding.

Nothing is claimed that was not matched: the residual (measured minus predicted difference) has to pass, at two
precisions, the very test by which a pair is called rounding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from .._random import CannotReplay
from .._rounding import is_rounding
from .._tree import Tensors, dot, norm, scale, subtract
from ._measure import Measured
from ._mechanisms import BY_NAME, MECHANISMS, Mechanism, singles
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
    """Mechanisms, and the difference they predict at a precision; `plausible` is a cheap look before it."""

    mechanisms: tuple[str, ...]
    detail: str
    difference: Callable[[Predictor], Tensors]
    plausible: Callable[[], bool] = lambda: True


class Search:
    """Looks for causes in one problem measured at two precisions."""

    def __init__(self, low: Measured, high: Measured) -> None:
        self.low, self.high = low, high
        self.predict_low, self.predict_high = Predictor(low), Predictor(high)
        self._products: dict[int, tuple[float, float, float]] = {}

    def causes(self, a: str, b: str) -> tuple[Cause, ...]:
        """Every match of the smallest size for the pair (a, b); none where nothing matches.

        Of the pairs with 'yours' (always second), only that with 'mean' has a closed form of its own.
        """
        if b == "yours" and a != "mean":
            return ()
        for group in self._loops() if b == "yours" else self._subsets(a, b):
            found = [cause for candidate in group if (cause := self._matched(candidate, a, b)) is not None]
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

    def _loops(self) -> Iterator[list[Candidate]]:
        """Loops that 'yours' may be, against the criterion's own mean, under none or more forward mechanisms."""
        case = self.high.case
        covered = bool(self.predict_high.parts("yours"))
        forwards = [m.name for m in MECHANISMS if m.kind == "forward" and m.applies(case)] if covered else []
        loops = [m for m in MECHANISMS if m.loop is not None and m.applies(case)]
        for size in range(1, len(forwards) + 2):
            group = [self._as_mean(frozenset(chosen)) for chosen in itertools.combinations(forwards, size)]
            for chosen in itertools.combinations(forwards, size - 1):
                for loop in loops:
                    group += self._variants(loop, frozenset(chosen))
                group += self._as_estimators(frozenset(chosen))
            yield group

    def _variants(self, loop: Mechanism, forwards: Active) -> list[Candidate]:
        """The loop over the parts that were passed, and over single samples where one pass held them all."""
        assert loop.loop is not None
        passed, n = self.predict_high.parts("yours"), self.high.case.size
        partitions = [passed] if passed else []
        if len(passed) <= 1 and n > 1 and (loop.samplewise or not passed):
            partitions.append(singles(n))
        out = []
        for parts in partitions:
            both = (
                list(loop.loop(predictor.case, parts, predictor.true_sample_weights()))
                for predictor in (self.predict_low, self.predict_high)
            )
            for (detail, low), (_, high) in zip(*both, strict=True):
                out.append(self._loop((loop.name, *sorted(forwards)), detail, low, high, forwards))
        return out

    def _as_mean(self, forwards: Active) -> Candidate:
        """A right loop, whose forward passes differ from that of the whole batch."""
        weights = [p.true_sample_weights() for p in (self.predict_low, self.predict_high)]
        low, high = ((w > 0) / w.sum() for w in weights)
        return self._loop(tuple(sorted(forwards)), "", low, high, forwards)

    def _as_estimators(self, forwards: Active) -> list[Candidate]:
        """Yours may be the sum / n, or the mean of single means, where torch's mean weights its samples."""
        case = self.high.case
        weights = tuple(m.name for m in MECHANISMS if m.kind == "weight" and m.applies(case))
        if forwards or not weights:
            return []
        return [Candidate(weights, f"yours is '{name}'", _as_estimator(name)) for name in ("none", "sliced")]

    def _loop(self, names: tuple[str, ...], detail: str, low: Tensor, high: Tensor, forwards: Active) -> Candidate:
        def difference(predictor: Predictor) -> Tensors:
            direction, factor = predictor.loop(low if predictor is self.predict_low else high, forwards)
            return subtract(_mean(predictor), scale(direction, factor))

        def plausible() -> bool:
            # |yours - factor * direction|^2 from three inner products, kept by direction. It is off by a few unit
            # roundoffs of its terms; half of the digits lets every match through and stops nearly everything else.
            direction, factor = self.predict_high.loop(high, forwards)
            if factor == 0:
                return True
            if id(direction) not in self._products:
                yours = self.high.grads("yours")
                self._products[id(direction)] = (dot(yours, yours), dot(yours, direction), dot(direction, direction))
            yy, yd, dd = self._products[id(direction)]
            distance, terms = yy - 2 * factor * yd + factor**2 * dd, yy + factor**2 * dd
            return not abs(distance) > math.sqrt(self.high.u) * terms

        return Candidate(names, detail, difference, plausible)

    def _matched(self, candidate: Candidate, a: str, b: str) -> Cause | None:
        try:
            if not candidate.plausible():
                return None
            predicted = [candidate.difference(p) for p in (self.predict_low, self.predict_high)]
        except (CannotReplay, RuntimeError):  # a forward pass that does not bear the intervention
            return None
        measured = [subtract(m.grads(a), m.grads(b)) for m in (self.low, self.high)]
        low, high = (subtract(m, p) for m, p in zip(measured, predicted, strict=True))
        if not is_rounding(
            low=largest(low),
            high=largest(high),
            scale_low=self.low.scale,
            scale_high=self.high.scale,
            u_low=self.low.u,
            u_high=self.high.u,
        ):
            return None
        size = norm(measured[1])
        return Cause(candidate.mechanisms, candidate.detail, largest(predicted[1]), norm(high) / size if size else 0.0)


def worst(difference: Tensors) -> tuple[str, float]:
    """The parameter with the largest absolute entry, and that entry: NaN if there is one, 0 for no entries."""
    sizes = {name: float(value.abs().max()) if value.numel() else -1.0 for name, value in difference.items()}
    name = max(sizes, key=lambda name: math.inf if math.isnan(sizes[name]) else sizes[name])
    return name, sizes[name] if math.isnan(sizes[name]) else max(sizes[name], 0.0)


def largest(difference: Tensors) -> float:
    """Largest absolute entry; NaN if there is one, 0 for no entries."""
    return worst(difference)[1]


def _difference(a: str, b: str, active: Active) -> Callable[[Predictor], Tensors]:
    return lambda predictor: subtract(predictor.estimate(a, active), predictor.estimate(b, active))


def _mean(predictor: Predictor) -> Tensors:
    return predictor.estimate("mean", predictor.true_weights)


def _as_estimator(name: str) -> Callable[[Predictor], Tensors]:
    return lambda predictor: subtract(_mean(predictor), predictor.estimate(name, predictor.true_weights))
