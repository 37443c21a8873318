"""A step as long as the noise of the gradient allows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..._errors import message, one_of
from ..._per_sample import PerSampleGrads
from ..._tree import Tensors
from ...quantities._noise_scale import noise_scale_of
from .._chain import Stage
from .._numbers import NOT_NEGATIVE, SHARE, Number, at, check_number, count_of, fixed
from .._protocol import State, Updates
from .._rows import POLICIES, left_out, refused
from .._said import Facts
from .._stage import How, check_rows
from ._named import spelt


@dataclass(frozen=True, repr=False)
class NoiseScaledStep(Stage[PerSampleGrads, Updates]):
    """Made by `gf.noise_scaled_step`, which has the meanings."""

    lr: Number
    beta: float
    nonfinite: str
    name = "noise_scaled_step"
    takes, gives = PerSampleGrads, Updates

    def init(self, params: Tensors, /) -> State:
        """Running means of the two estimates, from 0."""
        device = next((value.device for value in params.values()), None)
        trace, squared_norm = torch.zeros(2, dtype=torch.float64, device=device)
        return {"count": 0, "trace": trace.clone(), "squared_norm": squared_norm.clone()}

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Updates, State]:
        """The mean of the rows, times the step that the running estimates give."""
        g, call = check_rows(self, grads), f"{self!r}.update(g, state)"
        norms = g.norms()
        if self.nonfinite == "raise" and not bool(norms.isfinite().all()):
            raise ValueError(refused(call, g))
        if self.nonfinite in ("skip", "zero"):
            finite = norms.isfinite()
            g, norms = left_out(g, finite, self.nonfinite), torch.where(finite, norms, 0.0)
        weights, mean = g.weights, g.mean()
        if (used := int((weights > 0).sum())) < 2:
            got = f"{used} samples of weight above 0"
            raise ValueError(message(call, got=got, expected="at least two, to see how they differ"))
        found = noise_scale_of(norms, weights, mean)
        trace, squared = (
            self.beta * state[key].to(new.device) + (1 - self.beta) * new
            for key, new in (("trace", found.trace), ("squared_norm", found.squared_norm))
        )
        shares = weights.double() / weights.double().sum()
        share = _share(trace, squared, shares.square().sum().to(trace.device))
        factor = -at(repr(self), "lr", self.lr, NOT_NEGATIVE, state) * share
        out = {name: value * factor.to(value.device, value.dtype) for name, value in mean.items()}
        how.say(self.name, partial(_facts, trace, squared, share))
        state = {**state, "count": count_of(state) + 1, "trace": trace, "squared_norm": squared}
        return Updates(out), state

    def __repr__(self) -> str:
        given = {"beta": self.beta, "nonfinite": self.nonfinite}
        return spelt(self.name, self.lr, given, {"beta": 0.9, "nonfinite": "raise"})


def noise_scaled_step(lr: Number, *, beta: float = 0.9, nonfinite: str = "raise") -> NoiseScaledStep:
    r"""Descent along the mean with a step that shrinks where the samples disagree: a rule from rows to updates.

    The update is `-lr m / (1 + q B)` with the mean m, `q = sum w_i^2 / (sum w_i)^2` (1/n for n samples of equal weight)
    and the noise scale `B = tr(Sigma) / |G|^2`: the step that is best for a batch of n where lr is best without noise,
    the Hessian taken as a multiple of the identity (McCandlish et al. 2018, "An Empirical Model of Large-Batch
    Training", arXiv 1812.06162, section 2.2). tr(Sigma) and |G|^2 are running means of the unbiased estimates of
    `gf.quantities.gradient_noise_scale`, whose quotient is biased, the less the slower they run. An estimate of |G|^2
    that is not above 0 counts as 0.

    It costs the norms of the rows beside their mean, and nothing is materialised; it asks the host for the number of
    samples, and with "raise" whether all norms are finite.

    | batch                                | step                        |
    |--------------------------------------|-----------------------------|
    | all samples alike                    | lr                          |
    | estimated \|G\|^2 <= 0               | 0                           |
    | all gradients 0                      | lr (times a mean of 0)      |
    | fewer than two samples with a weight | ValueError                  |
    | norm inf or NaN                      | by `nonfinite`              |

    Args:
        lr: the step without noise, >= 0, or a schedule: a function from the count of updates before this one.
        beta: how much of the running means stays at each update, in [0, 1); 0 takes the batch alone.
        nonfinite: for a row whose norm is inf or NaN: "raise"; "skip" (the sample counts as absent); "zero" (gradient
            0, weight kept); "keep" (the result is NaN, and the running means stay so).

    Raises:
        TypeError, ValueError: an argument of another type or range; in an update, fewer than two samples of weight
            above 0, or a norm that is not finite.

    Example:
        >>> import torch, gradfunc as gf
        >>> params = {"w": torch.zeros(1)}
        >>> g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())(params, torch.tensor([[1.0], [3.0]]))
        >>> step = gf.noise_scaled_step(1.0)    # the mean is 2; 3 of its square 4 are not noise
        >>> step.update(g, step.init(params), params)[0]["w"]
        tensor([-1.5000])
    """
    call = "gf.noise_scaled_step(lr)"
    check_number(call, "lr", lr, NOT_NEGATIVE)
    check_number(call, "beta", beta, SHARE, schedule=False)
    one_of(call, "nonfinite", nonfinite, POLICIES)
    return NoiseScaledStep(fixed(lr), float(beta), nonfinite)


def _share(trace: Tensor, squared: Tensor, q: Tensor) -> Tensor:
    """`1 / (1 + q B)`, of which running means from 0 need no correction; 1 where there is nothing to divide."""
    squared, noise = squared.clamp(min=0), q * trace.clamp(min=0)
    whole = squared + noise
    return torch.where(whole == 0, 1.0, squared / torch.where(whole == 0, 1.0, whole))


def _facts(trace: Tensor, squared: Tensor, share: Tensor) -> Facts:
    return {"trace": trace, "squared_norm": squared, "noise_scale": trace / squared, "step": share}
