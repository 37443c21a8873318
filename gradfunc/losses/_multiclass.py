"""Margins between classes: one right class, or several."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .._errors import message
from .._weights import Weighted
from ._rows import check_dims, check_indices, check_labels, check_number, check_same, counted


def multi_margin(
    output: Tensor,
    target: Tensor,
    *,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    batched: bool = False,
) -> Weighted:
    """Hinge of every wrong class against the right one, l = sum_{c != y} max(0, margin - o_y + o_c)^p / C.

    Unlike cross entropy's, its mean does not divide by the class weights: torch's rule. Source: Weston and Watkins,
    "Multi-class support vector machines" (1998), over C.

    Args:
        output: scores, classes last: `[C]`, `[T, C]`; batched `[B, C]`, `[B, T, C]`.
        target: class indices, the shape of `output` without the classes.
        p: 1 or 2.
        margin: by how much the right class should lead.
        weight: one factor a class, `[C]`.
        batched: whether dimension 0 is samples.

    | option | numerator | weight |
    |---|---|---|
    | none | sum over positions of l | number of positions |
    | `weight=w` | sum of w_y l | unchanged, as in torch |

    Raises:
        TypeError: targets that are no integers.
        ValueError: shapes that do not fit; `p` neither 1 nor 2.

    Example:
        >>> multi_margin(torch.tensor([0.0, 0.5, 3.0]), torch.tensor(2), margin=3.0)    # (0 + 0.5) / 3
        Weighted(numerator=tensor(0.1667), weight=tensor(1.))
    """
    call = "gf.losses.multi_margin(output, target)"
    check_labels(call, batched, output, target)
    check_indices(call, "target", target)
    check_number(call, "p", p, p in (1, 2), "to be 1 or 2")
    _check_class_factor(call, weight, output)
    right = target.long().unsqueeze(-1)
    hinges = F.relu(margin - output.gather(-1, right) + output) ** p
    if weight is not None:
        hinges = hinges * weight[right]
    classes = torch.arange(output.shape[-1], device=output.device)
    return counted(hinges.masked_fill(classes == right, 0).sum(-1) / output.shape[-1], batched)


def multilabel_margin(output: Tensor, target: Tensor, *, batched: bool = False) -> Weighted:
    """Hinge of every wrong class against every right one, l = sum_{y right, c wrong} max(0, 1 - o_y + o_c) / C.

    Source: Elisseeff and Weston, "A kernel method for multi-labelled classification" (2001), over C. Holds C x C
    numbers a position.

    Args:
        output: scores, classes last: `[C]`, `[T, C]`; batched `[B, C]`, `[B, T, C]`.
        target: indices of the right classes up to the first -1, the shape of `output`.
        batched: whether dimension 0 is samples.

    | option | numerator | weight |
    |---|---|---|
    | none | sum over positions of l | number of positions |

    Raises:
        TypeError: targets that are no integers.
        ValueError: other shapes.

    Example:
        >>> multilabel_margin(torch.tensor([0.5, 0.0, 0.0]), torch.tensor([0, -1, -1]))    # (0.5 + 0.5) / 3
        Weighted(numerator=tensor(0.3333), weight=tensor(1.))
    """
    call = "gf.losses.multilabel_margin(output, target)"
    check_same(call, batched, output=output, target=target)
    check_dims(call, batched, 1, output=output)
    check_indices(call, "target", target)
    listed = (target >= 0).long().cumprod(-1).bool()  # up to the first negative entry
    labels = target.long().masked_fill(~listed, 0)
    classes = torch.arange(output.shape[-1], device=output.device)
    hits = (labels.unsqueeze(-1) == classes) & listed.unsqueeze(-1)  # [..., entry, class]
    counts = listed.unsqueeze(-1) & ~hits.any(-2, keepdim=True)
    hinges = F.relu(1 - output.gather(-1, labels).unsqueeze(-1) + output.unsqueeze(-2))
    return counted(hinges.masked_fill(~counts, 0).sum((-2, -1)) / output.shape[-1], batched)


def multilabel_soft_margin(
    output: Tensor, target: Tensor, *, weight: Tensor | None = None, batched: bool = False
) -> Weighted:
    """Binary cross entropy of every class's logit, averaged over the classes: l = sum_c b_c / C.

    Args:
        output: logits, classes last: `[C]`, `[T, C]`; batched `[B, C]`, `[B, T, C]`.
        target: 0 or 1 (or probabilities), the shape of `output`.
        weight: one factor a class, `[C]`.
        batched: whether dimension 0 is samples.

    | option | numerator | weight |
    |---|---|---|
    | none | sum over positions of l | number of positions |
    | `weight=w` | l = sum_c w_c b_c / C | unchanged, as in torch |

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> multilabel_soft_margin(torch.zeros(2, 4), torch.ones(2, 4))
        Weighted(numerator=tensor(1.3863), weight=tensor(2.))
    """
    call = "gf.losses.multilabel_soft_margin(output, target)"
    check_same(call, batched, output=output, target=target)
    check_dims(call, batched, 1, output=output)
    _check_class_factor(call, weight, output)
    target = target.to(output.dtype)
    return counted(F.multilabel_soft_margin_loss(output, target, weight=weight, reduction="none"), batched)


def _check_class_factor(call: str, weight: Tensor | None, output: Tensor) -> None:
    if weight is not None and weight.shape != output.shape[-1:]:
        got = f"weight {tuple(weight.shape)} for output {tuple(output.shape)}"
        raise ValueError(message(call, got=got, expected=f"one factor a class, {tuple(output.shape[-1:])}"))
