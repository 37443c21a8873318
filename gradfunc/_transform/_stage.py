"""What the stages of this package have besides two methods: where they stand, what they guarantee, what they did."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .._errors import kind_of, message
from .._per_sample import PerSampleGrads
from .._tree import Tensors
from ._guarantee import NOTHING, SAMPLES, Guarantee
from ._protocol import Grads, State
from ._said import Facts, StepReport


@dataclass(frozen=True)
class How:
    """How one update is run.

    Attributes:
        said: where stages put what they have to say, to be asked when the whole chain has run (a clip may see its norms
            in the reduction only); None where nobody asks, so that nothing is computed for it.
        owned: nobody else holds the tensors of the input: they may be overwritten.
        donate: nor those of the state.
        lands: the result is added to the parameters at once, unseen: a rule may give `Landing.at_once`.
    """

    said: list[tuple[str, Callable[[], Facts]]] | None = None
    owned: bool = False
    donate: bool = False
    lands: bool = False

    def say(self, stage: str, facts: Callable[[], Facts]) -> None:
        """Note what a stage has to say."""
        if self.said is not None:
            self.said.append((stage, facts))

    def own(self, values: Iterable[Tensor]) -> list[Tensor]:
        """Tensors of these values that may be overwritten: themselves, or copies."""
        return [value if self.owned and not value.requires_grad else value.clone() for value in values]

    def own_state(self, values: Iterable[Tensor]) -> list[Tensor]:
        """The same of tensors of the state."""
        return [value if self.donate and not value.requires_grad else value.clone() for value in values]


class AnyStage(ABC):
    """What all stages have.

    Attributes:
        fresh: no tensor of the output is one of the input or of the state.
        transparent: it gives what it takes, any of the types `acts_on`.
    """

    fresh = True
    transparent = False
    acts_on: tuple[Any, ...] = ()

    @property
    @abstractmethod
    def name(self) -> str:
        """What messages, reports and states call it."""

    @property
    @abstractmethod
    def takes(self) -> Any:
        """PerSampleGrads, Grads or Updates; None for unknown."""

    @property
    @abstractmethod
    def gives(self) -> Any:
        """Likewise."""

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """What holds of the output for all data, given what holds of the input; by default nothing."""
        return NOTHING

    def init(self, params: Tensors, /) -> State:
        """The state before the first update; by default nothing."""
        return ()

    @abstractmethod
    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Any, State]:
        """Output and next state. The output is None while a stage waits for more batches."""

    def flush(self, state: State, params: Tensors | None = None, /) -> tuple[Any, State]:
        """What the stage has gathered and not given yet, None for nothing, and the state without it."""
        return None, state

    def flushed(self, state: State, params: Tensors | None, how: How, /) -> tuple[Any, State]:
        """The same, as part of a chain."""
        return self.flush(state, params)

    def after(self, before: Guarantee, giver: str, /) -> AnyStage:
        """The stage behind `giver`, of whose output this holds: told when a chain from per-sample gradients is built.

        Raises:
            ValueError: the stage needs more than holds.
        """
        return self

    def update(self, grads: Any, state: Any, params: Tensors | None = None, /, *, donate: bool = False) -> Any:
        """Output and next state."""
        return self.apply(grads, state, params, How(owned=donate, donate=donate))

    def update_with_report(
        self, grads: Any, state: State, params: Tensors | None = None, /, *, donate: bool = False
    ) -> tuple[Any, State, StepReport]:
        """Output, next state, and what the stage said (of a chain, every stage)."""
        how = How([], owned=donate, donate=donate)
        out, state = self.apply(grads, state, params, how)
        return out, state, report_of(how)


def report_of(how: How) -> StepReport:
    """What was said, asked for now."""
    return StepReport(tuple((name, facts()) for name, facts in how.said or ()))


def check_rows(stage: AnyStage, grads: object) -> PerSampleGrads:
    """Raise TypeError unless these are rows."""
    if not isinstance(grads, PerSampleGrads):
        call = f"{stage!r}.update(g, state)"
        raise TypeError(message(call, got=kind_of(grads), expected="per-sample gradients"))
    return grads


def check_grads(stage: AnyStage, grads: object) -> dict[str, Tensor]:
    """Raise TypeError unless these are gradients `{name: tensor}`."""
    if not isinstance(grads, dict) or not all(isinstance(value, Tensor) for value in grads.values()):
        do = "Reduce per-sample gradients first: gf.mean()." if isinstance(grads, PerSampleGrads) else ""
        call = f"{stage!r}.update(grads, state)"
        raise TypeError(message(call, got=kind_of(grads), expected="gradients {name: tensor}", do=do))
    return grads


def check_params(stage: AnyStage, params: Tensors | None) -> Tensors:
    """Raise ValueError where a stage that reads parameters was given none."""
    if params is None:
        call = f"{stage!r}.update(grads, state, params)"
        raise ValueError(message(call, got="no params", expected="the parameters that the gradients are of"))
    return params


def picked(stage: object, entries: Mapping[str, Any], names: Iterable[str]) -> list[Any]:
    """Those of these names.

    Raises:
        ValueError: a gradient that the state knows nothing of.
    """
    if missing := [name for name in names if name not in entries]:
        call, do = f"{stage!r}.update(grads, state)", "Start from init(params) of the parameters themselves."
        raise ValueError(message(call, got=f"gradients of {missing}", expected=f"some of {list(entries)}", do=do))
    return [entries[name] for name in names]


def gathered(names: Iterable[str], values: Iterable[Tensor]) -> Grads:
    """Gradients again, of tensors in the order of these names.

    Raises:
        ValueError: more or fewer of them.
    """
    return Grads(dict(zip(names, values, strict=True)))
