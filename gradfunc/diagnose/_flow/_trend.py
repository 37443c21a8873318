"""The norm of a gradient over depth: a line through its logarithm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Trend:
    """How a gradient's norm changes from layer to layer on the way back.

    Attributes:
        layers: how many layers the line goes through.
        factor: exp of the slope of log |gradient| on the way from the last layer to the first, by least squares.
        interval: of the factor, at 95 % (Student's t with `layers - 2` degrees of freedom; residuals taken to be
            independent and normal); None for fewer than three layers.
        fitted: the factor to the power of `layers - 1`: the change over the net by the line.
        total: |gradient| at the first layer over that at the last.
    """

    layers: int
    factor: float
    interval: tuple[float, float] | None
    fitted: float
    total: float


def trend(norms: Sequence[float]) -> Trend | None:
    """A line through the norms at layers in forward order, those that are positive; None for fewer than two."""
    points = [(len(norms) - 1 - k, math.log(norm)) for k, norm in enumerate(norms) if 0 < norm < math.inf]
    if len(points) < 2:
        return None
    back, logs = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    n, around = len(points), back - back.mean()
    spread = float(around @ around)
    slope = float(around @ logs) / spread
    interval = None
    if n > 2:
        left = logs - logs.mean() - slope * around
        error = math.sqrt(float(left @ left) / (n - 2) / spread)
        reach = float(special.stdtrit(n - 2, (1 + CONFIDENCE) / 2)) * error
        interval = (_exp(slope - reach), _exp(slope + reach))
    length = float(back.max() - back.min())
    return Trend(n, _exp(slope), interval, _exp(slope * length), _exp(float(logs[0] - logs[-1])))


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
