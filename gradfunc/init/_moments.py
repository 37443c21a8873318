"""Expectations over a Gaussian pre-activation, by adaptive quadrature."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.integrate import cubature

from .._errors import message
from ._activation import Activation, Array

RELATIVE, ABSOLUTE = 1e-12, 1e-14  # asked of the quadrature, of integrands of size about 1
SUBDIVISIONS = 200  # of one interval
MOST_ENDS = 200  # where intervals end
AGREED = 1e-9  # the most that two divisions of the line may differ by
END = 16.0  # standard deviations; what lies outside is checked to be nothing


@dataclass(frozen=True)
class Moments:
    """Of `phi` and its derivative at `x = sqrt(q) z`, z standard normal.

    Attributes:
        mean: `E[phi]`.
        square: `E[phi^2]`.
        slope: `E[phi'^2]`.
        error: how far off `square` and `slope` may be, relatively; `mean` by as much of `sqrt(square)`.
    """

    mean: float
    square: float
    slope: float
    error: float


def moments(call: str, phi: Activation, q: float) -> Moments:
    """By Gauss-Kronrod rules on two divisions of the line, halved where they are not exact yet.

    A rule of open intervals is blind to a jump between an interval's end and its outermost node. So known jumps are
    ends themselves, and what others do shows as a difference between the two divisions, which counts as the error.

    Raises:
        ValueError: no convergence to 1e-9.
    """
    std = math.sqrt(q)
    around = np.linspace(-END, END, 641)
    with np.errstate(over="ignore", invalid="ignore"):
        # So that the integrands are of size 1 where they are largest, be it far out.
        size, steep = (float(np.abs(v * np.exp(-(around**2) / 4)).max()) or 1.0 for v in phi(std * around))

    def integrands(z: Array) -> Array:
        z = z[:, 0]
        y, d = phi(std * z)
        y, d = y / size, d / steep
        density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        return np.stack([y, y * y, d * d], axis=1) * density[:, None]

    if not (math.isfinite(size) and math.isfinite(steep)):
        raise _refused(call, phi, q, "values that are not finite")
    if len(_ends(phi, std, 1.0)) > MOST_ENDS:
        raise _refused(call, phi, q, f"jumps at more than {MOST_ENDS} places")
    answer, error = _over_the_line(integrands, _ends(phi, std, 1.0))
    other, other_error = _over_the_line(integrands, _ends(phi, std, math.sqrt(5) - 1))  # no end but 0 is the same
    edge = np.abs(integrands(np.array([[-END], [END]]))).max(axis=0)
    # A bound of the tail by the last density times 1: it falls there by e^-16 a unit unless phi outgrows it.
    off = np.maximum(error, other_error) + np.abs(answer - other) + edge
    with np.errstate(invalid="ignore", divide="ignore"):
        least = np.array([math.sqrt(answer[1]), answer[1], answer[2]])
        relative = np.where(off <= ABSOLUTE**2, 0.0, off / least)
    if not bool((relative <= AGREED).all()):
        raise _refused(call, phi, q, f"a relative error of {np.max(relative):.0e}")
    mean, square, slope = (float(value) for value in answer)
    return Moments(mean * size, square * size**2, slope * steep**2, float(relative.max()))


def _over_the_line(integrands: Callable[[Array], Array], ends: Array) -> tuple[Array, Array]:
    # A call an interval: given all ends as points= it does not go on where the error is largest (SciPy 1.17).
    parts = [
        cubature(integrands, [low], [high], rtol=RELATIVE, atol=ABSOLUTE, max_subdivisions=SUBDIVISIONS)
        for low, high in itertools.pairwise([-END, *ends, END])
    ]
    return np.sum([part.estimate for part in parts], axis=0), np.sum([part.error for part in parts], axis=0)


def _ends(phi: Activation, std: float, stretch: float) -> Array:
    """Where intervals end: on the scale of the Gaussian, on that of the activation, and where it jumps."""
    own = np.array([1.0, 2.5, 5.0, 9.0]) * stretch
    scale = np.geomspace(1 / 8, 32, 5) * stretch / std
    scale = scale[(scale < END / 2) & (scale > 1e-12)]
    ends = np.concatenate([[0.0], own, -own, scale, -scale, phi.jumps / std])
    return np.unique(ends[np.abs(ends) < END])


def _refused(call: str, phi: Activation, q: float, got: str) -> ValueError:
    expected = f"an integral over a Gaussian of variance {q:.3g} that converges to {AGREED:.0e}"
    do = "Pass an activation that grows slower than exp(x^2) and jumps at few places, or another variance=."
    return ValueError(message(call, got=f"{got} from {phi.name}", expected=expected, do=do))
