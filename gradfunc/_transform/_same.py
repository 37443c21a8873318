"""Stages of any place: they give what they take."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from .._errors import kind_of, message
from .._tree import Tensors
from ._chain import Same, Stage
from ._foreach import multiply_
from ._guarantee import SAMPLES, Guarantee, times
from ._numbers import FINITE, Number, at, check_number, counted, counting, shown
from ._protocol import Grads, State, Updates
from ._stage import How, check_grads

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, repr=False)
class Scale(Same):
    """Made by `gf.scale`, which has the meanings."""

    factor: Number
    name = "scale"
    acts_on = (Grads, Updates)

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """One sample moves the output by |factor| times as much; of a schedule nothing is known."""
        return times(before, None if callable(self.factor) else abs(self.factor))

    def init(self, params: Tensors, /) -> State:
        """The count of updates, for a schedule."""
        return counting(self.factor)

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Any, State]:
        """Every entry."""
        factor = at(repr(self), "factor", self.factor, FINITE, state)
        values = check_grads(self, grads)
        out = multiply_(how.own(values.values()), factor)
        return dict(zip(values, out, strict=True)), counted(state)

    def __repr__(self) -> str:
        return f"scale({shown(self.factor)})"


def scale(factor: Number) -> Scale:
    """Every entry times a number: of gradients, or of updates behind a rule.

    Args:
        factor: a number, or a schedule: a function from the count of updates before this one.

    Raises:
        TypeError, ValueError: something else; a number that is not finite.

    Example:
        >>> import torch, gradfunc as gf
        >>> gf.scale(0.5).update({"w": torch.tensor([2.0, 4.0])}, ())[0]
        {'w': tensor([1., 2.])}
    """
    check_number("gf.scale(factor)", "factor", factor, FINITE)
    return Scale(factor)


@dataclass(frozen=True, repr=False)
class StatelessTransform(Stage[A, B]):
    """Made by `gf.stateless_transform`."""

    fn: Callable[..., Any]
    with_params: bool
    name = "stateless_transform"
    takes = gives = None
    fresh = False

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Any, State]:
        """What the function says."""
        return self.fn(grads, params) if self.with_params else self.fn(grads), state

    def __repr__(self) -> str:
        return f"stateless_transform({shown(self.fn)})"


def stateless_transform(fn: Callable[[A], B] | Callable[[A, Tensors | None], B]) -> StatelessTransform[A, B]:
    """A function as a stage that remembers nothing.

    Args:
        fn: `fn(grads)` or `fn(grads, params)`, of whatever stands at its place in a chain, to what comes next. It must
            be pure. Where it stands is not known when a chain is built, and nothing is guaranteed behind it.

    Raises:
        TypeError: something that is not called with one or two arguments.

    Example:
        >>> import torch, gradfunc as gf
        >>> relu = gf.stateless_transform(lambda grads: {name: value.relu() for name, value in grads.items()})
        >>> relu.update({"w": torch.tensor([-1.0, 2.0])}, relu.init({}))[0]
        {'w': tensor([0., 2.])}
    """
    call, expected = "gf.stateless_transform(fn)", "a function fn(grads) or fn(grads, params)"
    if not callable(fn):
        raise TypeError(message(call, got=kind_of(fn), expected=expected))
    try:
        given = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # a builtin that does not say
        return StatelessTransform(fn, False)
    asked = [p for p in given if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty]
    several = any(p.kind is p.VAR_POSITIONAL for p in given)
    required = any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in given)
    if len(asked) > 2 or required or not (asked or several):
        raise TypeError(message(call, got=f"a function of {inspect.signature(fn)}", expected=expected))
    return StatelessTransform(fn, len(asked) == 2)
