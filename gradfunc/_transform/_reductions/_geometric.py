"""The geometric median of the rows, by their Gram matrix alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..._errors import check_int
from .._numbers import NOT_NEGATIVE, POSITIVE, check_number
from .._said import Facts
from ._gram import OfGram
from ._per_unit import check_options


@dataclass(frozen=True, repr=False, kw_only=True)
class GeometricMedian(OfGram):
    """Made by `gf.geometric_median`, which has the meanings."""

    max_iterations: int
    tolerance: float
    smoothing: float
    name = "geometric_median"

    def coefficients(self, call: str, gram: Tensor) -> tuple[Tensor, Callable[[], Facts]]:
        """Of the last iterate, a weighted mean of the rows."""
        c, iterations, residual = weiszfeld(
            gram.to("cpu", torch.float64), self.max_iterations, self.tolerance, self.smoothing
        )
        return c.to(gram.device, gram.dtype), partial(_facts, iterations, residual)

    def __repr__(self) -> str:
        numbers = {"max_iterations": 200, "tolerance": 1e-6, "smoothing": 1e-6}
        given = [f"{key}={own!r}" for key, default in numbers.items() if (own := getattr(self, key)) != default]
        return f"geometric_median({', '.join([*given, *self.options()])})"


def geometric_median(
    *,
    max_iterations: int = 200,
    tolerance: float = 1e-6,
    smoothing: float = 1e-6,
    nonfinite: str = "raise",
    on_zero_weight: str = "raise",
) -> GeometricMedian:
    """The point z with the least sum of distances to the rows: a stage from per-sample gradients to gradients.

    Smoothed Weiszfeld iterations (RFA: Pillutla et al. 2022, "Robust aggregation for federated learning", algorithm 2):
    `z <- sum_i b_i v_i / sum_i b_i` with `b_i = 1 / max(nu, |z - v_i|)` for the rows `v_i = g_i / w_i` of the samples
    with `w_i > 0`, one vote each. Every iterate is a weighted mean of the rows, so that distances come from their Gram
    matrix: no row is formed but in the one sum at the end. With fewer than half of the rows arbitrary the result stays
    within a distance of the others that depends on these alone, however far away the arbitrary ones are. Where more
    than half of the rows are equal, it is that row; where the minimum is not unique (an even number of rows on a line),
    one of the minima.

    Distances are computed in float64 on the host, from a matrix in float32 or wider: they are resolved down to about
    the root of that one's unit roundoff times the norms of the rows.

    Args:
        max_iterations: the most iterations; the report says how many there were.
        tolerance: the iterations end when `|sum_i b_i (z - v_i)| / n`, the slope of the mean (smoothed) distance at z,
            is at most this: a number without unit, from 0 to 1. It is in the report, `residual`.
        smoothing: nu over the typical distance of the rows: over rows i the median of the median distance from i to all
            rows (of two the larger). Within nu of a row its distance counts as quadratic, which adds at most nu/2 to
            the mean distance at the minimum.
        nonfinite: for a row whose norm is inf or NaN: "raise", or "skip", which leaves the sample out.
        on_zero_weight: where no sample is left: "raise", or "zero" for exact zeros.

    Raises:
        TypeError, ValueError: an argument of another type or out of range; in an update: a row that is not finite; no
            sample with weight > 0; a Gram matrix that overflows.

    Example:
        >>> import torch, gradfunc as gf
        >>> p = {"w": torch.ones(2)}
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [0.0, 1e6]])
        >>> g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())(p, x)
        >>> gf.mean().update(g, ())[0]["w"].norm() > 1e5, gf.geometric_median().update(g, ())[0]["w"].norm() < 1
        (tensor(True), tensor(True))
    """
    call = "gf.geometric_median(...)"
    check_int(call, "max_iterations", max_iterations, 1)
    check_number(call, "tolerance", tolerance, NOT_NEGATIVE, schedule=False)
    check_number(call, "smoothing", smoothing, POSITIVE, schedule=False)
    check_options(call, nonfinite, on_zero_weight)
    return GeometricMedian(
        max_iterations=max_iterations,
        tolerance=float(tolerance),
        smoothing=float(smoothing),
        nonfinite=nonfinite,
        on_zero_weight=on_zero_weight,
    )


def weiszfeld(k: Tensor, max_iterations: int, tolerance: float, smoothing: float) -> tuple[Tensor, int, float]:
    """Coefficients `[n]` of the geometric median of rows with this Gram matrix, iterations, and the last residual."""
    own = k.diagonal()
    distances = (own[:, None] + own - 2 * k).clamp(min=0).detach().sqrt().fill_diagonal_(0)
    typical = distances.sort(1).values[:, len(k) // 2]  # itself counts: a majority must be as close
    middle = int(typical.argmin())
    nu = smoothing * float(typical.sort().values[len(k) // 2])
    if float(typical[middle]) == 0:  # most rows are one point
        equal = (distances[middle] == 0).to(k)
        return equal / equal.sum(), 0, 0.0
    c = 1 / typical  # far rows pull little from the start
    c = c / c.sum()
    iterations, residual = 0, math.inf
    while iterations < max_iterations and residual > tolerance:
        products = k @ c
        squares = own - 2 * products + c @ products
        pulls = 1 / squares.clamp(min=nu * nu).sqrt()
        following = pulls / pulls.sum()
        change = (following - c).detach()
        residual = float((change @ k.detach() @ change).clamp(min=0).sqrt() * pulls.detach().mean())
        c, iterations = following, iterations + 1
    return c, iterations, residual


def _facts(iterations: int, residual: float) -> Facts:
    return {"iterations": iterations, "residual": residual}
