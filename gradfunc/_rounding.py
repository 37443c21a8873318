"""Unit roundoffs, gamma_k, and the two ways to tell rounding from a wrong number.

The bound (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., sections 2.2, 3.1 and 4.2):
a sum of k - 1 roundings is off by at most gamma_k = k u / (1 - k u) times the sum of magnitudes, u the
unit roundoff. Where no bound is a theorem, the verdict is by precision: rounding shrinks with the unit
roundoff when the computation is repeated in a wider type, an error of method stays.
"""

from __future__ import annotations

import math

import torch


def unit_roundoff(dtype: torch.dtype) -> float:
    """Half the spacing of numbers at 1.

    Example:
        >>> unit_roundoff(torch.float64) == 2.0**-53
        True
    """
    return torch.finfo(dtype).eps / 2


def other_precisions(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """Precisions to repeat a computation in, to tell rounding from an error of method; the first that runs will do.

    Example:
        >>> other_precisions(torch.float32)
        (torch.float64,)
    """
    if dtype == torch.float64:
        return (torch.float32,)
    return (torch.float64,) if dtype == torch.float32 else (torch.float64, torch.float32)


def gamma(k: int, u: float) -> float:
    """`k u / (1 - k u)`; inf (no bound) where `k u >= 1` (Higham, lemma 3.1).

    Example:
        >>> gamma(100, unit_roundoff(torch.float64)) < 1.2e-14
        True
    """
    return k * u / (1 - k * u) if k * u < 1 else math.inf


def pair_factor(n: int, dtype: torch.dtype) -> float:
    """How far two ways of averaging n rows may differ, in units of `sum_i |g_i| / n`.

    Each way makes n roundings in the sum, one in the division, one in the product: within gamma_{n+2} of
    the truth, so a pair within twice that. Inf where `(n + 2) u >= 1`, such as bfloat16 at n = 256.

    Example:
        >>> pair_factor(256, torch.bfloat16)
        inf
    """
    return 2 * gamma(n + 2, unit_roundoff(dtype))


def is_rounding(*, low: float, high: float, scale_low: float, scale_high: float, u_low: float, u_high: float) -> bool:
    """Whether a discrepancy seen at two precisions is rounding.

    `low` was measured with unit roundoff `u_low`, `high` with the smaller `u_high`; the scales are the
    error scales of the quantity (for a sum, `sum |c_i| |g_i|`). Rounding is proportional to the unit
    roundoff, so `high / low` is about `u_high / u_low`; an error of method gives about 1. The line is
    the geometric mean of the two. `low` counts as one unit roundoff of the scale at least, since a
    coarse result may agree by luck, and as its square root at most: a result that has lost more than half
    of its digits tells nothing, so what exceeds `sqrt(u_high)` is never rounding.

    Example:
        >>> u32, u64 = unit_roundoff(torch.float32), unit_roundoff(torch.float64)
        >>> is_rounding(low=1e-7, high=2e-16, scale_low=1.0, scale_high=1.0, u_low=u32, u_high=u64)
        True
        >>> is_rounding(low=1e-2, high=1e-2, scale_low=1.0, scale_high=1.0, u_low=u32, u_high=u64)
        False
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return False
    relative_low = min(max(low / scale_low if scale_low else 0.0, u_low), math.sqrt(u_low))
    relative_high = high / scale_high if scale_high else (math.inf if high else 0.0)
    return relative_high <= relative_low * math.sqrt(u_high / u_low)
