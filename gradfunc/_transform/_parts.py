"""Stages on some of the parameters: `masked`, and groups of parameters with a stage each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

from .._errors import kind_of, message
from .._per_sample import PerSampleGrads
from .._tree import Selection, Tensors, by_rules, check_selection, selected
from ._chain import Stage, name_of, places, ran, told, transparent
from ._guarantee import NOTHING, SAMPLES, Guarantee, Sensitivity
from ._landing import merged
from ._numbers import shown
from ._protocol import State, Transformation, Updates, guarantee_after
from ._stage import AnyStage, How

A = TypeVar("A")
B = TypeVar("B")
Labels = Mapping[str, str] | Callable[[str, Tensor], str]


@dataclass(frozen=True, repr=False)
class Masked(Stage[A, B]):
    """Made by `gf.masked`, which has the meanings."""

    inner: Transformation[A, B]
    select: Selection
    fresh = False

    @property
    def name(self) -> str:
        """Of the stage within."""
        return f"masked({name_of(self.inner)})"

    @property
    def transparent(self) -> bool:  # type: ignore[override]  # a constant of other stages
        """As the stage within."""
        return transparent(self.inner)

    @property
    def acts_on(self) -> tuple[Any, ...]:  # type: ignore[override]  # a constant of other stages
        """As the stage within."""
        return self.inner.acts_on if isinstance(self.inner, AnyStage) else ()

    @property
    def takes(self) -> Any:
        """What the stage within takes."""
        return places(self.inner)[0]

    @property
    def gives(self) -> Any:
        """What it gives."""
        return places(self.inner)[1]

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """Of the selected part together with the rest, of which what held before still holds."""
        return _together([guarantee_after(before, self.inner), before])

    def after(self, before: Guarantee, giver: str, /) -> Masked[A, B]:
        """With the stage within told the same."""
        return replace(self, inner=told(self.inner, before, giver))

    def init(self, params: Tensors, /) -> State:
        """That of the selected parameters."""
        return self.inner.init({name: params[name] for name in self._names(params)})

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Any, State]:
        """The stage on the selected part, the rest as it is."""
        return _on(self.inner, self._names(_values(self, grads)), grads, state, params, how)

    def flush(self, state: State, params: Tensors | None = None, /) -> tuple[Any, State]:
        """What waits within."""
        return self.flushed(state, params, How())

    def flushed(self, state: State, params: Tensors | None, how: How, /) -> tuple[Any, State]:
        """The same, as part of a chain."""
        return _flushed(self.inner, state, params, how)

    def _names(self, values: Mapping[str, Tensor]) -> list[str]:
        return selected(repr(self), "select", values, self.select)

    def __repr__(self) -> str:
        return f"masked({_shown(self.inner)}, select={self.select!r})"


def masked(stage: Transformation[A, B], select: Selection) -> Masked[A, B]:
    """A stage on some of the parameters; what is not selected stays as it is.

    Of per-sample gradients the selected part is clipped, mapped or scaled by its own norms; of gradients the rest
    passes; behind a rule what is not selected has no update, and `gf.apply_updates` leaves it alone.

    Args:
        stage: gives what it takes, or is a rule. A per-sample stage must leave losses, weights and samples as they are.
        select: which parameters: a regex (`re.fullmatch`), exact names, or a predicate(name, tensor), whose tensor is
            a parameter in `init` and a gradient in `update`.

    Raises:
        TypeError: `stage` is no stage, or a reduction; `select` is something else.
        ValueError: in `init` and `update`: nothing is selected; a per-sample stage changed losses, weights or samples.

    Example:
        >>> import torch, gradfunc as gf
        >>> step = gf.masked(gf.scale(0.5), r".*bias")
        >>> step.update({"weight": torch.tensor([2.0]), "bias": torch.tensor([2.0])}, ())[0]
        {'weight': tensor([2.]), 'bias': tensor([1.])}
    """
    call = "gf.masked(stage, select)"
    _check_stage(call, stage)
    check_selection(call, "select", select)
    takes, gives = places(stage)
    if takes is PerSampleGrads and gives is not None and gives is not takes:
        do = "Reduce first, or give every part a stage of its own: gf.partition."
        raise TypeError(
            message(call, got=f"{name_of(stage)}, a reduction", expected="a stage that gives what it takes", do=do)
        )
    return Masked(stage, select)


@dataclass(frozen=True, repr=False)
class Partition(Stage[A, B]):
    """Made by `gf.partition`, which has the meanings."""

    stages: Mapping[str, Transformation[A, B]]
    labels: Labels
    fresh = False

    @property
    def name(self) -> str:
        """One for all parts."""
        return "partition"

    @property
    def transparent(self) -> bool:  # type: ignore[override]  # a constant of other stages
        """If all parts are."""
        return all(map(transparent, self.stages.values()))

    @property
    def acts_on(self) -> tuple[Any, ...]:  # type: ignore[override]  # a constant of other stages
        """What all parts act on."""
        each = [stage.acts_on for stage in self.stages.values() if isinstance(stage, AnyStage)]
        return tuple(one for one in each[0] if all(one in others for others in each)) if each else ()

    @property
    def takes(self) -> Any:
        """What all parts take."""
        return self._place(0)

    @property
    def gives(self) -> Any:
        """What all parts give."""
        return self._place(1)

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """Of all parts together."""
        return _together([guarantee_after(before, stage) for stage in self.stages.values()])

    def after(self, before: Guarantee, giver: str, /) -> Partition[A, B]:
        """With the stages within told the same."""
        return replace(self, stages={label: told(stage, before, giver) for label, stage in self.stages.items()})

    def init(self, params: Tensors, /) -> State:
        """`{label: state}` of the parameters with that label."""
        groups = self._groups(params)
        return {k: stage.init({name: params[name] for name in groups[k]}) for k, stage in self.stages.items()}

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Any, State]:
        """Every part through its stage, and together again."""
        values, states = _values(self, grads), dict(state)
        outs = []
        for label, names in self._groups(values).items():
            stage = self.stages[label]
            if isinstance(grads, PerSampleGrads) and self.gives in (PerSampleGrads, None) and names:
                grads, states[label] = _on(stage, names, grads, states[label], params, how)
            elif names:
                out, states[label] = _only(stage, names, grads, states[label], params, how)
                outs.append(out)
        return (self._joined(list(values), outs) if outs else grads), states

    def flush(self, state: State, params: Tensors | None = None, /) -> tuple[Any, State]:
        """What waits in the parts."""
        return self.flushed(state, params, How())

    def flushed(self, state: State, params: Tensors | None, how: How, /) -> tuple[Any, State]:
        """The same, as part of a chain."""
        states, outs = dict(state), []
        for label, stage in self.stages.items():
            out, states[label] = _flushed(stage, states[label], params, how)
            outs.append(out)
        if all(out is None for out in outs):
            return None, states
        return self._joined([name for out in outs if out is not None for name in out], outs), states

    def _joined(self, order: list[str], outs: list[Any]) -> Any:
        if all(out is None for out in outs):
            return None
        if any(out is None for out in outs):
            got, expected = "parts of which some wait for more batches and some do not", "parts that are ready together"
            do = "Accumulate around the partition: gf.accumulate(...) >> gf.partition(...)."
            raise ValueError(message(f"{self!r}.update(grads, state, params)", got=got, expected=expected, do=do))
        return merged(outs, order)

    def _groups(self, values: Mapping[str, Tensor]) -> dict[str, list[str]]:
        call = f"{self!r}: labels"
        labels = self.labels
        if callable(labels):
            found = {name: labels(name, value) for name, value in values.items()}
        else:
            found = {name: labels[key] for name, key in by_rules(call, "labels", values, labels).items()}
        for name in values:
            if found.get(name) not in self.stages:
                got = f"label {found[name]!r} for '{name}'" if name in found else f"no label for '{name}'"
                raise ValueError(message(call, got=got, expected=f"one of {list(self.stages)}"))
        return {label: [name for name in values if found[name] == label] for label in self.stages}

    def _place(self, which: int) -> Any:
        return next((p for s in self.stages.values() if (p := places(s)[which]) is not None), None)

    def __repr__(self) -> str:
        stages = ", ".join(f"{label!r}: {_shown(stage)}" for label, stage in self.stages.items())
        return f"partition({{{stages}}}, {shown(self.labels)})"


def partition(stages: Mapping[str, Transformation[A, B]], labels: Labels) -> Partition[A, B]:
    """Groups of parameters, each with a stage of its own: another learning rate, another clip, another rule.

    Every group is what its stage would see if there were no other parameters; results are put together again.

    Args:
        stages: `{label: stage}`, all of which take the same and give the same; `gf.identity()` leaves a group
            of gradients or rows alone (beside rules it is refused: `gf.masked` lets parameters stay as they are).
        labels: for each parameter, its label: `{regex or name: label}` (a name that is spelt out comes first, then the
            first regex that matches all of it, `re.fullmatch`), or a function of (name, tensor).

    Raises:
        TypeError: something that is no stage; stages that take or give different things.
        ValueError: in `init` and `update`: a parameter without a label, or with an unknown one; a regex that matches
            nothing; parts of which some wait for more batches (`gf.accumulate`) and some do not.

    Example:
        >>> import torch, gradfunc as gf
        >>> step = gf.partition({"slow": gf.sgd(0.01), "fast": gf.sgd(1.0)}, {r".*bias": "fast", r".*": "slow"})
        >>> params = {"weight": torch.ones(1), "bias": torch.ones(1)}
        >>> step.update(params, step.init(params), params)[0]
        {'weight': tensor([-0.0100]), 'bias': tensor([-1.])}
    """
    call = "gf.partition(stages, labels)"
    if not isinstance(stages, Mapping) or not stages:
        raise TypeError(message(call, got=f"stages={stages!r}", expected="a dict {label: stage}"))
    if not (isinstance(labels, Mapping) or callable(labels)):
        expected = "a dict {regex: label}, or a function of (name, tensor)"
        raise TypeError(message(call, got=f"labels={labels!r}", expected=expected))
    for stage in stages.values():
        _check_stage(call, stage)
    for which, verb in enumerate(("takes", "gives")):
        known = {label: place for label, stage in stages.items() if (place := places(stage)[which]) is not None}
        if len(set(known.values())) > 1:
            got = ", ".join(f"'{label}', which {verb} {place.__name__}" for label, place in known.items())
            raise TypeError(message(call, got=got, expected=f"stages that all {verb.rstrip('s')} the same"))
    whole = Partition(dict(stages), labels)
    same = [label for label, stage in stages.items() if transparent(stage)]
    if same and whole.takes is not whole.gives:
        got = f"'{same[0]}', which gives what it takes, beside stages that give {whole.gives.__name__}"
        do = "For parameters that stay as they are behind a rule: gf.masked(rule, select)."
        raise TypeError(message(call, got=got, expected="stages that all give the same", do=do))
    return whole


def _on(stage: Any, names: list[str], grads: Any, state: State, params: Any, how: How) -> tuple[Any, State]:
    """A stage on the part of these names; the rest as it is."""
    how = replace(how, lands=False)
    if isinstance(grads, PerSampleGrads):
        out, state = ran(stage, grads._focused(tuple(names)), state, _part(params, names), how)
        if not isinstance(out, PerSampleGrads):
            call, got = f"masked({name_of(stage)}).update(g, state)", kind_of(out)
            raise TypeError(message(call, got=f"{got} from the stage", expected="per-sample gradients"))
        if not out._live and (out._losses is not grads._losses or out._weights is not grads._weights):
            got = f"other samples, losses or weights from {name_of(stage)}"
            expected = "a stage that changes gradients alone, since the other parameters stay as they are"
            call = f"masked({name_of(stage)}).update(g, state)"
            raise ValueError(message(call, got=got, expected=expected, do="Put it before the masked stage."))
        return out._unfocused(grads.names), state
    out, state = _only(stage, names, grads, state, params, how)
    if out is None or places(stage)[1] is Updates:
        return out, state
    return merged([grads, out], list(grads)), state


def _only(stage: Any, names: list[str], grads: Any, state: State, params: Any, how: How) -> tuple[Any, State]:
    """A stage on the part of these names alone."""
    how = replace(how, lands=False)
    if isinstance(grads, PerSampleGrads):
        part: Any = grads._focused(tuple(names))
    else:
        part = {name: grads[name] for name in names}
    return ran(stage, part, state, _part(params, names), how)


def _part(params: Tensors | None, names: list[str]) -> Tensors | None:
    return None if params is None else {name: params[name] for name in names if name in params}


def _flushed(stage: Any, state: State, params: Tensors | None, how: How) -> tuple[Any, State]:
    return stage.flushed(state, params, how) if isinstance(stage, AnyStage) else (None, state)


def _values(stage: AnyStage, grads: Any) -> Mapping[str, Tensor]:
    if isinstance(grads, PerSampleGrads):
        return {name: grads._shapes[name] for name in grads.names}
    if isinstance(grads, dict):
        return grads
    call = f"{stage!r}.update(grads, state)"
    raise TypeError(message(call, got=kind_of(grads), expected="per-sample gradients, gradients or updates"))


def _together(parts: list[Guarantee]) -> Guarantee:
    """Of parts whose squared norms add up; nothing where they are bounded in different units."""
    if len({part.per_unit_weight for part in parts if part.bound is not None}) > 1:
        return NOTHING
    moved = [
        _root([getattr(part.sensitivity, kind) for part in parts]) for kind in ("add_remove", "replace_one", "over_n")
    ]
    return Guarantee(
        bound=_root([part.bound for part in parts]),
        per_unit_weight=any(part.per_unit_weight for part in parts),
        per_sample_independent=all(part.per_sample_independent for part in parts),
        sensitivity=Sensitivity(*moved),
        learns=any(part.learns for part in parts),
    )


def _root(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.hypot(*known) if len(known) == len(values) else None


def _check_stage(call: str, stage: object) -> None:
    if not isinstance(stage, Transformation):
        do = "A stage has init(params) and update(grads, state, params)."
        raise TypeError(message(call, got=kind_of(stage), expected="a stage", do=do))


def _shown(stage: Any) -> str:
    return repr(stage) if isinstance(stage, AnyStage) else name_of(stage)
