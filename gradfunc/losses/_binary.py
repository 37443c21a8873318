"""Binary cross entropy, of probabilities and of logits."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .._weights import Weighted
from ._rows import check_factor, check_same, per_element_or_sample


def bce(
    output: Tensor, target: Tensor, *, weight: Tensor | None = None, per: str = "element", batched: bool = False
) -> Weighted:
    """Binary cross entropy of probabilities, b = -(t log o + (1 - t) log(1 - o)).

    As in torch the logarithms are cut off at -100, and probabilities outside [0, 1] are an error where they are read.
    From logits, `bce_with_logits` is the accurate way.

    Args:
        output: probabilities of any shape; batched `[B, ...]`.
        target: probabilities of the same shape.
        weight: factor of each element of one sample, broadcast; or, batched, one for each element `[B, ...]`.
        per: what the mean is over, "element" or "sample".
        batched: whether dimension 0 is samples.

    | option | numerator | weight |
    |---|---|---|
    | `per="element"` (default; torch's mean) | sum over elements of b | number of elements |
    | `per="sample"` (torch's sum over n) | the same | 1 |
    | `weight=w` | sum of w b | unchanged, as in torch |

    Raises:
        ValueError: shapes that do not fit; an unknown `per`.

    Example:
        >>> bce(torch.tensor([0.5, 1.0]), torch.ones(2))
        Weighted(numerator=tensor(0.6931), weight=tensor(2.))
    """
    call = "gf.losses.bce(output, target)"
    check_same(call, batched, output=output, target=target)
    check_factor(call, "weight", weight, output, batched, rows=True)
    elements = F.binary_cross_entropy(output, target.to(output.dtype), weight=weight, reduction="none")
    return per_element_or_sample(call, elements, per, batched)


def bce_with_logits(
    output: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    per: str = "element",
    batched: bool = False,
) -> Weighted:
    """Binary cross entropy of logits, b = -(t log s(o) + (1 - t) log(1 - s(o))) with the logistic function s.

    Args:
        output: logits of any shape; batched `[B, ...]`.
        target: probabilities of the same shape.
        weight: factor of each element of one sample, broadcast; or, batched, one for each element `[B, ...]`.
        pos_weight: factor of the positive part, t log s(o), of each element of one sample, broadcast.
        per: what the mean is over, "element" or "sample".
        batched: whether dimension 0 is samples.

    | option | numerator | weight |
    |---|---|---|
    | `per="element"` (default; torch's mean) | sum over elements of b | number of elements |
    | `per="sample"` (torch's sum over n) | the same | 1 |
    | `weight=w` | sum of w b | unchanged, as in torch |
    | `pos_weight=p` | sum of -(p t log s(o) + (1 - t) log(1 - s(o))) | unchanged, as in torch |

    Raises:
        ValueError: shapes that do not fit; an unknown `per`.

    Example:
        >>> bce_with_logits(torch.zeros(2), torch.ones(2)).weight
        tensor(2.)
    """
    call = "gf.losses.bce_with_logits(output, target)"
    check_same(call, batched, output=output, target=target)
    check_factor(call, "weight", weight, output, batched, rows=True)
    check_factor(call, "pos_weight", pos_weight, output, batched, rows=False)
    elements = F.binary_cross_entropy_with_logits(
        output, target.to(output.dtype), weight=weight, pos_weight=pos_weight, reduction="none"
    )
    return per_element_or_sample(call, elements, per, batched)
