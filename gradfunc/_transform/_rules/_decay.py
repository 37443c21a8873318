"""A part of rules: gradients plus a multiple of the parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..._tree import Tensors
from .._chain import BatchStage
from .._numbers import NOT_NEGATIVE, Number, at, counted, counting, shown
from .._protocol import Grads, State
from .._stage import How, check_grads, check_params
from ._slots import picked


@dataclass(frozen=True, repr=False)
class Decayed(BatchStage):
    """Before the moments of a rule this is L2 regularisation; behind them, decoupled decay."""

    weight_decay: Number
    name = "add_decayed_weights"

    def init(self, params: Tensors, /) -> State:
        """The count of updates, for a schedule."""
        return counting(self.weight_decay)

    def rate(self, state: State) -> float:
        """The multiple at this update."""
        return at(repr(self), "weight_decay", self.weight_decay, NOT_NEGATIVE, state)

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Grads, State]:
        """Every entry."""
        values = check_grads(self, grads)
        weights = [weight.detach() for weight in picked(self, check_params(self, params), values)]
        given, rate = list(values.values()), self.rate(state)
        if given and how.owned and not any(value.requires_grad for value in given):
            out = given
            torch._foreach_add_(out, weights, alpha=rate)
        else:
            out = [g.add(w.to(g.dtype), alpha=rate) for g, w in zip(given, weights, strict=True)]
        return Grads(dict(zip(values, out, strict=True))), counted(state)

    def __repr__(self) -> str:
        return f"add_decayed_weights({shown(self.weight_decay)})"
