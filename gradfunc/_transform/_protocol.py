"""What a stage is to others: two methods, and what it may declare."""

from __future__ import annotations

from typing import Any, NewType, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from .._tree import Tensors
from ._guarantee import NOTHING, SAMPLES, Guarantee

Grads = NewType("Grads", dict[str, Tensor])
"""Reduced gradients, `{name: tensor}` with the shapes of the parameters: a plain dictionary at run time."""
Updates = NewType("Updates", dict[str, Tensor])
"""What is added to the parameters, `{name: tensor}`: a plain dictionary at run time."""

In = TypeVar("In", contravariant=True)
Out = TypeVar("Out", covariant=True)

State = Any  # nested plain dicts and tuples of tensors and ints, so that torch.load(weights_only=True) reads it


@runtime_checkable
class Transformation(Protocol[In, Out]):
    """A pure stage from `In` to `Out`: all it remembers is in the state that it takes and gives.

    Any object with these two methods is one; compose with `>>` or `gf.chain`. One that also has `takes` and `gives`
    (`gf.PerSampleGrads`, `gf.Grads` or `gf.Updates`) has its place in a chain checked when the chain is built, and
    one with `guarantee(before)` says what holds of its output for all data; without it, nothing is taken to hold.

    Example:
        >>> import gradfunc as gf
        >>> class Sgd:
        ...     takes, gives = gf.Grads, gf.Updates
        ...     def init(self, params):
        ...         return ()
        ...     def update(self, grads, state, params=None, /):
        ...         return gf.Updates({name: -0.1 * value for name, value in grads.items()}), state
        >>> gf.clip_per_sample(1.0) >> gf.mean() >> Sgd()
        clip_per_sample(1.0) >> mean() >> Sgd
    """

    def init(self, params: Tensors, /) -> State:
        """The state before the first update: plain dicts and tuples of tensors and ints."""

    def update(self, grads: In, state: State, params: Tensors | None = None, /) -> tuple[Out, State]:
        """The output and the next state; arguments stay as they are."""


@runtime_checkable
class Placed(Protocol):
    """A stage that says what it takes and gives."""

    @property
    def takes(self) -> Any:
        """PerSampleGrads, Grads or Updates; None for unknown."""

    @property
    def gives(self) -> Any:
        """Likewise."""


@runtime_checkable
class Guaranteeing(Protocol):
    """A stage that says what holds of its output."""

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """For all data, given what holds of its input."""


def guarantee_after(before: Guarantee, stage: Transformation[Any, Any]) -> Guarantee:
    """What holds behind a stage; nothing behind one that does not say."""
    return stage.guarantee(before) if isinstance(stage, Guaranteeing) else NOTHING
