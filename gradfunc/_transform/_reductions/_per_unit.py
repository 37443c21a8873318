"""What reductions have in common that combine rows otherwise than by a sum: rows over their weights, each one vote."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..._errors import message, one_of
from ..._per_sample import PerSampleGrads
from ..._tree import Tensors
from .._chain import Stage
from .._protocol import Grads, State
from .._rows._by_norm import refused
from .._said import Facts
from .._stage import How, check_rows

SKIP = "Pass nonfinite='skip' to leave such samples out."


@dataclass(frozen=True, repr=False, kw_only=True)
class OverRows(Stage[PerSampleGrads, Grads]):
    """A function of the rows g_i / w_i of the samples with w_i > 0. How far one sample moves it, nothing is stated.

    Attributes:
        nonfinite: "raise", or "skip" for samples whose row is not finite.
        on_zero_weight: "raise", or "zero" where no sample is left.
    """

    nonfinite: str
    on_zero_weight: str
    takes, gives = PerSampleGrads, Grads

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Grads, State]:
        """Of the rows that are left."""
        call = f"{self!r}.update(g, state)"
        g, left_out = per_unit(call, check_rows(self, grads), self.nonfinite)
        facts: Callable[[], Facts] = dict
        if g.batch_size:
            out, facts = self.reduced(call, g, state)
        elif self.on_zero_weight == "raise":
            do = "The batch is empty, or every sample is left out; pass on_zero_weight='zero' for zeros."
            raise ValueError(message(call, got="no samples", expected="at least one with weight > 0", do=do))
        else:
            out = {name: torch.zeros_like(like) for name, like in g._shapes.items()}
        how.say(self.name, partial(_said, g.batch_size, left_out, facts))
        return Grads(out), self.following(state)

    @abstractmethod
    def reduced(self, call: str, g: PerSampleGrads, state: State) -> tuple[Tensors, Callable[[], Facts]]:
        """The result of at least one row, all finite and of weight 1, and what is to be said of it."""

    def following(self, state: State) -> State:
        """The state after one more update."""
        return state

    def options(self) -> list[str]:
        """Those that are not the default, as they were spelt."""
        given = [] if self.nonfinite == "raise" else [f"nonfinite={self.nonfinite!r}"]
        return given + ([] if self.on_zero_weight == "raise" else [f"on_zero_weight={self.on_zero_weight!r}"])


def check_options(call: str, nonfinite: str, on_zero_weight: str) -> None:
    """Raise ValueError on an option that is none."""
    one_of(call, "nonfinite", nonfinite, ("raise", "skip"))
    one_of(call, "on_zero_weight", on_zero_weight, ("raise", "zero"))


def per_unit(call: str, g: PerSampleGrads, nonfinite: str) -> tuple[PerSampleGrads, Tensor]:
    """Rows over their weights, without samples of weight 0, and how many were left out because they are not finite.

    Raises:
        ValueError: a row that is not finite, unless those are left out.
    """
    weights = g.weights
    used, unit = weights > 0, bool((weights == 1).all())
    g = g if unit else g._per_unit()  # of weight 0: exact zeros, whatever the row was
    bad = ~g.norms().isfinite() & used.to(g._losses.device)
    if nonfinite == "raise" and bool(bad.any()):
        raise ValueError(refused(call, g, SKIP))
    kept = used & ~bad
    return (g if bool(kept.all()) else g.select(kept)), bad.sum()


def size_of(like: Tensor) -> int:
    """Entries of a parameter."""
    return math.prod(like.shape)


def _said(samples: int, left_out: Tensor, facts: Callable[[], Facts]) -> Facts:
    return {"samples": samples, "nonfinite": left_out, **facts()}
