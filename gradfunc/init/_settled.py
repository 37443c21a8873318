"""Where the variance of pre-activations settles, layer after layer."""

from __future__ import annotations

import math

from scipy.optimize import brentq

from .._errors import message
from ._activation import Activation
from ._moments import Moments, moments

LARGEST, SMALLEST = 1e12, 1e-12
STEP = 8.0


def next_variance(m: Moments, gain: float, bias: float) -> float:
    """`gain^2 E[phi^2] + bias` (Poole et al. 2016, arXiv 1606.05340, eq. 3)."""
    return gain**2 * m.square + bias


def settled(call: str, phi: Activation, gain: float, bias: float) -> float:
    """The limit of the variance from 1 on: 0, a stable fixed point, or inf for a homogeneous activation that grows.

    It is the next fixed point in the direction in which the variance moves from 1. None makes it oscillate for ever: as
    `d log N(x; 0, q) / d log q >= -1/2`, so is that of the map, which thus steps beyond a fixed point by half its
    distance at most.
    """
    value_at_zero, _ = phi.at_zero

    def growth(q: float) -> tuple[float, float]:
        m = moments(call, phi, q)
        return next_variance(m, gain, bias) / q - 1, 4 * m.error + 1e-14

    at_one, error = growth(1.0)
    if abs(at_one) <= error:
        return 1.0
    if phi.homogeneous:
        ratio = at_one + 1 - bias
        if ratio < 1 - error:
            return bias / (1 - ratio)
        return math.inf
    floor = gain**2 * value_at_zero**2 + bias  # the variance after one of 0
    near = far = 1.0
    if at_one > 0:
        while growth(far)[0] > 0:
            near, far = far, far * STEP
            if far > LARGEST:
                raise _no_limit(call, phi, gain, "grows without end")
    else:
        while True:
            now, error = growth(far)
            if now > error:
                break
            if far <= SMALLEST and floor == 0:
                return 0.0
            near, far = far if now < 0 else near, far / STEP
    low, high = sorted((math.log(near), math.log(far)))
    return float(math.exp(brentq(lambda t: growth(math.exp(t))[0], low, high, xtol=1e-13, rtol=1e-14)))


def _no_limit(call: str, phi: Activation, gain: float, got: str) -> ValueError:
    do = "Pass variance=, that of the pre-activation in question, or ask gf.init.variance_path for layer after layer."
    expected = f"one that settles at gain {gain:.6g}"
    return ValueError(message(call, got=f"a variance that {got}, through {phi.name}", expected=expected, do=do))
