"""Where a step met its first number that is not finite: sample, parameters, operation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .._per_sample import PerSampleGrads, PerSampleGradsFunction
from .._tree import Tensors, rows_of, tensors_of

MOST = 8  # samples and parameters that a reason names


@dataclass(frozen=True)
class Nonfinite:
    """What was not finite, and where it began.

    Attributes:
        what: "loss", "gradient", or "parameters" where both were finite and the update was not.
        samples: which samples of the data (of the batch, where the data do not say), at most eight.
        parameters: whose gradient, or which after the update, at most eight.
        operation: the first operation of the first such sample whose result was not finite and whose inputs were,
            such as "aten.log"; "" where none is.
        backward: whether that was in the backward pass.
        given: whether a tensor of that sample was not finite as it came.
    """

    what: str
    samples: tuple[int, ...] = ()
    parameters: tuple[str, ...] = ()
    operation: str = ""
    backward: bool = False
    given: bool = False

    def __str__(self) -> str:
        text = {"loss": "a loss", "gradient": "a gradient", "parameters": "an update"}[self.what] + " is not finite"
        if self.samples:
            text += f"; samples {', '.join(map(str, self.samples))}"
        if self.parameters:
            text += f"; parameters {', '.join(self.parameters)}"
        if self.given:
            text += "; the sample itself is not finite"
        if self.operation:
            text += f"; first in {self.operation} of the {'backward' if self.backward else 'forward'} pass"
        return text


def find(
    f: PerSampleGradsFunction,
    params: Tensors,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    index: Tensor | None,
    step: int,
    after: Tensors,
) -> Nonfinite | None:
    """The reason why a step on this batch gave, or would give, the parameters `after`; None if all is finite."""
    g = f.at(step, None if f.options.batched else index)(params, *args, **kwargs)
    bad = ~g.losses.isfinite()
    what = "loss"
    if not bool(bad.any()):
        bad, what = ~g.norms().isfinite(), "gradient"
    if not bool(bad.any()):
        broken = [name for name, value in after.items() if not bool(value.isfinite().all())]
        return Nonfinite("parameters", (), tuple(broken[:MOST])) if broken else None
    positions = bad.nonzero()[:, 0].cpu()
    samples = positions if index is None else index[positions]
    first = positions[:1]
    given = not f.options.batched and not _all_finite(rows_of((args, kwargs), first))
    operation, backward = _operation(f, params, args, kwargs, index, step, first)
    named = tuple(samples[:MOST].tolist())
    return Nonfinite(what, named, _parameters(g, positions), operation, backward, given)


def _parameters(g: PerSampleGrads, positions: Tensor) -> tuple[str, ...]:
    norms = g.norms(per_parameter=True)
    return tuple(name for name, norm in norms.items() if not bool(norm.cpu()[positions].isfinite().all()))[:MOST]


def _operation(
    f: PerSampleGradsFunction,
    params: Tensors,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    index: Tensor | None,
    step: int,
    position: Tensor,
) -> tuple[str, bool]:
    """The first of sample `position`, run alone: by one autograd call, so that each operation is the sample's."""
    alone = dataclasses.replace(f.unverified(), options=dataclasses.replace(f.options, engine="loop", verify=False))
    watch = _First()
    try:
        if f.options.batched:
            with watch:
                alone.at(step)(params, *args, **kwargs)
        else:
            ids = None if index is None else index[position]
            args, kwargs = rows_of((args, kwargs), position)
            with watch:
                alone.at(step, ids)(params, *args, **kwargs)
    except Exception:  # the reason is found already; this adds to it what can be had
        return watch.name, watch.backward
    return watch.name, watch.backward


class _First(TorchDispatchMode):
    """Notes the first operation that makes a number that is not finite of finite ones."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.name, self.backward = "", False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # as torch calls it
        out = func(*args, **(kwargs or {}))
        if not self.name and not _all_finite(out) and _all_finite((args, kwargs)):
            self.name = str(func).removesuffix(".default")
            self.backward = torch._C._current_graph_task_id() != -1
        return out


def _all_finite(tree: Any) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors_of(tree) if t.is_floating_point() and t.numel())
