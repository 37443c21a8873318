"""When two answers are the same: the claims of laws, judged as `gradfunc.testing` judges them, but strictly.

In float64 they hold to 1e-12 of the scale, of whatever they are made: gradfunc's own promise, of every case here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from oracle import TOLERANCE

from gradfunc.testing._claims import Asked, Claim
from gradfunc.testing.strategies import Case, Problem

Law = Callable[[Problem], Iterator[Claim]]


def check(law: Law, case: Case, device: str = "cpu") -> None:
    """Assert that every claim of the law holds.

    Raises:
        AssertionError: naming the claim that does not, and by how much.
    """
    asked = Asked("law", case.dtype, device=device, tolerance=TOLERANCE)
    asked.hold(law.__name__, lambda dtype: law(case.build(device=device, dtype=dtype)))
