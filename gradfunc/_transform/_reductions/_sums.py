"""The sum and the mean of rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from ..._errors import one_of
from ..._per_sample import PerSampleGrads
from ..._tree import Tensors
from ..._weights import ratio, total
from .._chain import Stage
from .._guarantee import SAMPLES, Guarantee, sensitivity
from .._numbers import POSITIVE, check_number
from .._protocol import Grads, State
from .._said import Facts
from .._stage import How, check_rows


@dataclass(frozen=True, repr=False)
class Reduction(Stage[PerSampleGrads, Grads]):
    """The sum of the rows, or that over their total weight, or over a number. Made by `gf.sum` and `gf.mean`.

    Attributes:
        averaged: whether the sum is divided.
        denominator: by which number; None for the total weight.
        on_zero_weight: what a mean does with a total weight of 0.
    """

    averaged: bool
    denominator: float | None = None
    on_zero_weight: str = "raise"
    takes, gives = PerSampleGrads, Grads

    @property
    def name(self) -> str:
        """ "sum" or "mean"."""
        return "mean" if self.averaged else "sum"

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """How far one sample can move the result."""
        return Guarantee(sensitivity=sensitivity(before, self.denominator if self.averaged else 1.0))

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Grads, State]:
        """The one place where a chain sums rows."""
        g = check_rows(self, grads)
        if how.said is not None:
            how.say(self.name, partial(_facts, g.weights))
        return Grads(self.reduced(g)), state

    def reduced(self, g: PerSampleGrads) -> Tensors:
        """The result."""
        if not self.averaged:
            return g.sum()
        if self.denominator is None:
            return g.mean(on_zero_weight=self.on_zero_weight)
        dtypes = {name: like.dtype for name, like in g._shapes.items()}
        return {name: (value / self.denominator).to(dtypes[name]) for name, value in g.sum(wide=True).items()}

    def of_totals(self, call: str, sums: Tensors, weight: Tensor) -> Tensors:
        """The result in the dtype of these sums of all rows, whose weights sum to `weight`."""
        if not self.averaged:
            return dict(sums)
        if self.denominator is None:
            return ratio(call, dict(sums), weight, self.on_zero_weight)
        return {name: value / self.denominator for name, value in sums.items()}

    def __repr__(self) -> str:
        given = [] if self.denominator is None else [f"denominator={self.denominator!r}"]
        given += [] if self.on_zero_weight == "raise" else [f"on_zero_weight={self.on_zero_weight!r}"]
        return f"{self.name}({', '.join(given)})"


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


def mean(*, denominator: float | None = None, on_zero_weight: str = "raise") -> Reduction:
    """The sum of the rows over their total weight, divided once: a stage from per-sample gradients to gradients.

    The total weight is data, so a bound on the rows bounds what one sample can move it by only by a number that
    depends on the batch: 2C/n for n samples of weight 1 and norms up to C. `guarantee().sensitivity.over_n` reports 2C.

    Args:
        denominator: D > 0, fixed beforehand, in place of the total weight: the expected batch size of a random sampler.
            What one sample can move the mean by is then known: C/D.
        on_zero_weight: for a total weight of 0, "raise", or "zero" for exact zeros.

    Raises:
        TypeError, ValueError: a denominator that is no finite number > 0; another `on_zero_weight`; in an update, a
            total weight of 0 where no denominator was given.

    Example:
        >>> import torch, gradfunc as gf
        >>> p = {"w": torch.ones(2)}
        >>> g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())(p, torch.tensor([[3.0, 4.0], [0.0, 0.5]]))
        >>> gf.mean().update(g, gf.mean().init(p))[0]["w"]
        tensor([1.5000, 2.2500])
    """
    one_of("gf.mean(on_zero_weight=...)", "on_zero_weight", on_zero_weight, ("raise", "zero"))
    if denominator is not None:
        check_number("gf.mean(denominator=...)", "denominator", denominator, POSITIVE, schedule=False)
        denominator = float(denominator)
    return Reduction(averaged=True, denominator=denominator, on_zero_weight=on_zero_weight)


def _facts(weights: Tensor) -> Facts:
    return {"samples": len(weights), "weight": total(weights)}
