"""The Kullback-Leibler divergence."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .._weights import Weighted
from ._rows import check_same, per_element_or_sample


def kl_div(
    output: Tensor, target: Tensor, *, log_target: bool = False, per: str = "sample", batched: bool = False
) -> Weighted:
    """Kullback-Leibler divergence of the model's distribution q from the target's p, sum p (log p - log q).

    Each sample is one divergence, or the sum of its positions' divergences. torch's default mean divides by the
    number of classes as well, which is no divergence; it is `per="element"` here.

    Args:
        output: log probabilities log q, any shape; batched `[B, ...]`.
        target: probabilities p, or with `log_target` log p; the same shape.
        log_target: whether the target is given as logarithms.
        per: what the mean is over, "sample" or "element".
        batched: whether dimension 0 is samples.

    | option | numerator | weight |
    |---|---|---|
    | `per="sample"` (default; torch's "batchmean") | sum over elements of p (log p - log q) | 1 |
    | `per="element"` (torch's "mean") | the same | number of elements |
    | `log_target=True` | the same, with p = exp(target) | unchanged |

    Where p = 0 an element is 0, for finite log q.

    Raises:
        ValueError: other shapes; an unknown `per`.

    Example:
        >>> p = torch.tensor([0.5, 0.5])
        >>> kl_div(torch.tensor([0.25, 0.75]).log(), p)
        Weighted(numerator=tensor(0.1438), weight=tensor(1.))
    """
    call = "gf.losses.kl_div(output, target)"
    check_same(call, batched, output=output, target=target)
    elements = F.kl_div(output, target, reduction="none", log_target=log_target)
    return per_element_or_sample(call, elements, per, batched)
