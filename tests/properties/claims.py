"""When two answers are the same: the error scales of the quantities, and the rules of `gradfunc._rounding`.

A law yields claims, `got` is `want` on `scale`. In float64 they hold to 1e-12 of the scale. In a lower precision two
sums of the same computed rows hold to the bound of their additions; where the two sides are computed otherwise there is
no bound, and the verdict is by precision: the law is asked again of the same values in float64. On a GPU rows that are
computed twice are never the same rows, since its atomic additions have no order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from oracle import TOLERANCE, flat
from torch import Tensor

from gradfunc._rounding import gamma, is_rounding, unit_roundoff
from gradfunc._tree import wide
from gradfunc.testing.strategies import Case, Problem

F64 = torch.float64
Rows = dict[str, Tensor]


class Claim(NamedTuple):
    """`got` is `want`, on `scale`, which broadcasts to them.

    Attributes:
        terms: at most how many additions and products of the same computed rows either side is made of, 0 for equal
            bits; None where rows are computed otherwise on the two sides.
    """

    what: str
    got: Tensor
    want: Tensor
    scale: Tensor
    terms: int | None = None


Law = Callable[[Problem], Iterator[Claim]]


def rows(what: str, got: Rows, want: Rows, scale: Tensor | None = None, terms: int | None = None) -> Iterator[Claim]:
    """Rows, each on the scale of its whole gradient."""
    assert list(got) == list(want), f"{what}: {list(got)}, not {list(want)}"
    scale = flat(want).norm(dim=1) if scale is None else scale
    for name, value in want.items():
        each = scale.reshape(-1, *[1] * (value.dim() - 1))
        yield Claim(f"{what} of {name}", got[name], value, each, terms)


def sums(what: str, got: Rows, want: Rows, scale: Tensor, terms: int | None = None) -> Iterator[Claim]:
    """Sums over samples, all parameters on the scale `sum |c_i||g_i|`."""
    assert list(got) == list(want), f"{what}: {list(got)}, not {list(want)}"
    for name, value in want.items():
        yield Claim(f"{what} of {name}", got[name], value, scale, terms)


def equal(what: str, got: Tensor, want: Tensor) -> Claim:
    """The same numbers."""
    return Claim(what, got, want, torch.zeros((), dtype=F64, device=want.device), 0)


def check(law: Law, case: Case, device: str = "cpu") -> None:
    """Assert that every claim of the law holds.

    Raises:
        AssertionError: naming the claim that does not, and by how much.
    """
    doubtful: dict[str, float] = {}
    for claim in law(case.build(device=device)):
        relative = error(claim)
        if case.dtype == F64:
            assert relative <= TOLERANCE, f"{claim.what}: {relative:.2e} of the scale off"
        elif claim.terms == 0 or (claim.terms is not None and device == "cpu"):
            allowed = bound(claim, case.dtype)
            off = (claim.got.double() - claim.want.double()).abs()
            assert bool((off <= allowed).all()), f"{claim.what}: {off.max():.2e} off, allowed {allowed.max():.2e}"
        elif relative:
            doubtful[claim.what] = relative
    if not doubtful:
        return
    again = {claim.what: error(claim) for claim in law(case.build(device=device, dtype=F64))}
    units = {"u_low": unit_roundoff(case.dtype), "u_high": unit_roundoff(F64)}
    for what, low in doubtful.items():
        high = again[what]
        text = f"{what}: {low:.2e} of the scale off in {case.dtype}, {high:.2e} in float64"
        assert high <= TOLERANCE, text
        # Where the gradient is 0 on one side all digits are lost, which is as much as can be.
        assert is_rounding(low=min(low, 1.0), high=high, scale_low=1.0, scale_high=1.0, **units), text


def error(claim: Claim) -> float:
    """The largest error in units of the scale; inf where the scale is 0 and the error is not."""
    assert claim.got.shape == claim.want.shape, f"{claim.what}: {claim.got.shape}, not {claim.want.shape}"
    assert bool(claim.got.isfinite().all() & claim.want.isfinite().all()), f"{claim.what}: not finite"
    off = (claim.got.double() - claim.want.double()).abs()
    relative = torch.where(off > 0, off / claim.scale.double(), off)
    return float(relative.max()) if relative.numel() else 0.0


def bound(claim: Claim, dtype: torch.dtype) -> Tensor:
    """Of two sums of the same rows: the additions, in the accumulation type, and casts and divisions of the result.

    The magnitude that is cast is the larger of the two sides. Each operation may underflow besides, by half the spacing
    of the denormal numbers.
    """
    if claim.terms == 0:
        return torch.zeros_like(claim.want, dtype=F64)
    u, info = unit_roundoff(dtype), torch.finfo(dtype)
    size = torch.maximum(claim.got.double().abs(), claim.want.double().abs())
    added = 2 * gamma(claim.terms, unit_roundoff(wide(dtype))) * claim.scale.double()
    return added + gamma(4, u) * size + claim.terms * info.smallest_normal * info.eps
