"""Reductions: per-sample gradients to gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .._errors import kind_of, message, one_of
from .._per_sample import PerSampleGrads
from .._tree import Tensors
from .._weights import total
from ._base import Grads, Say, Stage, State
from ._guarantee import SAMPLES, Guarantee, sensitivity


@dataclass(frozen=True, repr=False)
class Reduction(Stage[PerSampleGrads, Grads]):
    """The sum of the rows, or that over their total weight. It remembers nothing.

    Attributes:
        averaged: whether the sum is divided.
        on_zero_weight: what a mean does with a total weight of 0.
    """

    averaged: bool
    on_zero_weight: str = "raise"

    @property
    def name(self) -> str:
        """ "sum" or "mean"."""
        return "mean" if self.averaged else "sum"

    @property
    def takes(self) -> Any:
        """Rows."""
        return PerSampleGrads

    @property
    def gives(self) -> Any:
        """`{name: tensor}`."""
        return Grads

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """How far one sample can move the result."""
        return Guarantee(sensitivity=sensitivity(before, None if self.averaged else 1.0))

    def init(self, params: Tensors, /) -> State:
        """Nothing."""
        return ()

    def telling(self, grads: PerSampleGrads, state: State, params: Tensors | None, /) -> tuple[Grads, State, Say]:
        """The one place where a chain sums rows."""
        if not isinstance(grads, PerSampleGrads):
            call = f"{self!r}.update(g, state)"
            raise TypeError(message(call, got=kind_of(grads), expected="per-sample gradients"))
        reduced = grads.mean(on_zero_weight=self.on_zero_weight) if self.averaged else grads.sum()
        weights = grads.weights
        return Grads(reduced), state, lambda: ((self.name, _facts(weights)),)

    def __repr__(self) -> str:
        given = "" if self.on_zero_weight == "raise" else f"on_zero_weight={self.on_zero_weight!r}"
        return f"{self.name}({given})"


def sum() -> Reduction:
    """The sum of the rows: a stage from per-sample gradients to gradients.

    What one sample can move it by is in its guarantee: after `gf.clip_per_sample(C)`, C when one is added or left out,
    2C when one is replaced.

    Example:
        >>> import torch, gradfunc as gf
        >>> p = {"w": torch.ones(2)}
        >>> g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())(p, torch.tensor([[3.0, 4.0], [0.0, 0.5]]))
        >>> step = gf.clip_per_sample(1.0) >> gf.sum()
        >>> step.update(g, step.init(p))[0]["w"]
        tensor([0.6000, 1.3000])
        >>> step.guarantee().sensitivity.add_remove
        1.0
    """
    return Reduction(averaged=False)


def mean(*, on_zero_weight: str = "raise") -> Reduction:
    """The sum of the rows over their total weight, divided once: a stage from per-sample gradients to gradients.

    The total weight is data, so a bound on the rows bounds what one sample can move it by only by a number that
    depends on the batch: 2C/n for n samples of weight 1 and norms up to C. `guarantee().sensitivity.over_n` reports 2C.

    Args:
        on_zero_weight: for a total weight of 0, "raise", or "zero" for exact zeros.

    Raises:
        ValueError: another `on_zero_weight`; in an update, a total weight of 0.

    Example:
        >>> import torch, gradfunc as gf
        >>> p = {"w": torch.ones(2)}
        >>> g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())(p, torch.tensor([[3.0, 4.0], [0.0, 0.5]]))
        >>> gf.mean().update(g, gf.mean().init(p))[0]["w"]
        tensor([1.5000, 2.2500])
    """
    one_of("gf.mean(on_zero_weight=...)", "on_zero_weight", on_zero_weight, ("raise", "zero"))
    return Reduction(averaged=True, on_zero_weight=on_zero_weight)


def _facts(weights: Tensor) -> dict[str, Tensor | float]:
    return {"samples": len(weights), "weight": total(weights)}
