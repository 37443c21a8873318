"""Claims, what a law yields, and how they are judged: by a bound, or by precision.

A law yields claims, `got` is `want` on `scale`. Two sums of the same computed rows hold to the bound of their
additions. Where the two sides are computed otherwise there is no bound, and the verdict is by precision: the law is
asked again of the same values at another one. On a GPU rows that are computed twice are never the same rows, since its
atomic additions have no order. What is derived, and from what, is in `gradfunc.testing.rounding`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .._errors import GradfuncWarning, message
from .._rounding import gamma, is_rounding, other_precisions, unit_roundoff
from .._tree import Tensors, row_norms, wide

F64 = torch.float64


class Claim(NamedTuple):
    """`got` is `want`, on `scale`, which broadcasts to them.

    Attributes:
        what: as a message says it, the parameter by name.
        terms: at most how many additions and products of the same computed rows either side is made of, 0 for equal
            bits; None where rows are computed otherwise on the two sides.
        samples: whether dimension 0 is of samples.
    """

    what: str
    got: Tensor
    want: Tensor
    scale: Tensor
    terms: int | None = None
    samples: bool = False


Claims = Callable[[torch.dtype | None], Iterator[Claim]]  # at the precision asked for (None), or at another


def rows(
    what: str, got: Tensors, want: Tensors, scale: Tensor | None = None, terms: int | None = None
) -> Iterator[Claim]:
    """Rows, each on the scale of its whole gradient."""
    _check_names(what, got, want)
    scale = norms(want) if scale is None else scale
    for name, value in want.items():
        each = scale.reshape(-1, *[1] * (value.dim() - 1)) if scale.dim() else scale
        yield Claim(f"{what} of '{name}'", got[name], value, each, terms, samples=True)


def sums(what: str, got: Tensors, want: Tensors, scale: Tensor, terms: int | None = None) -> Iterator[Claim]:
    """Sums over samples, all parameters on the scale `sum |c_i||g_i|`."""
    _check_names(what, got, want)
    for name, value in want.items():
        yield Claim(f"{what} of '{name}'", got[name], value, scale, terms)


def equal(what: str, got: Tensor, want: Tensor, *, samples: bool = False) -> Claim:
    """The same numbers."""
    return Claim(what, got, want, torch.zeros((), dtype=F64, device=want.device), 0, samples)


def weights_of(what: str, got: Tensor, want: Tensor) -> Claim:
    """Weights that a loss stated twice, which may be off by rounding where it computes them."""
    return Claim(f"weights{what}", got, want, want.double().abs(), samples=True)


def norms(none: Tensors) -> Tensor:
    """Of each row, `[B]`, in float64."""
    return row_norms({name: value.detach().double() for name, value in none.items()})


@dataclass(frozen=True)
class Asked:
    """What is asked of a law: at which precision, and what a message says.

    Attributes:
        call: the caller's, which messages repeat.
        dtype: the precision asked for.
        replay: how to see a failure again.
        device: "cpu", or another type, on which rows that are computed twice differ.
        tolerance: of the scale, which replaces the judgement by precision: all that differs in float64 is held to it.
    """

    call: str
    dtype: torch.dtype
    replay: str = ""
    device: str = "cpu"
    tolerance: float | None = None

    def hold(self, law: str, claims: Claims) -> None:
        """Assert that every claim of the law holds.

        Raises:
            AssertionError: naming the claim that does not, by how much, and what was allowed.
        """
        try:
            doubtful: dict[str, Claim] = {}
            for claim in map(_detached, claims(None)):
                if self._differs(claim):
                    doubtful[claim.what] = claim
            if doubtful:
                self._judge(doubtful, claims)
        except AssertionError as broken:
            raise AssertionError(self.broken(law, str(broken))) from None

    def broken(self, law: str, how: str) -> str:
        """What is said of a law that does not hold."""
        replay = f"\n  Replay: {self.replay}." if self.replay else ""
        return f"{self.call}: broken: {law}.\n  {how}.{replay}"

    def _differs(self, claim: Claim) -> bool:
        """Whether a claim is left to be judged by precision; raises where a bound says that it is broken."""
        relative = relative_error(claim)
        bounded = claim.terms == 0 or (claim.terms is not None and self.device == "cpu")
        if self.tolerance is not None and self.dtype == F64:
            if relative > self.tolerance:
                raise AssertionError(f"{_off(claim)}; allowed {self.tolerance:.1e} of it")
            return False
        if not bounded:
            return relative > _floor(self.dtype)
        allowed = bound(claim, self.dtype)
        off = (claim.got.double() - claim.want.double()).abs()
        if not bool((off <= allowed).all()):
            excess = (off - allowed).expand_as(claim.want)
            most = float(allowed.expand_as(claim.want).flatten()[int(excess.argmax())])
            why = "equal bits" if claim.terms == 0 else f"{most:.2e}: 2 gamma_{claim.terms} of the scale, and a cast"
            raise AssertionError(f"{_off(claim, excess)}; allowed: {why}")
        return False

    def _judge(self, doubtful: dict[str, Claim], claims: Claims) -> None:
        """By precision; where nothing runs at another one, half of the digits must agree."""
        u = unit_roundoff(self.dtype)
        again, other, failed = self._again(claims)
        if other is None:
            got = f"numbers that cannot be repeated at another precision ({failed})"
            do = f"Differences up to {math.sqrt(u):.1e} of the scale pass, half of the digits."
            warnings.warn(GradfuncWarning(message(self.call, got=got, expected="to repeat them", do=do)), stacklevel=4)
        for what, claim in doubtful.items():
            # where the gradient is 0 on one side all digits are lost, which is as much as can be
            mine = min(relative_error(claim), 1.0)
            if other is None or what not in again:
                if mine > math.sqrt(u):
                    text = f"{_off(claim)}; allowed {math.sqrt(u):.1e} of it, half of the digits"
                    raise AssertionError(f"{text}, as it cannot be repeated at another precision ({failed})")
                continue
            theirs, u_other = again[what], unit_roundoff(other)
            (low, u_low), (high, u_high) = sorted([(mine, u), (theirs, u_other)], key=lambda side: -side[1])
            scales = {"scale_low": 1.0, "scale_high": 1.0, "u_low": u_low, "u_high": u_high}
            rounding = is_rounding(low=min(low, 1.0), high=high, **scales)
            most = min(max(low, u_low), math.sqrt(u_low)) * math.sqrt(u_high / u_low)
            if self.tolerance is not None:
                most = min(most, self.tolerance)
            if not rounding or high > most:
                raise AssertionError(
                    f"{_off(claim)} in {_name(self.dtype)}, {theirs:.2e} of it in {_name(other)}: that is no rounding, "
                    f"which would leave at most {most:.1e} in {_name(other if u > u_other else self.dtype)}"
                )

    def _again(self, claims: Claims) -> tuple[dict[str, float], torch.dtype | None, str]:
        """Relative errors at another precision, and which; None and why where it does not run."""
        why = ""
        for dtype in other_precisions(self.dtype):
            try:
                return {claim.what: relative_error(claim) for claim in map(_detached, claims(dtype))}, dtype, ""
            except Exception as error:  # the user's code may raise anything at a precision it was not written for
                if self.tolerance is not None:
                    raise
                why = why or " ".join(f"{type(error).__name__}: {error}".split())[:160]
        return {}, None, why


def _detached(claim: Claim) -> Claim:
    """Without the graph that answers have where parameters require grad."""
    return claim._replace(got=claim.got.detach(), want=claim.want.detach(), scale=claim.scale.detach())


def relative_error(claim: Claim) -> float:
    """The largest error in units of the scale; inf where the scale is 0 and the error is not."""
    relative = _relative(claim)
    return float(relative.max()) if relative.numel() else 0.0


def bound(claim: Claim, dtype: torch.dtype) -> Tensor:
    """Of two sums of the same rows: the additions, in the accumulation type, and casts and divisions of the result.

    The magnitude that is cast is the larger of the two sides. Each operation may underflow besides, by half the spacing
    of the denormal numbers.
    """
    if not claim.terms:
        return torch.zeros_like(claim.want, dtype=F64)
    u, info = unit_roundoff(dtype), torch.finfo(dtype)
    size = torch.maximum(claim.got.double().abs(), claim.want.double().abs())
    added = 2 * gamma(claim.terms, unit_roundoff(wide(dtype))) * claim.scale.double()
    return added + gamma(4, u) * size + claim.terms * info.smallest_normal * info.eps


def _floor(dtype: torch.dtype) -> float:
    """What counts as rounding whatever the other precision shows: float32 may always be one unit roundoff off."""
    coarse = unit_roundoff(torch.float32)
    return math.sqrt(unit_roundoff(dtype) * coarse) if dtype == F64 else 0.0


def _relative(claim: Claim) -> Tensor:
    got, want = claim.got, claim.want
    if got.shape != want.shape:
        raise AssertionError(f"{claim.what}: shape {tuple(got.shape)}, not {tuple(want.shape)}")
    for side, other in ((got, want), (want, got)):
        if not bool(side.isfinite().all()):
            both = (
                ", on both sides: nothing can be compared there"
                if bool((~side.isfinite() & ~other.isfinite()).any())
                else ""
            )
            raise AssertionError(f"{claim.what}{_at(claim, ~side.isfinite())}: not finite{both}")
    off = (got.double() - want.double()).abs()
    return torch.where(off > 0, off / claim.scale.double(), off)


def _off(claim: Claim, by: Tensor | None = None) -> str:
    """Where a claim is furthest off (or most `by` something), and by how much."""
    relative = _relative(claim)
    k = int((relative if by is None else by).argmax())
    size = float((claim.got.double() - claim.want.double()).abs().flatten()[k])
    scale = float(claim.scale.double().expand_as(claim.want).flatten()[k])
    share = float(relative.flatten()[k])
    mask = torch.zeros_like(relative, dtype=torch.bool)
    mask.view(-1)[k] = True
    on = f" on a scale of {scale:.2e} ({share:.2e} of it)" if scale else ""
    return f"{claim.what}{_at(claim, mask)}: {size:.2e} apart{on}"


def _at(claim: Claim, mask: Tensor) -> str:
    return f", sample {int(mask.nonzero()[0, 0])}" if claim.samples and mask.dim() else ""


def _check_names(what: str, got: Tensors, want: Tensors) -> None:
    if list(got) != list(want):
        raise AssertionError(f"{what}: parameters {list(got)}, not {list(want)}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
