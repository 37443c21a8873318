"""Where a step met its first number that is not finite: sample, parameters, operation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .._nonfinite import Origin, Watch
from .._per_sample import PerSampleGrads, PerSampleGradsFunction
from .._tree import Tensors, rows_of
from ..diagnose._nonfinite import FAULTS, Fault, recognized

MOST = 8  # samples and parameters that a reason names


@dataclass(frozen=True)
class Nonfinite:
    """What was not finite, and where it began.

    Attributes:
        what: "loss", "gradient", or "parameters" where both were finite and the update was not.
        samples: which samples of the data (of the batch, where the data do not say), at most eight.
        parameters: whose gradient, or which after the update, at most eight.
        origin: what the first such sample's began with; None where that is not known.
        fault: what was recognised in it, with its safe form; see `gf.diagnose.FAULTS`.
    """

    what: str
    samples: tuple[int, ...] = ()
    parameters: tuple[str, ...] = ()
    origin: Origin | None = None
    fault: Fault | None = None

    @property
    def operation(self) -> str:
        """What made the number, such as "aten.log", or "aten.div.Tensor" in the derivative of a root."""
        return self.origin.kernel if self.origin else ""

    @property
    def backward(self) -> bool:
        """Whether that was in the backward pass."""
        return self.origin is not None and self.origin.backward

    @property
    def given(self) -> bool:
        """Whether the sample was not finite as it came."""
        return self.origin is not None and self.origin.given.startswith("the ")

    def __str__(self) -> str:
        text = {"loss": "a loss", "gradient": "a gradient", "parameters": "an update"}[self.what] + " is not finite"
        if self.samples:
            text += f"; samples {', '.join(map(str, self.samples))}"
        if self.parameters:
            text += f"; parameters {', '.join(self.parameters)}"
        if self.origin and self.origin.given:
            text += f"; {self.origin.given} {'itself ' if self.given else ''}is not finite"
        elif self.origin:
            text += f"; first in {self.origin}"
        if self.fault:
            text += f"; {self.fault.name}: {self.fault.why}; safe form: {self.fault.safe}"
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
    origin = _origin(f, params, args, kwargs, index, step, first, what)
    named = tuple(samples[:MOST].tolist())
    return Nonfinite(what, named, _parameters(g, positions), origin, recognized(origin, what == "gradient", FAULTS))


def _parameters(g: PerSampleGrads, positions: Tensor) -> tuple[str, ...]:
    norms = g.norms(per_parameter=True)
    return tuple(name for name, norm in norms.items() if not bool(norm.cpu()[positions].isfinite().all()))[:MOST]


def _origin(
    f: PerSampleGradsFunction,
    params: Tensors,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    index: Tensor | None,
    step: int,
    position: Tensor,
    what: str,
) -> Origin | None:
    """Where it began in sample `position`, run alone: by one autograd call, so that each operation is the sample's."""
    alone = dataclasses.replace(f.unverified(), options=dataclasses.replace(f.options, engine="loop", verify=False))
    ids, given = None, "the batch" if f.options.batched else "the sample"
    if not f.options.batched:
        ids = None if index is None else index[position]
        args, kwargs = rows_of((args, kwargs), position)
    named = {f"parameter '{name}'": value for name, value in params.items()}
    watch = Watch({**named, given: (args, kwargs)})
    try:
        with watch:
            g = alone.at(step, ids)(params, *args, **kwargs)
            results = [g.losses] if what == "loss" else list(g.sum().values())
    except Exception:  # the reason is found already; this adds to it what can be had
        return None
    return watch.origin(results)
