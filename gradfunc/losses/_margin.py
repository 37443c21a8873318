"""Margins of single scores."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .._weights import Weighted
from ._rows import check_same, counted


def soft_margin(output: Tensor, target: Tensor, *, batched: bool = False) -> Weighted:
    """Logistic loss log(1 + exp(-t o)).

    Computed as -log s(t o) with the logistic function s, which does not overflow; torch's own is infinite from
    -t o = 710 on (89 in float32).

    Args:
        output: scores of any shape; batched `[B, ...]`.
        target: 1 or -1, the same shape.
        batched: whether dimension 0 is samples.

    | option | numerator | weight |
    |---|---|---|
    | none | sum over elements of log(1 + exp(-t o)) | number of elements |

    Raises:
        ValueError: other shapes.

    Example:
        >>> soft_margin(torch.zeros(2), torch.tensor([1.0, -1.0]))
        Weighted(numerator=tensor(1.3863), weight=tensor(2.))
    """
    check_same("gf.losses.soft_margin(output, target)", batched, output=output, target=target)
    return counted(-F.logsigmoid(target.to(output.dtype) * output), batched)


def hinge_embedding(output: Tensor, target: Tensor, *, margin: float = 1.0, batched: bool = False) -> Weighted:
    """Hinge of a distance: o where the target is 1, max(0, margin - o) where it is -1.

    As in torch a target that is neither 1 nor -1 adds both.

    Args:
        output: distances of any shape; batched `[B, ...]`.
        target: 1 or -1, the same shape.
        margin: distance from which on dissimilar pairs add nothing.
        batched: whether dimension 0 is samples.

    | option | numerator | weight |
    |---|---|---|
    | none | sum over elements of o if t = 1, max(0, margin - o) if t = -1 | number of elements |

    Raises:
        ValueError: other shapes.

    Example:
        >>> hinge_embedding(torch.tensor([0.25, 0.25]), torch.tensor([1, -1]))
        Weighted(numerator=tensor(1.), weight=tensor(2.))
    """
    check_same("gf.losses.hinge_embedding(output, target)", batched, output=output, target=target)
    return counted(F.hinge_embedding_loss(output, target, margin=margin, reduction="none"), batched)


def margin_ranking(
    output1: Tensor, output2: Tensor, target: Tensor, *, margin: float = 0.0, batched: bool = False
) -> Weighted:
    """Hinge of a difference of scores, max(0, margin - t (o1 - o2)).

    Args:
        output1: scores of any shape; batched `[B, ...]`.
        output2: scores to compare with, the same shape.
        target: 1 where the first should be larger, -1 where the second should; the same shape.
        margin: by how much.
        batched: whether dimension 0 is samples.

    | option | numerator | weight |
    |---|---|---|
    | none | sum over elements of max(0, margin - t (o1 - o2)) | number of elements |

    Raises:
        ValueError: other shapes.

    Example:
        >>> margin_ranking(torch.tensor([2.0, 2.0]), torch.ones(2), torch.tensor([1, -1]))
        Weighted(numerator=tensor(1.), weight=tensor(2.))
    """
    call = "gf.losses.margin_ranking(output1, output2, target)"
    check_same(call, batched, output1=output1, output2=output2, target=target)
    return counted(F.margin_ranking_loss(output1, output2, target, margin=margin, reduction="none"), batched)
