"""Clipping every sample's gradient by its norm."""

from __future__ import annotations

import dataclasses
import math
import weakref
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._errors import kind_of, message, one_of
from .._per_sample import PerSampleGrads
from .._swap import levels
from .._tree import Tensors
from ._base import Say, Stage, State
from ._guarantee import SAMPLES, Guarantee
from ._said import Facts


@dataclass(frozen=True, repr=False)
class ClipPerSample(Stage[PerSampleGrads, PerSampleGrads]):
    """Row i times min(1, C/|g_i|). It remembers nothing. Made by `gf.clip_per_sample`, which has the meanings."""

    max_norm: float
    per_unit_weight: bool = False
    eps: float = 0.0
    nonfinite: str = "raise"

    @property
    def name(self) -> str:
        """As it is called."""
        return "clip_per_sample"

    @property
    def takes(self) -> Any:
        """Rows."""
        return PerSampleGrads

    @property
    def gives(self) -> Any:
        """Rows."""
        return PerSampleGrads

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """The smaller of two bounds in one unit; of two units, that on the norm itself, which alone bounds a sum.

        Rows only shrink, so that a bound from before still holds. C = inf gives none, nor does a clip that keeps what
        is not finite.
        """
        if math.isinf(self.max_norm) or self.nonfinite == "keep":
            return before
        if before.bound is not None:
            same = before.per_unit_weight == self.per_unit_weight
            if (before.bound <= self.max_norm) if same else self.per_unit_weight:
                return before
        return dataclasses.replace(before, bound=self.max_norm, per_unit_weight=self.per_unit_weight)

    def init(self, params: Tensors, /) -> State:
        """Nothing."""
        return ()

    def telling(
        self, grads: PerSampleGrads, state: State, params: Tensors | None, /
    ) -> tuple[PerSampleGrads, State, Say]:
        """The rows, each with its factor. Where rows are computed again at each query, so are their norms."""
        call = f"{self!r}.update(g, state)"
        if not isinstance(grads, PerSampleGrads):
            raise TypeError(message(call, got=kind_of(grads), expected="per-sample gradients"))
        seen, weights = _Seen(), grads.weights
        if self.nonfinite in ("skip", "zero"):  # losses or weights change, which must be known before a mean
            norms = grads.norms()
            finite = norms.isfinite()
            left = grads.weighted(finite) if self.nonfinite == "skip" else grads.scaled(finite)
            return left._rescaled(self._factors(norms, weights, seen)), state, partial(self._said, seen, None)

        # Weakly: rows that are computed at each query outlive the report, and must not collect norms for ever.
        watching = weakref.ref(seen)

        def of_norms(norms: Tensor, own: Tensor) -> Tensor:
            if self.nonfinite == "raise" and not bool(norms.isfinite().all()):
                raise ValueError(_refused(call, grads))
            return self._factors(norms, own, watching())

        clipped = grads._rescaled(of_norms, weights)
        return clipped, state, partial(self._said, seen, None if seen.pieces else grads)

    def _factors(self, norms: Tensor, weights: Tensor, seen: _Seen | None) -> Tensor:
        unit = (weights if self.per_unit_weight else torch.ones_like(norms)).to(norms.device, torch.float64)
        c = factors(norms, self.max_norm, unit, self.eps)
        if seen is not None:
            lengths = torch.where(unit > 0, norms / unit, 0).double()
            seen.pieces.append(torch.stack([lengths, (c < 1).double(), (~norms.isfinite()).double()]).detach())
        return c

    def _said(self, seen: _Seen, g: PerSampleGrads | None) -> tuple[tuple[str, Facts], ...]:
        """Fractions and quantiles of what was seen: the same if rows were computed several times."""
        if g is not None and not seen.pieces:  # no query has come yet
            self._factors(g.norms(), g.weights, seen)
        lengths, clipped, nonfinite = torch.cat(seen.pieces, 1)
        finite = lengths[nonfinite == 0]
        low, middle, high = finite.quantile(finite.new_tensor([0.0, 0.5, 1.0])) if len(finite) else [math.nan] * 3
        facts: dict[str, Tensor | float] = {
            "clipped": clipped.sum() / max(len(clipped), 1),
            "nonfinite": nonfinite.sum() / max(len(clipped), 1),
            "norm_min": low,
            "norm_median": middle,
            "norm_max": high,
        }
        return ((self.name, facts),)

    def __repr__(self) -> str:
        changed = [
            f"{f.name}={value!r}" for f in dataclasses.fields(self)[1:] if (value := getattr(self, f.name)) != f.default
        ]
        return f"{self.name}({', '.join([repr(self.max_norm), *changed])})"


@dataclass
class _Seen:
    """`[3, b]` for each piece of rows: norms (per unit of weight where that is clipped), clipped?, not finite?"""

    pieces: list[Tensor] = field(default_factory=list)


def clip_per_sample(
    max_norm: float, *, per_unit_weight: bool = False, eps: float = 0.0, nonfinite: str = "raise"
) -> ClipPerSample:
    """Scale every sample's gradient whose norm exceeds C down to norm C: a stage from rows to rows.

    Row i is multiplied by `min(1, C / |g_i|)`, over all parameters together (Abadi et al. 2016, "Deep Learning with
    Differential Privacy", algorithm 1), and by 1 where the norm is 0. The quotient is rounded down where it would leave
    a norm above C, so clipping twice is clipping once. Rows up to C stay as they are, bit by bit. Losses and weights
    stay. Nothing is computed but norms: the factors wait for a sum, and where rows stream in chunks the norms wait with
    them, so that `clip >> sum` is one pass ("skip" and "zero" take one of their own for the norms).

    Args:
        max_norm: C > 0; inf clips nothing.
        per_unit_weight: clip `g_i / w_i` instead, that is g_i at `C w_i`: of a loss over 1000 tokens the gradient per
            token rather than their sum. A sample of weight 0 is left out.
        eps: added to the norm, as torch's `clip_grad_norm_` adds 1e-6; norms between C - eps and C then shrink too.
        nonfinite: for a row whose norm is inf or NaN: "raise"; "skip" (the sample counts as absent: gradient, loss and
            weight 0); "zero" (gradient and loss 0, weight kept); "keep" (the row stays, and nothing is bounded).

    Formal guarantee, up to rounding: every row's norm (with `per_unit_weight`, that over its weight) is at most C
    unless `nonfinite="keep"`; row i depends on sample i only if it did before.

    | norm n                              | factor                                   |
    |-------------------------------------|------------------------------------------|
    | 0                                   | 1                                        |
    | up to C                             | 1                                        |
    | above C                             | C/n, rounded down                        |
    | n + eps above C, with eps           | C/(n + eps)                              |
    | any finite, C = inf                 | 1                                        |
    | above 0, weight 0, per unit weight  | 0                                        |
    | inf, NaN                            | by `nonfinite`                           |

    Raises:
        TypeError: an option of another type.
        ValueError: `max_norm` not above 0, negative `eps`, an unknown `nonfinite`; in an update or, where rows stream,
            in the query that computes them: a norm that is not finite, naming sample and parameters.

    Example:
        >>> import torch, gradfunc as gf
        >>> p = {"w": torch.ones(2)}
        >>> g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())(p, torch.tensor([[3.0, 4.0], [0.0, 0.5]]))
        >>> clip = gf.clip_per_sample(1.0)
        >>> clipped, _ = clip.update(g, clip.init(p))
        >>> clipped.norms()
        tensor([1.0000, 0.5000])
    """
    call = "gf.clip_per_sample(max_norm)"
    for name, value in {"max_norm": max_norm, "eps": eps}.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise TypeError(message(call, got=f"{name}={value!r}", expected="a number"))
    if not isinstance(per_unit_weight, bool):
        raise TypeError(message(call, got=f"per_unit_weight={per_unit_weight!r}", expected="True or False"))
    if not max_norm > 0:
        raise ValueError(message(call, got=f"max_norm={max_norm!r}", expected="a norm > 0", do="inf clips nothing."))
    if not 0 <= eps < math.inf:
        raise ValueError(message(call, got=f"eps={eps!r}", expected="a finite number >= 0"))
    one_of(call, "nonfinite", nonfinite, ("raise", "skip", "zero", "keep"))
    return ClipPerSample(float(max_norm), per_unit_weight, float(eps), nonfinite)


def factors(norms: Tensor, max_norm: float, unit: Tensor, eps: float) -> Tensor:
    """`min(1, C u / (n + eps u))`, `[b]`, rounded so that n times it is <= C u; 1 where n is 0 or not finite.

    Its derivative is that of the quotient, and 0 where it is 1.
    """
    c = _rounded(norms.detach(), max_norm, unit.detach(), eps)
    if not (norms.requires_grad or unit.requires_grad or levels()):
        return c
    above = c < 1
    length = torch.where(above, norms.double() + eps * unit, 1.0)
    quotient = torch.where(above, max_norm * unit / length, 1.0).to(c.dtype)
    return c + (quotient - quotient.detach())


def _rounded(norms: Tensor, max_norm: float, unit: Tensor, eps: float) -> Tensor:
    limit = _down(max_norm * unit, norms)
    length = norms.double() + eps * unit
    c = (limit.double() / length).to(norms.dtype)
    c = torch.where(norms * c > limit, torch.nextafter(c, torch.zeros_like(c)), c)
    return torch.where((length > limit.double()) & norms.isfinite(), c, torch.ones_like(c))


def _down(limit: Tensor, like: Tensor) -> Tensor:
    """In the dtype of `like`, rounded towards 0."""
    near = limit.to(like.dtype)
    return torch.where(near.double() > limit, torch.nextafter(near, torch.zeros_like(near)), near)


def _refused(call: str, g: PerSampleGrads) -> str:
    norms = g.norms()
    i = int((~norms.isfinite()).nonzero()[0])
    each = g.norms(per_parameter=True)
    names = ", ".join(f"'{name}'" for name in g.names if not bool(each[name][i].isfinite()))
    return message(
        call,
        got=f"a gradient of norm {float(norms[i].detach())} for sample {i}" + (f" in {names}" if names else ""),
        expected="finite norms",
        do="Pass nonfinite='skip' to leave such samples out, 'zero' to count them as zeros, or 'keep'.",
    )
