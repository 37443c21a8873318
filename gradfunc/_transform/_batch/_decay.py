"""Gradients plus a multiple of the parameters: L2 regularisation before moments, decoupled decay behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..._tree import Tensors
from .._chain import BatchStage
from .._foreach import add, add_
from .._guarantee import SAMPLES, Guarantee, times
from .._numbers import FINITE, Number, at, check_number, counted, counting, fixed, shown
from .._protocol import Grads, State
from .._stage import How, check_grads, check_params, gathered, picked


@dataclass(frozen=True, repr=False)
class AddDecayedWeights(BatchStage):
    """Made by `gf.add_decayed_weights`, which has the meanings."""

    weight_decay: Number
    name = "add_decayed_weights"

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """A translation by what the parameters fix: one sample moves the output as far as the input."""
        return times(before, 1.0)

    def init(self, params: Tensors, /) -> State:
        """The count of updates, for a schedule."""
        return counting(self.weight_decay)

    def rate(self, state: State) -> float:
        """The multiple at this update."""
        return at(f"{self!r}.update(grads, state, params)", "weight_decay", self.weight_decay, FINITE, state)

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Grads, State]:
        """Every entry."""
        values, weights, rate = check_grads(self, grads), check_params(self, params), self.rate(state)
        given, others = list(values.values()), [weight.detach() for weight in picked(self, weights, values)]
        if given and how.owned and not any(value.requires_grad for value in given):
            out = add_(given, others, rate)
        else:
            out = add(given, others, rate)
        return gathered(values, out), counted(state)

    def __repr__(self) -> str:
        return f"add_decayed_weights({shown(self.weight_decay)})"


def add_decayed_weights(weight_decay: Number) -> AddDecayedWeights:
    """Gradients plus `weight_decay` times the parameters: a stage on gradients, the L2 penalty of torch's `sgd`.

    Of some parameters only: `gf.masked(gf.add_decayed_weights(0.1), r".*weight")`. It needs `params`.

    Args:
        weight_decay: a finite number, or a schedule: a function from the count of updates before this one.

    Raises:
        TypeError, ValueError: something else; in an update, no `params`.

    Example:
        >>> import torch, gradfunc as gf
        >>> stage = gf.add_decayed_weights(0.1)
        >>> stage.update({"w": torch.tensor([1.0])}, (), {"w": torch.tensor([2.0])})[0]
        {'w': tensor([1.2000])}
    """
    check_number("gf.add_decayed_weights(weight_decay)", "weight_decay", weight_decay, FINITE)
    return AddDecayedWeights(fixed(weight_decay))
