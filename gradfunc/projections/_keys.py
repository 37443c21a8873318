"""The key of a parameter's part, what is checked of every projection, and how far inner products are off."""

from __future__ import annotations

import hashlib
import math

from .._errors import check_int, message
from .._random import derived_key


def key_of(seed: int, name: str) -> tuple[int, int]:
    """Of draws for the parameter `name`: the seed, and a hash of the name."""
    digest = hashlib.sha256(name.encode()).digest()
    return derived_key(seed, int.from_bytes(digest[:8], "little"))


def checked(call: str, size: int, seed: int) -> None:
    """Raise unless these name a projection."""
    check_int(call, "size", size, 1)
    check_int(call, "seed", seed, 0)


def by_variance(call: str, variance: float, failure: float) -> float:
    """Chebyshev's inequality: a deviation exceeds this with probability `failure` at most."""
    if not isinstance(failure, (int, float)) or isinstance(failure, bool) or not 0 < failure < 1:
        raise ValueError(message(call, got=f"failure={failure!r}", expected="a probability in (0, 1)"))
    return math.sqrt(variance / failure)


def by_tails(size: int, failure: float) -> float:
    """The eps in (0, 1) with `4 exp(-size / 2 (eps^2 / 2 - eps^3 / 3)) = failure`; inf where there is none.

    Achlioptas 2003 ("Database-friendly random projections", lemma 5), for the squared norms of u + v and u - v of unit
    vectors: a quarter of their difference is <u, v>.
    """
    least = 2 * math.log(4 / failure) / size
    if least >= 1 / 6:
        return math.inf
    low, high = 0.0, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if middle**2 / 2 - middle**3 / 3 < least else (low, middle)
    return high
