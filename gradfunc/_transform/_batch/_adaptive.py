"""Clips whose limit moves: with the size of the weights, with the norms of the steps before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..._errors import check_int, message, one_of
from ..._tree import Tensors
from .._chain import BatchStage
from .._guarantee import SAMPLES, Guarantee, times
from .._numbers import NOT_NEGATIVE, POSITIVE, SHARE, Number, Range, at, check_number, counted, counting, fixed, shown
from .._protocol import Grads, State
from .._stage import How, check_grads, check_params, gathered, picked
from ._clips import norm_facts, shown_policy
from ._norms import (
    POLICIES,
    measured,
    multiply,
    of_norms,
    parameter_norm,
    shrinking,
    unit_norms,
    zero_unless,
)

_AT_LEAST_ONE = Range("a number >= 1", lambda x: x >= 1)


@dataclass(frozen=True, repr=False)
class AdaptiveGradientClip(BatchStage):
    """Made by `gf.adaptive_gradient_clip`, which has the meanings."""

    clipping: Number
    eps: float
    nonfinite: str
    name = "adaptive_gradient_clip"

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """The projection onto a product of balls that the parameters fix: no two inputs leave farther apart."""
        return times(before, 1.0)

    def init(self, params: Tensors, /) -> State:
        """The count of updates, for a schedule."""
        return counting(self.clipping)

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Grads, State]:
        """A factor a unit."""
        call = f"{self!r}.update(grads, state, params)"
        clipping = at(call, "clipping", self.clipping, POSITIVE, state)
        values, weights = check_grads(self, grads), check_params(self, params)
        weights_of = [weight.detach() for weight in picked(self, weights, values)]
        out, norms = measured(call, values, how, self.nonfinite, unit_norms)
        factors = []
        for weight, norm in zip(weights_of, norms, strict=True):
            factors.append(shrinking(norm, clipping * unit_norms(weight).clamp(min=self.eps)))
        for value, factor in zip(out, factors, strict=True):
            value.mul_(factor.to(torch.promote_types(value.dtype, torch.float32)))
        if self.nonfinite == "skip":
            zero_unless(of_norms([parameter_norm(norm) for norm in norms]).isfinite(), out)
        how.say(self.name, lambda: {"clipped": _units_clipped(factors)})
        return gathered(values, out), counted(state)

    def __repr__(self) -> str:
        given = [shown(self.clipping)] + ([f"eps={self.eps!r}"] if self.eps != 1e-3 else [])
        return f"{self.name}({', '.join([*given, *shown_policy(self.nonfinite)])})"


def adaptive_gradient_clip(
    clipping: Number = 0.01, eps: float = 1e-3, *, nonfinite: str = "raise"
) -> AdaptiveGradientClip:
    """Clip each output unit's gradient at a share of that unit's weights: a stage on gradients.

    Unit i of a parameter W with gradient G is multiplied by `min(1, clipping max(|W_i|, eps) / |G_i|)` (Brock, De,
    Smith, Simonyan 2021, "High-Performance Large-Scale Image Recognition Without Normalization", section 4.1). A unit
    is an entry of the first dimension of a matrix or kernel, with all that leads to it; a vector or scalar is one unit.
    The paper leaves the last linear layer out: `gf.masked`. A stage that needs `params`.

    | unit                                | its gradient times                             |
    |-------------------------------------|------------------------------------------------|
    | gradient 0                          | 1                                              |
    | up to clipping max(`|W_i|`, eps)    | 1: stays, bit by bit                           |
    | above                               | clipping max(`|W_i|`, eps) / `|G_i|`           |
    | weights 0                           | as if their norm were eps                      |
    | norm inf or NaN                     | by `nonfinite`                                 |

    Args:
        clipping: above 0, or a schedule: a function from the count of updates before this one.
        eps: above 0: the least that counts as a norm of weights, so that what starts at 0 can leave it.
        nonfinite: "raise", which asks the device once a step, "skip", "zero" or "keep", as in `gf.clip_by_global_norm`.

    Raises:
        TypeError, ValueError: an option out of range; in an update, no `params`, or a norm that is not finite.

    Example:
        >>> import torch, gradfunc as gf
        >>> stage = gf.adaptive_gradient_clip(0.1)
        >>> w, g = {"w": torch.tensor([[3.0, 4.0], [0.0, 1.0]])}, {"w": torch.tensor([[3.0, 4.0], [0.0, 0.05]])}
        >>> stage.update(g, stage.init(w), w)[0]["w"]
        tensor([[0.3000, 0.4000],
                [0.0000, 0.0500]])
    """
    call = "gf.adaptive_gradient_clip(clipping, eps)"
    check_number(call, "clipping", clipping, POSITIVE)
    check_number(call, "eps", eps, POSITIVE, schedule=False)
    one_of(call, "nonfinite", nonfinite, POLICIES)
    return AdaptiveGradientClip(fixed(clipping), float(eps), nonfinite)


@dataclass(frozen=True, repr=False)
class ClipByEma(BatchStage):
    """Made by `gf.clip_by_ema`, which has the meanings."""

    factor: Number
    decay: float
    z_score: Number | None
    warmup: int
    nonfinite: str
    name = "clip_by_ema"

    def init(self, params: Tensors, /) -> State:
        """How many norms were seen, their mean and variance, in tensors; the count of updates, for a schedule."""
        some = next(iter(params.values()), None)
        device = None if some is None else some.device
        zero = torch.zeros((), dtype=torch.float64, device=device)
        seen = torch.zeros((), dtype=torch.int64, device=device)
        return {**(counting(self._number) or {}), "seen": seen, "mean": zero, "variance": zero.clone()}

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Grads, State]:
        """One factor for all entries, from norms of steps before."""
        call = f"{self!r}.update(grads, state)"
        values = check_grads(self, grads)
        out, norms = measured(call, values, how, self.nonfinite, parameter_norm)
        norm = of_norms(norms).to(state["mean"].device)
        limit = self._limit(call, state)
        factor = shrinking(norm, limit)
        multiply(out, factor)
        if self.nonfinite == "skip":
            zero_unless(norm.isfinite(), out)
        how.say(self.name, lambda: {**norm_facts(norm, factor), "limit": limit})
        rest = counted({"count": state["count"]}) if "count" in state else {}
        after = {**rest, **self._seen(state, norm.detach() * factor.detach())}
        return gathered(values, out), after

    @property
    def _number(self) -> Number:
        return self.factor if self.z_score is None else self.z_score

    def _limit(self, call: str, state: State) -> Tensor:
        """inf while nothing is known of what is usual."""
        mean, variance = state["mean"], state["variance"]
        if self.z_score is None:
            limit = at(call, "factor", self.factor, _AT_LEAST_ONE, state) * mean
            known = mean > 0
        else:
            limit = mean + at(call, "z_score", self.z_score, NOT_NEGATIVE, state) * variance.sqrt()
            known = variance > 0
        return torch.where(known & (state["seen"] >= self.warmup), limit, torch.inf)

    def _seen(self, state: State, norm: Tensor) -> State:
        """Mean and variance with one more norm, as it left; weights 1/t, until these are less than 1 - decay."""
        finite, seen = norm.isfinite(), state["seen"] + 1
        share = (1 / seen.double()).clamp(min=1 - self.decay)
        step = torch.where(finite, norm, state["mean"]) - state["mean"]
        mean = state["mean"] + share * step
        variance = (1 - share) * (state["variance"] + share * step.square())
        return {
            "seen": torch.where(finite, seen, state["seen"]),
            "mean": mean,
            "variance": torch.where(finite, variance, state["variance"]),
        }

    def __repr__(self) -> str:
        first = shown(self.factor) if self.z_score is None else f"z_score={shown(self.z_score)}"
        given = [f"{k}={v!r}" for k, v, usual in self._options() if v != usual]
        return f"{self.name}({', '.join([first, *given, *shown_policy(self.nonfinite)])})"

    def _options(self) -> list[tuple[str, object, object]]:
        return [("decay", self.decay, 0.99), ("warmup", self.warmup, 10)]


def clip_by_ema(
    factor: Number | None = None,
    *,
    decay: float = 0.99,
    z_score: Number | None = None,
    warmup: int = 10,
    nonfinite: str = "raise",
) -> ClipByEma:
    """Clip the global norm at what is usual: a stage on gradients, with norms of the steps before in its state.

    The gradient is multiplied by `min(1, L / |g|)`, where L is `factor` times the moving average of earlier norms, or
    with `z_score=z` their mean plus z standard deviations (after Kumar, Owen, Chowdhury, Güra 2025, "ZClip: Adaptive
    Spike Mitigation for LLM Pre-Training", which shrinks larger spikes further than to that limit). A norm enters the
    average as it left the clip, so that a spike moves it no more than its limit would. The t-th norm has weight
    max(1/t, 1 - decay): at first a plain mean, without bias, and exponential later. Nothing is clipped during the first
    `warmup` norms, nor while the mean (with `z_score` the variance) is 0. Mean, variance and number of norms are
    tensors; the device is not asked. One sample can move the limits of all later steps, so no bound on what it moves is
    stated.

    | norm n                                   | the gradient times                       | the averages      |
    |------------------------------------------|------------------------------------------|-------------------|
    | 0                                        | 1                                        | see 0             |
    | up to L                                  | 1                                        | see n             |
    | above L                                  | L/n                                      | see L             |
    | any finite, during warm-up               | 1                                        | see n             |
    | inf, NaN                                 | by `nonfinite`                           | stay              |

    Args:
        factor: at least 1; 2 if neither is given. A number, or a schedule: a function from the count of updates.
        decay: of the averages, in [0, 1).
        z_score: at least 0, a number or a schedule; in place of `factor`.
        warmup: norms to see before anything is clipped, at least 1.
        nonfinite: "raise", which asks the device once a step, "skip", "zero" or "keep", as in `gf.clip_by_global_norm`.

    Raises:
        TypeError, ValueError: an option out of range, or both `factor` and `z_score`; in an update, a norm that is not
            finite.

    Example:
        >>> import torch, gradfunc as gf
        >>> stage = gf.clip_by_ema(2.0, warmup=1)
        >>> _, state = stage.update({"w": torch.tensor([1.0])}, stage.init({"w": torch.ones(1)}))
        >>> stage.update({"w": torch.tensor([50.0])}, state)[0]
        {'w': tensor([2.])}
    """
    call = "gf.clip_by_ema(factor)"
    if factor is not None and z_score is not None:
        got = f"factor={shown(factor)} and z_score={shown(z_score)}"
        raise ValueError(message(call, got=got, expected="one of them"))
    check_number(call, "factor", 2.0 if factor is None else factor, _AT_LEAST_ONE)
    check_number(call, "decay", decay, SHARE, schedule=False)
    if z_score is not None:
        check_number(call, "z_score", z_score, NOT_NEGATIVE)
    check_int(call, "warmup", warmup, 1)
    one_of(call, "nonfinite", nonfinite, POLICIES)
    limit = None if z_score is None else fixed(z_score)
    return ClipByEma(2.0 if factor is None else fixed(factor), float(decay), limit, warmup, nonfinite)


def _units_clipped(factors: list[Tensor]) -> Tensor | float:
    if not factors:
        return 0.0
    device = factors[0].device
    return torch.cat([(factor.detach() < 1).double().reshape(-1).to(device) for factor in factors]).mean()
