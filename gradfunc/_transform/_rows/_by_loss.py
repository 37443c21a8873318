"""Samples chosen and weighted by their losses."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial

import torch
from torch import Tensor

from ..._errors import message
from ..._per_sample import PerSampleGrads
from .._numbers import NOT_NEGATIVE, Range, check_number
from ._reweighted import Reweighted

_COUNT = Range("an int >= 1, or a share in (0, 1)", lambda k: 0 < k < 1 or (k >= 1 and k % 1 == 0))


def top_k_loss(k: float) -> Reweighted:
    """Keep the samples with the largest losses per weight, leave the others out: a stage from rows to rows.

    Online hard example mining (Shrivastava et al. 2016, "Training Region-based Object Detectors with Online Hard
    Example Mining"), or the average top-k loss (Fan et al. 2017, "Learning with Average Top-k Loss") before a mean.

    Args:
        k: how many: an int >= 1 (all, where there are fewer), or a share in (0, 1) of the samples of weight > 0,
            rounded up.

    Formal guarantee: a bound from before holds; which samples stay depends on all, so no sensitivity is stated.
    Equal losses are told apart by their place in the batch: with the samples in another order the same rows stay only
    where no loss at the threshold occurs twice.

    | sample                     | what happens                                             |
    |----------------------------|----------------------------------------------------------|
    | ties at the threshold      | those first in the batch stay, k in all                  |
    | weight 0                   | never chosen                                             |
    | loss NaN                   | refused: no order; `gf.nonfinite_per_sample("skip")` first |
    | fewer samples than k       | all stay                                                 |

    Raises:
        TypeError, ValueError: another `k`; in an update, a loss that is NaN.

    Example:
        >>> import torch, gradfunc as gf
        >>> p = {"w": torch.ones(1)}
        >>> g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())(p, torch.tensor([[3.0], [1.0], [2.0]]))
        >>> step = gf.top_k_loss(2) >> gf.mean()
        >>> step.update(g, step.init(p))[0]["w"]
        tensor([2.5000])
    """
    call = "gf.top_k_loss(k)"
    check_number(call, "k", k, _COUNT, schedule=False)
    return Reweighted("top_k_loss", repr(k), partial(_top, k=k), True, False, True)


def focal_weights(gamma: float = 2.0) -> Reweighted:
    """Scale gradients and losses by `(1 - p)^gamma`, p = exp(-loss per weight): a stage from rows to rows.

    For a cross entropy p is the probability of the right class, and the factor that of the focal loss (Lin et al. 2017,
    "Focal Loss for Dense Object Detection", equation 4), as a constant: its own derivative, which the gradient of the
    focal loss itself has besides, is left out. Weights stay, so that a mean divides as before.

    Args:
        gamma: >= 0; 0 changes nothing.

    Formal guarantee: a bound from before holds: factors are at most 1. Row i depends on sample i only if it did before.

    | loss per weight          | factor                             |
    |--------------------------|------------------------------------|
    | 0                        | 0 (gamma > 0), 1 (gamma = 0)       |
    | large                    | 1                                  |
    | negative                 | refused: no negative log-likelihood |
    | weight 0                 | 0, an absent sample stays absent   |

    Raises:
        TypeError, ValueError: another `gamma`; in an update, a loss that is negative or not finite.

    Example:
        >>> import torch, gradfunc as gf
        >>> f = gf.per_sample_grads(lambda p, x, y: gf.losses.cross_entropy(p["w"] * x, y))
        >>> g = f({"w": torch.ones(2)}, torch.tensor([[3.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 0]))
        >>> gf.focal_weights().update(g, ())[0].losses
        tensor([1.0928e-04, 2.7663e+00])
    """
    check_number("gf.focal_weights(gamma)", "gamma", gamma, NOT_NEGATIVE, schedule=False)
    return Reweighted("focal_weights", repr(gamma), partial(_focal, gamma=float(gamma)), False, True, True)


def _per_weight(g: PerSampleGrads) -> tuple[Tensor, Tensor]:
    """Losses over weights in float64, 0 without weight, and which have weight."""
    losses, weights = g.losses.detach().double(), g.weights.double()
    used = weights > 0
    return torch.where(used, losses / torch.where(used, weights, 1.0), 0.0), used


def _top(g: PerSampleGrads, *, k: float) -> Tensor:
    losses, used = _per_weight(g)
    call = f"top_k_loss({k}).update(g, state)"
    if bool((losses.isnan() & used).any()):
        do = "Put gf.nonfinite_per_sample('skip') before it."
        raise ValueError(message(call, got="a loss that is NaN", expected="losses that have an order", do=do))
    # of the decimal that was written: 0.6 of 25 are 15, though 0.6 * 25 > 15 in float32
    number = math.ceil(Fraction(repr(float(k))) * int(used.sum())) if k < 1 else int(k)
    order = torch.where(used, losses, -torch.inf).argsort(descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return used & (rank < number)


def _focal(g: PerSampleGrads, *, gamma: float) -> Tensor:
    losses, used = _per_weight(g)
    good = (losses >= 0) & losses.isfinite()
    if not bool((good | ~used).all()):
        i = int((~good & used).nonzero()[0])
        call = f"focal_weights({gamma}).update(g, state)"
        got = f"loss {float(losses[i])} per weight for sample {i}"
        raise ValueError(message(call, got=got, expected="a negative log-likelihood, finite and >= 0"))
    return torch.where(used, (-torch.expm1(-losses)).pow(gamma), 0.0)
