"""The answers in float64, by `vmap(grad)` or a loop, a few samples at a time, and how far from them a result is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._tree import Tensors, add
from . import _by_hand
from ._workload import Case

QUANTITIES = ("clip-and-sum", "norms", "gram", "materialise")
"""What contenders compute, and what is compared with the truth."""
BESIDES = ("step", "flow", "nonfinite")  # what is timed and not compared
BUDGET = 2**29  # bytes of rows at once


@dataclass(frozen=True)
class Truth:
    """What every contender is compared with.

    Attributes:
        norms: of the samples' gradients, `[B]`.
        max_norm: that of the case; where it has none, the median of the norms that are not 0, so that half of these
            samples are clipped.
        clipped: `sum_i min(1, max_norm / |g_i|) g_i`.
        scale: `sum_i min(max_norm, |g_i|)`, the error scale of that sum.
        gram: inner products, `[B, B]`; None where it was not asked for.
        parts: computes the rows again, some samples at a time.
        rows_of: the definition by which: `rows_of(case, start, stop)`.
    """

    norms: Tensor
    max_norm: float
    clipped: Tensors
    scale: float
    gram: Tensor | None
    parts: Callable[[], Iterator[Tensors]]
    rows_of: Callable[[Case, int, int], Tensors]

    @classmethod
    def of(cls, case: Case, *, gram: bool = False, budget: int = BUDGET, looped: bool = False) -> Truth:
        """The answers for a case in float64; rows are computed once a pass, so that no more than `budget` lives.

        Args:
            case: in float64.
            gram: whether that is needed; it costs a pass for each part of the batch.
            budget: bytes of rows at once.
            looped: whether by one backward pass a sample, also where `vmap(grad)` would run.
        """
        rows_of = _by_hand.looped if looped else _rows_of(case)

        def parts(budget: int) -> Iterator[Tensors]:
            return _parts(case, rows_of, budget)

        norms = torch.cat([_by_hand.norms(rows) for rows in parts(budget)])
        max_norm = case.max_norm if math.isfinite(case.max_norm) else _median(norms)
        factors = _by_hand.clip_factors(norms, max_norm)
        clipped = {name: torch.zeros_like(value) for name, value in case.model.params.items()}
        done = 0
        for rows in parts(budget):
            count = len(next(iter(rows.values())))
            clipped = add(clipped, _by_hand.weighted_sum(rows, factors[done : done + count]))
            done += count
        inner = None
        if gram:
            half = budget // 2
            blocks = [[_by_hand.gram(left, right) for right in parts(half)] for left in parts(half)]
            inner = torch.cat([torch.cat(row, 1) for row in blocks])
        return cls(norms, max_norm, clipped, float((factors * norms).sum()), inner, lambda: parts(budget), rows_of)

    def error(self, quantity: str, got: Any) -> float:
        """The largest error of a result, on the scale of its quantity.

        The norm of the difference over `sum |c_i||g_i|` for the sum; over `|g_i|` for norms; over `|g_i||g_j|` for the
        Gram matrix; for rows the norm of a row's difference over `|g_i|`. Infinite for a result of another form.
        """
        if quantity == "materialise":
            return self._error_of_rows(got)
        if quantity == "clip-and-sum":
            return _distance(got, self.clipped) / self.scale if self.scale else _distance(got, self.clipped)
        want, scale = (self.norms, self.norms) if quantity == "norms" else (self.gram, self.norms[:, None] * self.norms)
        if want is None or not isinstance(got, Tensor) or got.shape != want.shape:
            return math.inf
        return _largest((got.double() - want).abs(), scale)

    def error_of(self, case: Case) -> float:
        """That of the rows which the definition gives for the same case at another precision."""
        return self._worst_row(lambda part: self.rows_of(case, part.start, part.stop))

    def _error_of_rows(self, got: Any) -> float:
        """Some samples at a time: rows of the whole batch in float64 are never held."""
        size = len(self.norms)
        if not _is_like(got, {name: value.expand(size, *value.shape) for name, value in self.clipped.items()}):
            return math.inf
        return self._worst_row(lambda part: {name: value[part] for name, value in got.items()})

    def _worst_row(self, rows_at: Callable[[slice], Tensors]) -> float:
        gaps: list[Tensor] = []
        done = 0
        for rows in self.parts():
            part = slice(done, done + len(next(iter(rows.values()))))
            other = rows_at(part)
            gaps.append(_by_hand.norms({name: other[name].double() - value for name, value in rows.items()}))
            done = part.stop
        return _largest(torch.cat(gaps), self.norms)


def _largest(gap: Tensor, scale: Tensor) -> float:
    return float(torch.where(gap > 0, gap / scale, gap).max())


def _rows_of(case: Case) -> Callable[[Case, int, int], Tensors]:
    """`vmap(grad)`, or a loop where the model does not run under it."""
    try:
        _by_hand.rows(case, 0, 1)
    except Exception:  # whatever a model raises under vmap; one that does not run at all raises in the loop as well
        return _by_hand.looped
    return _by_hand.rows


def _median(norms: Tensor) -> float:
    positive = norms[norms > 0]
    return float(positive.median()) if len(positive) else 1.0


def _parts(case: Case, rows_of: Callable[[Case, int, int], Tensors], budget: int) -> Iterator[Tensors]:
    """Rows, as many at once as the budget allows."""
    row = sum(value.numel() * value.element_size() for value in case.model.params.values())
    step = max(1, budget // row)
    for start in range(0, case.size, step):
        yield rows_of(case, start, start + step)


def _distance(got: Any, want: Mapping[str, Tensor]) -> float:
    if not _is_like(got, want):
        return math.inf
    return math.hypot(*[float((got[name].double() - value).norm()) for name, value in want.items()])


def _is_like(got: Any, want: Mapping[str, Tensor]) -> bool:
    """Whether it has the same names and shapes."""
    if not isinstance(got, Mapping) or got.keys() != want.keys():
        return False
    return all(isinstance(got[name], Tensor) and got[name].shape == value.shape for name, value in want.items())
