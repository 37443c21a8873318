"""Adam with second moments of the samples' own gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..._errors import message, one_of
from ..._per_sample import PerSampleGrads
from ..._tree import Tensors, wide, zeros
from ..._weights import ratio, total
from .._chain import Stage
from .._numbers import NOT_NEGATIVE, Number, at, check_number, count_of, fixed
from .._protocol import State, Updates
from .._stage import How, check_rows, picked
from ._named import spelt
from ._scale_by_adam import averages, check_adam, direction
from ._slots import put, typed


@dataclass(frozen=True, repr=False)
class AdamPerSample(Stage[PerSampleGrads, Updates]):
    """Made by `gf.adam_per_sample`, which has the meanings."""

    lr: Number
    betas: tuple[float, float]
    eps: float
    second_moment: str
    name = "adam_per_sample"
    takes, gives = PerSampleGrads, Updates

    def init(self, params: Tensors, /) -> State:
        """Zeros."""
        return {"count": 0, "exp_avg": zeros(params), "exp_avg_sq": zeros(params)}

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Updates, State]:
        """Two sums over the rows, and Adam's direction of them."""
        g, count = check_rows(self, grads), count_of(state) + 1
        kept = [picked(self, state[key], g.names) for key in ("exp_avg", "exp_avg_sq")]
        unit, weights = g._per_unit(), g.weights
        weight = total(weights)
        # in the accumulation dtype: of a mean rounded to a half type, s - m^2 would be rounding
        if float(weight.detach()) == 0:
            got, expected = "a total weight of 0", "at least one sample with weight > 0"
            raise ValueError(message(f"{self!r}.update(g, state)", got=got, expected=expected))
        means = ratio(f"{self!r}.update(g, state)", g.sum(wide=True), weight, "raise")
        sums = unit._mapped(squares).weighted_sum(weights, wide=True)
        first = typed(means.values(), kept[0])
        second = typed([value / weight.to(value.device, value.dtype) for value in sums.values()], kept[1])
        if self.second_moment == "variance":
            second = [(v - m * m).clamp(min=0) for v, m in zip(second, first, strict=True)]
        first = averages(kept[0], first, self.betas[0])
        second = averages(kept[1], second, self.betas[1])
        factor = -at(repr(self), "lr", self.lr, NOT_NEGATIVE, state)
        out = typed(direction(first, second, self.betas, self.eps, count, factor), [g._shapes[name] for name in means])
        state = {
            **state,
            "count": count,
            "exp_avg": put(state["exp_avg"], g.names, first),
            "exp_avg_sq": put(state["exp_avg_sq"], g.names, second),
        }
        return Updates(dict(zip(means, out, strict=True))), state

    def __repr__(self) -> str:
        given = {"betas": self.betas, "eps": self.eps, "second_moment": self.second_moment}
        defaults = {"betas": (0.9, 0.999), "eps": 1e-8, "second_moment": "squares"}
        return spelt(self.name, self.lr, given, defaults)


def adam_per_sample(
    lr: Number = 1e-3,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    second_moment: str = "squares",
) -> AdamPerSample:
    """Adam whose second moment is of the samples' gradients, not of their mean: a rule from rows to updates.

    With `u_i = g_i / w_i`, mean `m = sum w_i u_i / sum w_i` and mean square `s = sum w_i u_i^2 / sum w_i`, entry by
    entry, Adam's running mean of squares takes `s` ("squares") or `s - m^2` ("variance") in the place of `m^2`; all
    else is as in `gf.adam`. By `s = m^2 + variance`, "squares" steps shorter where samples disagree.

    Source and finding: Roulet and Agarwala 2025, "Per-example gradients: a new frontier for understanding and improving
    optimizers", arXiv 2510.00236, which studies such preconditioners and reports that optimization is best served
    where the square of the mean dominates the preconditioner rather than the variance; so plain `gf.adam` is what to
    compare with, larger batches bring "squares" near it, and "variance" is the other extreme.

    The rows' squares are formed some samples or one parameter at a time and never held whole; where rows are computed
    in chunks this is a second pass over them. "variance" is a difference, taken at least in float32 and cut at 0: where
    samples agree to more digits than that precision has, it is rounding; with one sample it is 0, and eps alone
    divides.

    | batch                     | direction                                  |
    |---------------------------|--------------------------------------------|
    | one sample, "squares"     | as `gf.adam`                               |
    | one sample, "variance"    | running mean over eps: raise eps           |
    | a sample of weight 0      | as without it                              |
    | all weights 0             | ValueError                                 |

    Args:
        lr: the learning rate >= 0, or a schedule: a function from the count of updates before this one.
        betas: as of `gf.scale_by_adam`.
        eps: likewise.
        second_moment: "squares" or "variance".

    Raises:
        TypeError, ValueError: an argument of another type or range; in an update, a total weight of 0.

    Example:
        >>> import torch, gradfunc as gf
        >>> params = {"w": torch.zeros(1)}
        >>> g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())(params, torch.tensor([[3.0], [1.0]]))
        >>> step = gf.adam_per_sample(1.0)
        >>> step.update(g, step.init(params), params)[0]["w"]    # 2 over the root of 5
        tensor([-0.8944])
    """
    call = "gf.adam_per_sample(lr)"
    check_number(call, "lr", lr, NOT_NEGATIVE)
    check_adam(call, betas, eps)
    one_of(call, "second_moment", second_moment, ("squares", "variance"))
    return AdamPerSample(fixed(lr), (float(betas[0]), float(betas[1])), float(eps), second_moment)


def squares(values: Tensor) -> Tensor:
    """In the accumulation dtype: those of half types underflow, overflow or round."""
    return values.to(wide(values.dtype)).square()
