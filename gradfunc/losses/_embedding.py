"""Losses of vectors compared with vectors."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .._weights import Weighted
from ._rows import check_dims, check_labels, check_number, check_same, counted


def triplet_margin(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
    batched: bool = False,
) -> Weighted:
    """Hinge of two distances, l = max(0, d(a, p) - d(a, n) + margin), with d(x, y) = |x - y + eps|_p.

    Source: Balntas et al., "Learning shallow convolutional feature descriptors with triplet losses" (2016).

    Args:
        anchor: vectors `[D]`, `[T, D]`; batched `[B, D]`, `[B, T, D]`.
        positive: what should be near, the same shape.
        negative: what should be far, the same shape.
        margin: by how much, > 0.
        p: degree of the norm.
        eps: added to every difference, which keeps the norm differentiable.
        swap: whether d(p, n) replaces d(a, n) where it is smaller.
        batched: whether dimension 0 is samples.

    | option | numerator | weight |
    |---|---|---|
    | none | sum over positions of l | number of positions |
    | `swap=True` | l with min(d(a, n), d(p, n)) | unchanged |

    Raises:
        ValueError: other shapes; `margin` not positive.

    Example:
        >>> triplet_margin(torch.zeros(2), torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0]), eps=0.0)    # 5 - 2 + 1
        Weighted(numerator=tensor(4.), weight=tensor(1.))
    """
    call = "gf.losses.triplet_margin(anchor, positive, negative)"
    check_same(call, batched, anchor=anchor, positive=positive, negative=negative)
    check_dims(call, batched, 1, anchor=anchor)
    check_number(call, "margin", margin, margin > 0, "> 0")
    elements = F.triplet_margin_loss(
        anchor, positive, negative, margin=margin, p=p, eps=eps, swap=swap, reduction="none"
    )
    return counted(elements, batched)


def cosine_embedding(
    output1: Tensor, output2: Tensor, target: Tensor, *, margin: float = 0.0, batched: bool = False
) -> Weighted:
    """Cosine of two vectors: 1 - cos where the target is 1, max(0, cos - margin) where it is -1.

    As in torch a target that is neither 1 nor -1 adds nothing and is counted all the same, and 1e-12 is added to the
    squared norms.

    Args:
        output1: vectors `[D]`, `[T, D]`; batched `[B, D]`, `[B, T, D]`.
        output2: vectors to compare with, the same shape.
        target: 1 or -1, the shape of `output1` without its last dimension.
        margin: cosine up to which dissimilar pairs add nothing.
        batched: whether dimension 0 is samples.

    | option | numerator | weight |
    |---|---|---|
    | none | sum over positions of 1 - cos if t = 1, max(0, cos - margin) if t = -1 | number of positions |

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> cosine_embedding(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor(1))
        Weighted(numerator=tensor(1.), weight=tensor(1.))
    """
    call = "gf.losses.cosine_embedding(output1, output2, target)"
    check_same(call, batched, output1=output1, output2=output2)
    check_labels(call, batched, output1, target, name="output1")
    width = output1.shape[-1]
    pairs = (output1.reshape(target.numel(), width), output2.reshape(target.numel(), width))
    elements = F.cosine_embedding_loss(*pairs, target.reshape(-1), margin=margin, reduction="none")
    return counted(elements.reshape(target.shape), batched)
