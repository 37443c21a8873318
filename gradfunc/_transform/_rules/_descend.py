"""The last part of a rule: the step against a direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..._tree import Tensors
from .._chain import Rule
from .._foreach import multiply, multiply_
from .._guarantee import SAMPLES, Guarantee, times
from .._numbers import NOT_NEGATIVE, Number, at, check_number, counted, counting, fixed, shown
from .._protocol import State, Updates
from .._stage import How, check_grads


@dataclass(frozen=True, repr=False)
class Descend(Rule):
    """Made by `gf.descend`, which has the meanings."""

    lr: Number
    name = "descend"

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """One sample moves the update by lr times as much; of a schedule nothing is known."""
        return times(before, None if callable(self.lr) else self.lr)

    def init(self, params: Tensors, /) -> State:
        """The count of updates, for a schedule."""
        return counting(self.lr)

    def factor(self, state: State) -> float:
        """What this update multiplies by."""
        return -at(repr(self), "lr", self.lr, NOT_NEGATIVE, state)

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Updates, State]:
        """Every entry."""
        values, factor = check_grads(self, grads), self.factor(state)
        given = list(values.values())
        if given and how.owned and not any(value.requires_grad for value in given):
            out = multiply_(given, factor)
        else:
            out = multiply(given, factor)
        return Updates(dict(zip(values, out, strict=True))), counted(state)

    def __repr__(self) -> str:
        return f"descend({shown(self.lr)})"


def descend(lr: Number) -> Descend:
    """Gradients, or what stages made of them, times -lr: the rule that ends a chain of parts.

    Args:
        lr: the learning rate >= 0, or a schedule: a function from the count of updates before this one.

    Raises:
        TypeError, ValueError: something else; a number that is negative or not finite.

    Example:
        >>> import torch, gradfunc as gf
        >>> step = gf.scale_by_adam() >> gf.descend(0.1)
        >>> params = {"w": torch.zeros(2)}
        >>> step.update({"w": torch.tensor([3.0, -4.0])}, step.init(params), params)[0]
        {'w': tensor([-0.1000,  0.1000])}
    """
    check_number("gf.descend(lr)", "lr", lr, NOT_NEGATIVE)
    return Descend(fixed(lr))
