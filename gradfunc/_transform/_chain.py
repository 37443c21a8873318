"""Composition: stages with `>>`, and chains of them."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from .._errors import kind_of, message
from .._per_sample import PerSampleGrads
from .._tree import Tensors
from ._guarantee import SAMPLES, Guarantee
from ._protocol import Grads, Guaranteeing, In, Out, Placed, State, Transformation, Updates, guarantee_after
from ._said import StepReport
from ._stage import AnyStage, How, report_of

A = TypeVar("A")
B = TypeVar("B")
Before = TypeVar("Before")
Next = TypeVar("Next")


class Stage(AnyStage, Generic[In, Out]):
    """A stage from one type to another."""

    def update(
        self, grads: In, state: State, params: Tensors | None = None, /, *, donate: bool = False
    ) -> tuple[Out, State]:
        """Output and next state; with `donate` tensors of `grads` and `state` may be overwritten."""
        return self.apply(grads, state, params, How(owned=donate, donate=donate))

    def update_with_report(
        self, grads: In, state: State, params: Tensors | None = None, /, *, donate: bool = False
    ) -> tuple[Out, State, StepReport]:
        """Output, next state, and what the stage said (of a chain, every stage)."""
        how = How([], owned=donate, donate=donate)
        out, state = self.apply(grads, state, params, how)
        return out, state, report_of(how)

    def __rshift__(self, other: Transformation[Out, Next]) -> Chain[In, Next]:
        return chain(self, other)

    def __rrshift__(self, other: Transformation[Before, In]) -> Chain[Before, Out]:
        return chain(other, self)


class Same(AnyStage):
    """A stage that gives what it takes, of several types. Not generic itself: its `update` is."""

    takes = gives = None  # what comes before decides
    fresh = False
    transparent = True
    acts_on: tuple[Any, ...] = (PerSampleGrads, Grads, Updates)

    def update(
        self, grads: A, state: State, params: Tensors | None = None, /, *, donate: bool = False
    ) -> tuple[A, State]:
        """Output and next state; with `donate` tensors of `grads` and `state` may be overwritten."""
        return self.apply(grads, state, params, How(owned=donate, donate=donate))

    def __rshift__(self, other: Transformation[A, B]) -> Chain[A, B]:
        return chain(self, other)

    def __rrshift__(self, other: Transformation[A, B]) -> Chain[A, B]:
        return chain(other, self)


class RowStage(Stage[PerSampleGrads, PerSampleGrads]):
    """Rows to rows."""

    takes = gives = PerSampleGrads


class BatchStage(Stage[Grads, Grads]):
    """Gradients to gradients."""

    takes = gives = Grads


class Rule(Stage[Grads, Updates]):
    """Gradients to what is added to the parameters."""

    takes, gives = Grads, Updates


@dataclass(frozen=True, repr=False)
class Chain(Stage[In, Out]):
    """Stages one after the other. The state is `{name: state}` of theirs, however the chain was put together."""

    stages: tuple[Transformation[Any, Any], ...]

    def __post_init__(self) -> None:
        for stage in self.stages:
            if not isinstance(stage, Transformation):
                do = "A stage has init(params) and update(grads, state, params)."
                raise TypeError(message("gf.chain(*stages)", got=kind_of(stage), expected="stages", do=do))
        _checked_order(self.stages)
        if any(places(stage)[0] is PerSampleGrads for stage in self.stages):  # the whole of what comes before is known
            object.__setattr__(self, "stages", _told(self.stages))
        elif (k := next((k for k, stage in enumerate(self.stages) if _promises_nothing(stage)), None)) is not None:
            object.__setattr__(self, "stages", (*self.stages[:k], *_told(self.stages[k:])))  # whatever comes before

    @property
    def name(self) -> str:
        """Of all stages."""
        return " >> ".join(map(name_of, self.stages))

    @property
    def keys(self) -> tuple[str, ...]:
        """Of the state: names of stages, those that repeat with a number."""
        names = [name_of(stage) for stage in self.stages]
        keys: list[str] = []
        for k, name in enumerate(names):
            count, key = names[:k].count(name) + 1, name
            while key in keys or (key != name and key in names):  # a name may itself end in a number
                key, count = f"{name}_{count}", count + 1
            keys.append(key)
        return tuple(keys)

    @property
    def takes(self) -> Any:
        """What the first stage takes that does not take whatever comes."""
        return next((places(stage)[0] for stage in self.stages if not transparent(stage)), None)

    @property
    def gives(self) -> Any:
        """What the last stage gives that does not give what it takes."""
        return next((places(stage)[1] for stage in reversed(self.stages) if not transparent(stage)), None)

    @property
    def fresh(self) -> bool:  # type: ignore[override]  # a constant of other stages
        """Whether no tensor of the output is one that was given."""
        return functools.reduce(_owned_after, self.stages, False)

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """What holds of the output: each stage's guarantee, given that of the stage before it."""
        return functools.reduce(guarantee_after, self.stages, before)

    def after(self, before: Guarantee, giver: str, /) -> Chain[In, Out]:
        """With its stages told what holds here, within a stage of another chain."""
        chain: Chain[In, Out] = Chain(self.stages)
        object.__setattr__(chain, "stages", _told(self.stages, before, giver))
        return chain

    def init(self, params: Tensors, /) -> State:
        """One state a stage."""
        return {key: stage.init(params) for key, stage in zip(self.keys, self.stages, strict=True)}

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Any, State]:
        """Each stage's output is the next one's input; behind a stage that waits, all wait."""
        self._check_state(state, "update(grads, state, params)")
        states, owned = dict(state), how.owned
        for key, stage in zip(self.keys, self.stages, strict=True):
            # nothing here holds what a stage was given: rows are free as soon as they are reduced
            own = replace(how, owned=owned, lands=how.lands and stage is self.stages[-1])
            grads, states[key] = ran(stage, grads, states[key], params, own)
            if grads is None:
                break
            owned = _owned_after(owned, stage)
        return grads, states

    def flush(self, state: State, params: Tensors | None = None, /) -> tuple[Any, State]:
        """What waits in a stage of the chain, through the stages behind it; None if nothing does."""
        return self.flushed(state, params, How())

    def flushed(self, state: State, params: Tensors | None, how: How, /) -> tuple[Any, State]:
        """The same, as part of a chain."""
        self._check_state(state, "flush(state, params)")
        states, out, owned = dict(state), None, False
        for key, stage in zip(self.keys, self.stages, strict=True):
            if out is not None:
                out, states[key] = ran(stage, out, states[key], params, How(how.said, owned, how.donate))
                owned = _owned_after(owned, stage)
            elif isinstance(stage, AnyStage):
                out, states[key] = stage.flushed(states[key], params, how)
                owned = out is not None
        return out, states

    def _check_state(self, state: State, query: str) -> None:
        if not isinstance(state, dict) or tuple(state) != self.keys:
            got = f"a state of stages {list(state)}" if isinstance(state, dict) else f"{kind_of(state)} as state"
            expected, do = f"one of {list(self.keys)}", "Start from step.init(params) of the same chain."
            raise ValueError(message(f"({self}).{query}", got=got, expected=expected, do=do))

    def __repr__(self) -> str:
        return " >> ".join(repr(s) if isinstance(s, AnyStage) else name_of(s) for s in self.stages) or "gf.chain()"


@dataclass(frozen=True, repr=False)
class Identity(Same):
    """Gives what it takes; in a chain it is nothing."""

    name = "identity"

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """What held before."""
        return before

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Any, State]:
        """The input itself."""
        return grads, state

    def __repr__(self) -> str:
        return "identity()"


def identity() -> Identity:
    """The stage that gives what it takes; `identity >> t`, `t >> identity` and `t` are the same chain.

    Example:
        >>> import gradfunc as gf
        >>> gf.identity() >> gf.mean() >> gf.identity() == gf.chain(gf.mean())
        True
    """
    return Identity()


def chain(*stages: Transformation[Any, Any]) -> Chain[Any, Any]:
    """Stages one after the other, as `a >> b >> c`; none is the identity.

    The state is a dictionary `{stage name: its state}`, those of a name that repeats with a number, however the chain
    was grouped. A stage that gives None, such as `gf.accumulate` until it is ready, lets those behind it wait.

    Inputs, states and outputs may carry a graph of autograd, so that training steps can be differentiated through. A
    loop of them then keeps what all steps were made of: train with parameters that require no gradient
    (`model.params`), under `torch.no_grad()`, or by `gf.make_step`, which does that.

    A type checker reads the order of `>>`; of `chain` it is checked when the chain is built. A chain that starts from
    per-sample gradients is whole: what its stages need of those before, such as a bound on every sample, must be there.

    Raises:
        TypeError: something that is no stage; a stage after one that does not give what it takes.
        ValueError: a stage after ones that do not guarantee what it needs.

    Example:
        >>> import gradfunc as gf
        >>> gf.chain(gf.clip_per_sample(1.0), gf.mean()) == gf.clip_per_sample(1.0) >> gf.mean()
        True
    """
    return Chain(_flat(*stages))


def name_of(stage: Transformation[Any, Any]) -> str:
    """What messages call a stage; a user's own goes by its class."""
    return stage.name if isinstance(stage, AnyStage) else type(stage).__name__


def places(stage: Transformation[Any, Any]) -> tuple[Any, Any]:
    """What a stage takes and gives; None for what it does not say."""
    return (stage.takes, stage.gives) if isinstance(stage, Placed) else (None, None)


def transparent(stage: Transformation[Any, Any]) -> bool:
    """Whether a stage gives what it takes, whatever that is."""
    return isinstance(stage, AnyStage) and stage.transparent


def _flat(*stages: Any) -> tuple[Transformation[Any, Any], ...]:
    parts = (stage.stages if isinstance(stage, Chain) else (stage,) for stage in stages)
    return tuple(one for part in parts for one in part if not isinstance(one, Identity))


def _checked_order(stages: tuple[Transformation[Any, Any], ...]) -> None:
    """Raise TypeError where a stage does not take what comes; stages that give what they take let it through."""
    given, giver = None, ""
    for stage in stages:
        same = transparent(stage)
        takes, gives = places(stage)
        wanted = stage.acts_on if isinstance(stage, AnyStage) and same else (takes,)
        if given is not None and (same or takes is not None) and given not in wanted:
            raise TypeError(
                message(
                    f"{giver} >> {name_of(stage)}",
                    got=f"{given.__name__} from {giver}",
                    expected=f"{' or '.join(one.__name__ for one in wanted)}, which {name_of(stage)} takes",
                    do="Per-sample stages come first, then one reduction, stages on its result, and a rule.",
                )
            )
        if not same:
            given, giver = gives, name_of(stage)


def _promises_nothing(stage: Transformation[Any, Any]) -> bool:
    """Whether nothing holds behind a stage, whatever holds before it."""
    if isinstance(stage, AnyStage):
        return type(stage).guarantee is AnyStage.guarantee
    return not isinstance(stage, Guaranteeing)


def _told(
    stages: tuple[Transformation[Any, Any], ...], before: Guarantee = SAMPLES, giver: str = ""
) -> tuple[Transformation[Any, Any], ...]:
    """The stages, each told what holds of its input."""
    every: list[Transformation[Any, Any]] = []
    for stage in stages:
        stage = told(stage, before, giver)
        before, giver = guarantee_after(before, stage), name_of(stage)
        every.append(stage)
    return tuple(every)


def told(stage: Any, before: Guarantee, giver: str) -> Any:
    """A stage that knows what holds of its input; a user's own asks for nothing."""
    return stage.after(before, giver) if isinstance(stage, AnyStage) else stage


def ran(stage: Any, grads: Any, state: State, params: Tensors | None, how: How) -> tuple[Any, State]:
    """One stage; a user's own has its two methods."""
    if isinstance(stage, AnyStage):
        return stage.apply(grads, state, params, how)
    out: tuple[Any, State] = stage.update(grads, state, params)
    return out


def _owned_after(owned: bool, stage: Transformation[Any, Any]) -> bool:
    """Whether nobody else holds what a stage gives; of a user's own that is not known."""
    return isinstance(stage, AnyStage) and (stage.fresh or owned)
