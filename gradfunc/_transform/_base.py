"""`Transformation`, stages, and chains of them."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, NewType, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from .._errors import kind_of, message
from .._tree import Tensors
from ._guarantee import NOTHING, SAMPLES, Guarantee
from ._said import Facts, StepReport

Grads = NewType("Grads", dict[str, Tensor])  # reduced gradients
Updates = NewType("Updates", dict[str, Tensor])  # what is added to the parameters

In = TypeVar("In", contravariant=True)
Out = TypeVar("Out", covariant=True)
Before = TypeVar("Before")
Next = TypeVar("Next")

State = Any  # nested plain tuples and dicts of tensors and ints, so that torch.load(weights_only=True) reads it
# What stages say of an update. Asked when the whole chain has run: a clip may see its norms in the reduction only.
Say = Callable[[], tuple[tuple[str, Facts], ...]]


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
        """The state before the first update: plain tuples and dicts of tensors and ints."""

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


class Stage(ABC, Generic[In, Out]):
    """A stage that says where it stands, what it guarantees and what it did."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What messages and reports call it."""

    @property
    @abstractmethod
    def takes(self) -> Any:
        """PerSampleGrads, Grads or Updates; None for unknown."""

    @property
    @abstractmethod
    def gives(self) -> Any:
        """Likewise."""

    @abstractmethod
    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """What holds of the output for all data, given what holds of the input."""

    @abstractmethod
    def init(self, params: Tensors, /) -> State:
        """The state before the first update."""

    @abstractmethod
    def telling(self, grads: In, state: State, params: Tensors | None, /) -> tuple[Out, State, Say]:
        """Output, next state, and what there is to say of it."""

    def update(self, grads: In, state: State, params: Tensors | None = None, /) -> tuple[Out, State]:
        """Output and next state."""
        out, state, _ = self.telling(grads, state, params)
        return out, state

    def update_with_report(
        self, grads: In, state: State, params: Tensors | None = None, /
    ) -> tuple[Out, State, StepReport]:
        """Output, next state, and what the stage said (of a chain, every stage)."""
        out, state, say = self.telling(grads, state, params)
        return out, state, StepReport(say())

    def __rshift__(self, other: Transformation[Out, Next]) -> Chain[In, Next]:
        return Chain(_flat(self, other))

    def __rrshift__(self, other: Transformation[Before, In]) -> Chain[Before, Out]:
        return Chain(_flat(other, self))


@dataclass(frozen=True, repr=False)
class Chain(Stage[In, Out]):
    """Stages one after the other. The state is the tuple of theirs, however the chain was put together."""

    stages: tuple[Transformation[Any, Any], ...]

    def __post_init__(self) -> None:
        for stage in self.stages:
            if not isinstance(stage, Transformation):
                do = "A stage has init(params) and update(grads, state, params)."
                raise TypeError(message("gf.chain(*stages)", got=kind_of(stage), expected="stages", do=do))
        for stage, after in pairwise(self.stages):
            given, wanted = places(stage)[1], places(after)[0]
            if given is not None and wanted is not None and given is not wanted:
                raise TypeError(
                    message(
                        f"{name_of(stage)} >> {name_of(after)}",
                        got=f"{given.__name__} from {name_of(stage)}",
                        expected=f"{wanted.__name__}, which {name_of(after)} takes",
                        do="Per-sample stages come first, then one reduction, stages on its result, and a rule.",
                    )
                )

    @property
    def name(self) -> str:
        """Of all stages."""
        return " >> ".join(map(name_of, self.stages))

    @property
    def takes(self) -> Any:
        """What the first stage takes."""
        return places(self.stages[0])[0] if self.stages else None

    @property
    def gives(self) -> Any:
        """What the last stage gives."""
        return places(self.stages[-1])[1] if self.stages else None

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """What holds of the output: each stage's guarantee, given that of the stage before it."""
        return functools.reduce(_guarantee_after, self.stages, before)

    def init(self, params: Tensors, /) -> State:
        """One state a stage."""
        return tuple(stage.init(params) for stage in self.stages)

    def telling(self, grads: Any, state: State, params: Tensors | None, /) -> tuple[Any, State, Say]:
        """Each stage's output is the next one's input."""
        if not isinstance(state, tuple) or len(state) != len(self.stages):
            got = f"a state of {len(state)} stages" if isinstance(state, tuple) else f"{kind_of(state)} as state"
            expected, do = f"one of {len(self.stages)}", "Start from step.init(params) of the same chain."
            raise ValueError(message(f"({self}).update(grads, state, params)", got=got, expected=expected, do=do))
        states: list[State] = []
        says: list[Say] = []
        for stage, own in zip(self.stages, state, strict=True):
            # nothing holds what a stage was given: rows are free as soon as they are reduced
            if isinstance(stage, Stage):
                grads, own, say = stage.telling(grads, own, params)
                says.append(say)
            else:
                grads, own = stage.update(grads, own, params)
            states.append(own)
        return grads, tuple(states), lambda: tuple(entry for say in says for entry in say())

    def __repr__(self) -> str:
        return " >> ".join(repr(s) if isinstance(s, Stage) else name_of(s) for s in self.stages) or "gf.chain()"


def chain(*stages: Transformation[Any, Any]) -> Chain[Any, Any]:
    """Stages one after the other, as `a >> b >> c`; none is the identity.

    A type checker reads the order of `>>`; of `chain` it is checked when the chain is built.

    Raises:
        TypeError: something that is no stage; a stage after one that does not give what it takes.

    Example:
        >>> import gradfunc as gf
        >>> gf.chain(gf.clip_per_sample(1.0), gf.mean()) == gf.clip_per_sample(1.0) >> gf.mean()
        True
    """
    return Chain(_flat(*stages))


def name_of(stage: Transformation[Any, Any]) -> str:
    """What messages call a stage; a user's own goes by its class."""
    return stage.name if isinstance(stage, Stage) else type(stage).__name__


def places(stage: Transformation[Any, Any]) -> tuple[Any, Any]:
    """What a stage takes and gives; None for what it does not say."""
    return (stage.takes, stage.gives) if isinstance(stage, Placed) else (None, None)


def _flat(*stages: Transformation[Any, Any]) -> tuple[Transformation[Any, Any], ...]:
    return tuple(one for stage in stages for one in (stage.stages if isinstance(stage, Chain) else (stage,)))


def _guarantee_after(before: Guarantee, stage: Transformation[Any, Any]) -> Guarantee:
    return stage.guarantee(before) if isinstance(stage, Guaranteeing) else NOTHING
