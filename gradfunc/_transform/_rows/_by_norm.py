"""Rows times a number that is made of their norm: what clipping and normalising have in common."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..._errors import message
from ..._per_sample import PerSampleGrads
from ..._swap import levels
from .._said import Facts

POLICIES = ("raise", "skip", "zero", "keep")
WAYS_OUT = "Pass nonfinite='skip' to leave such samples out, 'zero' to count them as zeros, or 'keep'."
Factor = Callable[[Tensor, Tensor], Tensor]  # of norms [b] and units [b] in float64: what rows are multiplied by


@dataclass(eq=False)
class Seen:
    """Norms (per unit where that is what is clipped), factors, and what is not finite: `[3, b]` for a piece of rows."""

    pieces: list[Tensor] = field(default_factory=list)
    ask: Callable[[], object] | None = None  # notes all rows, where no query did
    size: int | None = None  # how many rows there are

    def note(self, norms: Tensor, unit: Tensor, c: Tensor) -> None:
        """Of one piece; once all rows were seen no more: a Gram computes some chunks more often than others."""
        if self.size is not None and sum(piece.shape[1] for piece in self.pieces) >= self.size:
            return
        lengths = torch.where(unit > 0, norms / unit, 0).double()
        self.pieces.append(torch.stack([lengths, c.double(), (~norms.isfinite()).double()]).detach())

    def facts(self) -> Facts:
        """Fractions and quantiles of what was seen."""
        if not self.pieces and self.ask is not None:
            self.ask()
        norms, c, nonfinite = torch.cat(self.pieces, 1) if self.pieces else torch.zeros(3, 0)
        fine = nonfinite == 0
        facts: dict[str, Tensor | float] = {
            "clipped": ((c < 1) & (norms > 0) & fine).double().sum() / max(len(c), 1),
            "nonfinite": nonfinite.sum() / max(len(c), 1),
        }
        # not norms[fine], whose length a device would be waited for
        three = torch.where(fine, torch.stack([norms, norms * c, c]), math.nan)
        found = (
            three.nanquantile(three.new_tensor([0.0, 0.5, 1.0]), dim=1) if len(c) else three.new_full((3, 3), math.nan)
        )
        for j, name in enumerate(("norm", "after", "factor")):
            facts |= {f"{name}_{which}": found[k, j] for k, which in enumerate(("min", "median", "max"))}
        return facts


def by_norm(
    call: str,
    g: PerSampleGrads,
    factor: Factor,
    *,
    nonfinite: str,
    per_unit_weight: bool = False,
    seen: Seen | None = None,
    gone: Tensor | None = None,
) -> PerSampleGrads:
    """Row i times `factor(|g_i|, unit_i)`, by the policy for norms that are not finite.

    Where rows are computed again at each query, so are their norms, and the factors with them. Rows that are `gone`,
    `[B]`, were left out before, since they were not finite: they are seen as such.
    """
    weights = g.weights if gone is None else torch.where(gone.to(g.weights.device), math.nan, g.weights)
    if seen is not None:
        seen.size = g.batch_size

    def factors(norms: Tensor, given: Tensor, noted: Seen | None) -> Tensor:
        if gone is not None:
            absent = given.isnan()
            norms, given = torch.where(absent.to(norms.device), math.inf, norms), torch.where(absent, 0.0, given)
        unit = (given if per_unit_weight else torch.ones_like(norms)).to(norms.device, torch.float64)
        c = factor(norms, unit)
        if noted is not None:
            noted.note(norms, unit, c)
        return c

    if nonfinite in ("skip", "zero"):
        norms = g.norms()
        return left_out(g, norms.isfinite(), nonfinite)._rescaled(factors(norms, weights, seen))
    # Weakly: rows that are computed at each query outlive the report, and must not collect norms for ever.
    watching = (lambda: None) if seen is None else weakref.ref(seen)

    def of_norms(norms: Tensor, given: Tensor) -> Tensor:
        if nonfinite == "raise" and not bool(norms.isfinite().all()):
            raise ValueError(refused(call, g))
        return factors(norms, given, watching())

    scaled = g._rescaled(of_norms, weights)
    if seen is not None and not seen.pieces:  # no query has come yet, and perhaps none will
        seen.ask = lambda: factors(g.norms(), weights, seen)
    return scaled


def left_out(g: PerSampleGrads, finite: Tensor, policy: str) -> PerSampleGrads:
    """Rows that are not finite left out ("skip"), or counted as zeros ("zero")."""
    return g.weighted(finite) if policy == "skip" else g.scaled(finite)


def refused(call: str, g: PerSampleGrads, do: str = WAYS_OUT) -> str:
    """What to say of a norm that is not finite."""
    norms = g.norms()
    i = int((~norms.isfinite()).nonzero()[0])
    each = g.norms(per_parameter=True)
    names = ", ".join(f"'{name}'" for name in g.names if not bool(each[name][i].isfinite()))
    return message(
        call,
        got=f"a gradient of norm {float(norms[i].detach())} for sample {i}" + (f" in {names}" if names else ""),
        expected="finite norms",
        do=do,
    )


def quotient(norms: Tensor, limit: float | Tensor, unit: Tensor, eps: float, *, least: bool) -> Tensor:
    """`C u / (n + eps u)`, `[b]`, of which with `least` no more than 1; 1 where n is 0 or not finite.

    Rounded so that n times it is <= C u. Its derivative is that of the quotient, and 0 where it is 1.
    """
    c = _rounded(norms.detach(), limit, unit.detach(), eps, least)
    if not (norms.requires_grad or unit.requires_grad or levels()):
        return c
    changed = c != 1
    length = torch.where(changed, norms.double() + eps * unit, 1.0)
    value = torch.where(changed, limit * unit / length, 1.0).to(c.dtype)
    return c + (value - value.detach())


def _rounded(norms: Tensor, limit: float | Tensor, unit: Tensor, eps: float, least: bool) -> Tensor:
    most = _down(limit * unit, norms)
    length = norms.double() + eps * unit
    c = (most.double() / length).to(norms.dtype)
    c = torch.where(norms * c > most, torch.nextafter(c, torch.zeros_like(c)), c)
    acts = (length > most.double()) if least else norms > 0
    return torch.where(acts & norms.isfinite(), c, torch.ones_like(c))


def _down(limit: Tensor, like: Tensor) -> Tensor:
    """In the dtype of `like`, rounded towards 0."""
    near = limit.to(like.dtype)
    return torch.where(near.double() > limit, torch.nextafter(near, torch.zeros_like(near)), near)
