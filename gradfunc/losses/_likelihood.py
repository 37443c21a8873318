"""Negative log likelihoods of a Gaussian and a Poisson distribution whose parameters the model gives."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .._errors import message
from .._weights import Weighted
from ._rows import check_same, per_element_or_sample


def gaussian_nll(
    output: Tensor,
    target: Tensor,
    var: Tensor | float,
    *,
    full: bool = False,
    eps: float = 1e-6,
    per: str = "element",
    batched: bool = False,
) -> Weighted:
    """Negative log likelihood of a Gaussian, l = (log v + (o - t)^2 / v) / 2 with v = max(var, eps).

    Source: Nix and Weigend, "Estimating the mean and variance of the target probability distribution" (1994). The
    cut at `eps` does not enter the derivative in `var`, as in torch. A negative variance, which torch refuses, gives
    NaN.

    Args:
        output: means, any shape; batched `[B, ...]`.
        target: the same shape.
        var: variances, the same shape, or with one dimension of size 1 (shared along it); or one number for all.
        full: whether to add the constant log(2 pi) / 2.
        eps: smallest variance.
        per: what the mean is over, "element" or "sample".
        batched: whether dimension 0 is samples.

    | option | numerator | weight |
    |---|---|---|
    | `per="element"` (default; torch's mean) | sum over elements of l | number of elements of the output |
    | `per="sample"` (torch's sum over n) | the same | 1 |
    | `full=True` | sum of l + log(2 pi) / 2 | unchanged |

    Raises:
        ValueError: shapes that do not fit; an unknown `per`.

    Example:
        >>> gaussian_nll(torch.tensor([1.0, 2.0]), torch.zeros(2), torch.ones(2))
        Weighted(numerator=tensor(2.5000), weight=tensor(2.))
    """
    call = "gf.losses.gaussian_nll(output, target, var)"
    check_same(call, batched, output=output, target=target)
    if not isinstance(var, Tensor):
        var = torch.full_like(output, var).detach()
    if not _fits(var.shape, output.shape, batched):
        raise ValueError(
            message(
                call,
                got=f"output {tuple(output.shape)} and var {tuple(var.shape)}",
                expected="the same shape, but for one dimension of var of size 1",
                do="Write var.unsqueeze(-1) for one variance a position.",
            )
        )
    # the value is cut, the derivative is not; a negative variance stays, and its logarithm is NaN
    var = var + ((var >= 0) & (var < eps)) * (eps - var).detach()
    elements = 0.5 * (torch.log(var) + (output - target) ** 2 / var)
    if full:
        elements = elements + 0.5 * math.log(2 * math.pi)
    return per_element_or_sample(call, elements, per, batched)


def poisson_nll(
    output: Tensor,
    target: Tensor,
    *,
    log_input: bool = True,
    full: bool = False,
    eps: float = 1e-8,
    per: str = "element",
    batched: bool = False,
) -> Weighted:
    """Negative log likelihood of a Poisson distribution, l = exp(o) - t o: the output is the logarithm of the rate.

    Args:
        output: log rates, or with `log_input=False` rates; any shape; batched `[B, ...]`.
        target: counts, the same shape.
        log_input: whether the output is a logarithm.
        full: whether to add the log factorial of the target, by Stirling's formula, where t > 1.
        eps: added to a rate before its logarithm is taken.
        per: what the mean is over, "element" or "sample".
        batched: whether dimension 0 is samples.

    | option | numerator | weight |
    |---|---|---|
    | `per="element"` (default; torch's mean) | sum over elements of l | number of elements |
    | `per="sample"` (torch's sum over n) | the same | 1 |
    | `log_input=False` | l = o - t log(o + eps) | unchanged |
    | `full=True` | sum of l + (t log t - t + log(2 pi t) / 2 where t > 1) | unchanged |

    Raises:
        ValueError: other shapes; an unknown `per`.

    Example:
        >>> poisson_nll(torch.zeros(2), torch.tensor([0.0, 3.0]))
        Weighted(numerator=tensor(2.), weight=tensor(2.))
    """
    call = "gf.losses.poisson_nll(output, target)"
    check_same(call, batched, output=output, target=target)
    elements = F.poisson_nll_loss(output, target, log_input=log_input, full=full, eps=eps, reduction="none")
    return per_element_or_sample(call, elements, per, batched)


def _fits(var: torch.Size, output: torch.Size, batched: bool) -> bool:
    """The same shape, but for one dimension (not that of the samples) of size 1."""
    if len(var) != len(output):
        return False
    others = [dim for dim, size in enumerate(var) if size != output[dim]]
    return not others or (len(others) == 1 and var[others[0]] == 1 and not (batched and others == [0]))
