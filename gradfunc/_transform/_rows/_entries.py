"""Stages on the entries of every row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..._errors import one_of
from ..._per_sample import PerSampleGrads
from ..._tree import Tensors
from .._chain import RowStage
from .._guarantee import SAMPLES, Guarantee
from .._numbers import NORM, Number, at, check_number, counted, counting, fixed, shown
from .._protocol import State
from .._signs import signs
from .._stage import How, check_rows
from ._by_norm import POLICIES, by_norm


@dataclass(frozen=True)
class Clamp:
    """Every entry into `[-limit, limit]`; NaN stays."""

    limit: float

    def __call__(self, values: Tensor) -> Tensor:
        return values.clamp(-self.limit, self.limit)


@dataclass(frozen=True, repr=False)
class EntriesStage(RowStage):
    """Every entry of every row through a function. Made by `gf.clip_value_per_sample` and `gf.sign_per_sample`."""

    label: str
    limit: Number | None
    nonfinite: str = "raise"

    @property
    def name(self) -> str:
        """As it is called."""
        return self.label

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """Rows depend on what they did; a clamp shrinks them, so that a bound from before holds, a sign does not."""
        bound = before.bound if self.limit is not None else None
        return dataclasses.replace(before, bound=bound, per_unit_weight=before.per_unit_weight and bound is not None)

    def init(self, params: Tensors, /) -> State:
        """The count of updates, for a schedule."""
        return counting(self.limit)

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[PerSampleGrads, State]:
        """The rows, to be mapped when they are asked."""
        g, call = check_rows(self, grads), f"{self!r}.update(g, state)"
        fn: Callable[[Tensor], Tensor] = signs
        if self.limit is not None:
            fn = Clamp(at(call, "limit", self.limit, NORM, state))
        if self.nonfinite != "keep":
            g = by_norm(call, g, _ones, nonfinite=self.nonfinite)
        return g._mapped(fn), counted(state)

    def __repr__(self) -> str:
        given = [] if self.limit is None else [shown(self.limit)]
        given += [] if self.nonfinite == "raise" else [f"nonfinite={self.nonfinite!r}"]
        return f"{self.name}({', '.join(given)})"


def clip_value_per_sample(limit: Number, *, nonfinite: str = "raise") -> EntriesStage:
    """Clamp every entry of every sample's gradient into [-C, C]: a stage from rows to rows.

    Losses and weights stay. Entries are needed, so rows are formed: some samples of one parameter at a time, at each
    query, within the scratch budget; never B x P. A sum costs as much as forming all rows once. Directions turn: the
    gradient [2.5, 0.8] clamped at 1 is turned by 20.92 degrees.

    Args:
        limit: C > 0: a number, or a schedule: a function from the count of updates to one; inf clamps nothing.
        nonfinite: for a row whose norm is inf or NaN: as in `gf.clip_per_sample`. With "keep" an infinite entry becomes
            C or -C, and NaN stays NaN.

    Formal guarantee: every entry is at most C in size, so that a row of P entries has norm at most C sqrt(P); P is not
    known when a chain is built, so no bound is stated. A bound from before still holds: rows only shrink. Row i depends
    on sample i only if it did before.

    | entry            | becomes                          |
    |------------------|----------------------------------|
    | 0                | 0                                |
    | within [-C, C]   | itself, bit by bit               |
    | beyond, as 1e20  | C or -C                          |
    | any, C = inf     | itself                           |
    | inf, NaN         | by `nonfinite`; "keep" as above  |

    Raises:
        TypeError: an option of another type.
        ValueError: `limit` not above 0 (0, negative, NaN), an unknown `nonfinite`; in an update or a query, a norm that
            is not finite.

    Example:
        >>> import torch, gradfunc as gf
        >>> p = {"w": torch.ones(2)}
        >>> g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())(p, torch.tensor([[2.5, 0.8], [0.0, -3.0]]))
        >>> clip = gf.clip_value_per_sample(1.0)
        >>> clip.update(g, clip.init(p))[0].materialize()["w"]
        tensor([[ 1.0000,  0.8000],
                [ 0.0000, -1.0000]])
    """
    call = "gf.clip_value_per_sample(limit)"
    check_number(call, "limit", limit, NORM, do="inf clamps nothing.")
    one_of(call, "nonfinite", nonfinite, POLICIES)
    return EntriesStage("clip_value_per_sample", fixed(limit), nonfinite)


def sign_per_sample(*, nonfinite: str = "raise") -> EntriesStage:
    """The sign of every entry of every sample's gradient, -1, 0 or 1: a stage from rows to rows.

    Before a mean this is the mean of signs, which no optimiser that sees the mean gradient alone can compute: every
    sample has one vote an entry, however long its gradient. Rows are formed as in `gf.clip_value_per_sample`.

    Args:
        nonfinite: for a row whose norm is inf or NaN: as in `gf.clip_per_sample`. With "keep" an infinite entry counts
            by its sign, and NaN stays NaN.

    Formal guarantee: entries are at most 1 in size; P is not known when a chain is built, so no bound on the norm,
    sqrt(P), is stated. Row i depends on sample i only if it did before.

    | entry                  | becomes        |
    |------------------------|----------------|
    | 0, -0                  | 0              |
    | above 0, such as 1e-40 | 1              |
    | below 0, such as -1e20 | -1             |
    | inf, NaN               | by `nonfinite` |

    Raises:
        ValueError: an unknown `nonfinite`; in an update or a query, a norm that is not finite.

    Example:
        >>> import torch, gradfunc as gf
        >>> p = {"w": torch.ones(2)}
        >>> g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())(p, torch.tensor([[2.5, 0.8], [0.0, -3.0]]))
        >>> step = gf.sign_per_sample() >> gf.mean()
        >>> step.update(g, step.init(p))[0]["w"]
        tensor([0.5000, 0.0000])
    """
    one_of("gf.sign_per_sample()", "nonfinite", nonfinite, POLICIES)
    return EntriesStage("sign_per_sample", None, nonfinite)


def _ones(norms: Tensor, unit: Tensor) -> Tensor:
    return torch.ones_like(norms)
