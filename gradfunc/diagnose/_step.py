"""What an update moved, layer by layer, and what it did not, and why."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._errors import kind_of, message
from .._report import Report, Table, jsonable, number
from .._transform import StepReport as Said
from .._tree import layer_of

FROZEN = "frozen"


@dataclass(frozen=True)
class Unmoved:
    """A parameter of which no entry moved, and why, as far as what was given tells."""

    parameter: str
    why: str


@dataclass(frozen=True)
class MovedLayer:
    """What an update did to one layer.

    Attributes:
        layer: the module that holds the parameters ("fc1" of "fc1.weight"), or the parameter where that is the model.
        parameters: their names.
        entries: how many numbers they hold.
        weight: root mean square of the weights before.
        update: root mean square of what was added.
        ratio: update / weight; None where all weights are 0.
        moved: share of entries that are not what they were.
        lost: share of entries whose update is not 0 and that stayed what they were, as happens below half an ulp; None
            where updates are not known.
        gradient: root mean square of the gradients; None where they are not known.
        nonfinite: how many entries are NaN or infinite after the update.
        unmoved: the parameters that did not move at all.
    """

    layer: str
    parameters: tuple[str, ...]
    entries: int
    weight: float
    update: float
    ratio: float | None
    moved: float
    lost: float | None
    gradient: float | None
    nonfinite: int
    unmoved: tuple[Unmoved, ...]


@dataclass(frozen=True)
class MovedReport(Report):
    """What `gf.diagnose.step_report` found.

    Attributes:
        layers: in the order of the parameters.
        factors: `(stage, fact, number)` of every clip factor that the chain said.
    """

    layers: tuple[MovedLayer, ...]
    factors: tuple[tuple[str, str, float], ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every parameter that is not frozen moved, and all are finite."""
        stuck = any(one.why != FROZEN for layer in self.layers for one in layer.unmoved)
        return not stuck and not any(layer.nonfinite for layer in self.layers)

    @property
    def unmoved(self) -> dict[str, str]:
        """`{parameter: why}` of all that did not move."""
        return {one.parameter: one.why for layer in self.layers for one in layer.unmoved}

    def parts(self) -> Sequence[Table | str]:
        """Layers; what did not move; what is not finite; clip factors."""
        rows = [
            [
                layer.layer,
                number(layer.weight),
                number(layer.update),
                number(layer.ratio),
                f"{layer.moved:.3g}",
                "-" if layer.lost is None else f"{layer.lost:.3g}",
                number(layer.gradient),
            ]
            for layer in self.layers
        ]
        heads = ["layer", "weight", "update", "ratio", "moved", "lost", "gradient"]
        note = "root mean squares; ratio: update / weight; moved, lost: shares of entries; lost: rounded away."
        parts: list[Table | str] = [Table("One update, layer by layer", heads, rows, note)]
        if self.unmoved:
            parts.append(Table("Did not move", ["parameter", "why"], [list(item) for item in self.unmoved.items()]))
        if any(layer.nonfinite for layer in self.layers):
            broken = [
                [layer.layer, f"{layer.nonfinite} of {layer.entries}"] for layer in self.layers if layer.nonfinite
            ]
            parts.append(Table("Not finite after the update", ["layer", "entries"], broken))
        if self.factors:
            facts = [[stage, fact, f"{value:.4g}"] for stage, fact, value in self.factors]
            parts.append(Table("Clip factors", ["stage", "fact", "value"], facts))
        return parts

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON-ready values."""
        out: dict[str, Any] = jsonable({"ok": self.ok, **dataclasses.asdict(self)})
        return out


def step_report(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    grads: Mapping[str, Tensor | None] | None = None,
    *,
    updates: Mapping[str, Tensor] | None = None,
    frozen: Collection[str] = (),
    report: Said | None = None,
) -> MovedReport:
    """What an optimiser's step moved: update / weight of each layer, entries that stayed, and why parameters did.

    All statistics are taken in float64. `updates` tells apart what a missing gradient, a rate of 0 and rounding do:
    adding less than half an ulp (unit in the last place) of a weight leaves it as it was.

    Args:
        before: parameters before the step, `{name: tensor}`; copies, where the step writes in place.
        after: after it; the same names and shapes.
        grads: the gradients of the step; a name that is missing, or None, had none.
        updates: what was added, as a chain's `update` gives it.
        frozen: names that are not meant to move.
        report: what the chain said (`update_with_report`), for its clip factors.

    Raises:
        TypeError: not mappings of tensors.
        ValueError: names or shapes that differ.

    Example:
        >>> import torch, gradfunc as gf
        >>> before = {"fc.weight": torch.full((2, 2), 4.0), "fc.bias": torch.ones(2), "head.weight": torch.ones(2)}
        >>> grads = {"fc.weight": torch.ones(2, 2), "fc.bias": torch.full((2,), 1e-7), "head.weight": None}
        >>> updates = {name: -0.1 * grad for name, grad in grads.items() if grad is not None}
        >>> after = {name: value + updates.get(name, 0) for name, value in before.items()}
        >>> moved = gf.diagnose.step_report(before, after, grads, updates=updates)
        >>> moved.unmoved
        {'fc.bias': 'every update is below half an ulp of its weight', 'head.weight': 'no gradient'}
        >>> round(moved.layers[0].ratio, 4), round(moved.layers[0].lost, 3)
        (0.0246, 0.333)
    """
    call = "gf.diagnose.step_report(before, after)"
    _check(call, before, after, grads, updates)
    layers: dict[str, list[str]] = {}
    for name in before:
        layers.setdefault(layer_of(name), []).append(name)
    with torch.no_grad():
        rows = tuple(_layer(key, names, before, after, grads, updates, frozen) for key, names in layers.items())
    stages = () if report is None else report.stages
    factors = [(stage, fact, float(value)) for stage, facts in stages for fact, value in facts.items()]
    return MovedReport(rows, tuple(factor for factor in factors if "factor" in factor[1] or factor[1] == "clipped"))


def _layer(
    key: str,
    names: list[str],
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    grads: Mapping[str, Tensor | None] | None,
    updates: Mapping[str, Tensor] | None,
    frozen: Collection[str],
) -> MovedLayer:
    entries = sum(before[name].numel() for name in names)
    still = {name: after[name] == before[name] for name in names}
    weight = rms([before[name] for name in names])
    update = rms([_wide(after[name]) - _wide(before[name]) for name in names])
    lost, gradient = None, None
    if updates is not None:
        added = {name: updates[name] for name in names if updates.get(name) is not None}
        lost = sum(int(((value != 0) & still[name]).sum()) for name, value in added.items()) / max(entries, 1)
    if grads is not None:
        gradient = rms([grad for name in names if (grad := grads.get(name)) is not None])
    return MovedLayer(
        layer=key,
        parameters=tuple(names),
        entries=entries,
        weight=weight,
        update=update,
        ratio=update / weight if weight else None,
        moved=1 - sum(int(same.sum()) for same in still.values()) / max(entries, 1),
        lost=lost,
        gradient=gradient,
        nonfinite=sum(int((~after[name].isfinite()).sum()) for name in names),
        unmoved=tuple(
            Unmoved(name, _why(name, grads, updates, frozen))
            for name in names
            if after[name].numel() and bool(still[name].all())
        ),
    )


def _why(
    name: str,
    grads: Mapping[str, Tensor | None] | None,
    updates: Mapping[str, Tensor] | None,
    frozen: Collection[str],
) -> str:
    if name in frozen:
        return FROZEN
    if grads is not None:
        grad = grads.get(name)
        if grad is None:
            return "no gradient"
        if not bool(grad.isfinite().all()):
            return "gradient not finite"
        if not bool(grad.any()):
            return "zero gradient"
    if updates is None:
        return "rate 0, or updates below half an ulp" if grads is not None else "unknown without grads"
    update = updates.get(name)
    if update is not None and bool(update.any()):
        return "every update is below half an ulp of its weight"
    return "rate 0" if grads is not None else "no update"


def rms(tensors: Sequence[Tensor]) -> float:
    """Root mean square of all entries, in float64; 0 of none."""
    count = sum(tensor.numel() for tensor in tensors)
    squares = sum(float(_wide(tensor).abs().square().sum()) for tensor in tensors)
    return math.sqrt(squares / count) if count else 0.0


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _check(call: str, before: Any, after: Any, grads: Any, updates: Any) -> None:
    for name, given in (("before", before), ("after", after), ("grads", grads), ("updates", updates)):
        if given is None and name in ("grads", "updates"):
            continue
        if not isinstance(given, Mapping):
            raise TypeError(message(call, got=f"{kind_of(given)} as {name}", expected="{name: tensor}"))
        odd = [k for k, v in given.items() if not isinstance(v, Tensor) and not (v is None and name == "grads")]
        if odd:
            raise TypeError(message(call, got=f"{kind_of(given[odd[0]])} as {name}[{odd[0]!r}]", expected="a tensor"))
        strange = sorted(given.keys() - before.keys()) or sorted(before.keys() - after.keys())
        if strange and name != "before":
            raise ValueError(
                message(call, got=f"{strange[0]!r} in one of before and {name}", expected="the same names")
            )
        for key, value in given.items():
            if value is not None and value.shape != before[key].shape:
                got = f"{name}[{key!r}] of shape {list(value.shape)}"
                raise ValueError(message(call, got=got, expected=f"{list(before[key].shape)}, as before"))
