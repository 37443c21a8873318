"""Losses that carry their weight: each returns `Weighted(numerator, weight)`, never a bare mean.

Without `batched`, a loss is of one sample and a first dimension is its positions (tokens, pixels). With
`batched=True` it is the same loss row by row: numerator and weight have shape `[B]`. So `sum` is torch's
`reduction="sum"` and `mean`, numerators over weights, is torch's `reduction="mean"`, under every option,
for every split of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ._errors import message
from ._tree import wide
from ._weights import Weighted


@dataclass(frozen=True)
class Whole:
    """A criterion that runs the model itself. Made by `gf.whole`."""

    fn: Callable[[Any, Any], Any]


def whole(fn: Callable[[Any, Any], Any]) -> Whole:
    """Declare that a criterion is `fn(model, batch) -> scalar | [B] | Weighted`, as in a training loop.

    Args:
        fn: called with the model as a function of its inputs and the batch as it was given.

    Example:
        >>> import gradfunc as gf
        >>> criterion = gf.whole(lambda model, batch: F.mse_loss(model(batch["x"]), batch["y"]))
    """
    if not callable(fn):
        raise TypeError(message("gf.whole(fn)", got=repr(fn), expected="a function fn(model, batch)"))
    return Whole(fn)


def cross_entropy(
    output: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    dim: int = -1,
    batched: bool = False,
) -> Weighted:
    """Cross entropy of logits.

    Args:
        output: logits of one sample, classes in dimension `dim`: `[C]`, `[T, C]`; batched `[B, C]`, `[B, T, C]`.
        target: class indices, the shape of `output` without the classes; or probabilities, the shape of `output`.
        weight: one weight a class, `[C]`.
        ignore_index: target that does not count.
        label_smoothing: share of the target spread evenly over the classes, in [0, 1].
        dim: dimension of the classes in one sample's output; 0 for images `[C, H, W]`.
        batched: whether a first dimension of samples comes before all this.

    | option | numerator | weight |
    |---|---|---|
    | none | sum over positions of -log p_y | number of positions |
    | `weight=w` | sum of w_y (-log p_y) | sum of w_y |
    | `ignore_index` | ignored positions add 0 | ignored positions add 0 |
    | `label_smoothing=e` | sum of (1 - e) w_y (-log p_y) + e/C sum_c w_c (-log p_c) | sum of w_y |
    | probabilities q | sum of -sum_c w_c q_c log p_c | number of positions |

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> loss = cross_entropy(torch.zeros(3, 4), torch.tensor([1, 2, -100]))   # three tokens, one ignored
        >>> loss.weight
        tensor(2.)
    """
    if not batched:
        output, target = output.unsqueeze(0), target.unsqueeze(0)
    logits = output.movedim(dim + 1 if dim >= 0 else dim, 1) if output.dim() > 1 else output
    probabilities = target.is_floating_point()
    if output.dim() < 2 or target.shape != (output.shape if probabilities else logits[:, 0].shape):
        first = int(not batched)
        raise ValueError(
            message(
                "gf.losses.cross_entropy(output, target)",
                got=f"output {tuple(output.shape[first:])} and target {tuple(target.shape[first:])}",
                expected="the target to have the output's shape without its classes, or, for probabilities, all of it",
                do=f"The classes are looked for in dimension {dim} of a sample: pass dim= if they sit elsewhere.",
            )
        )
    target = target.movedim(dim + 1 if dim >= 0 else dim, 1) if probabilities else target.long()
    options = {"weight": weight, "ignore_index": ignore_index, "label_smoothing": label_smoothing}
    elements = F.cross_entropy(logits, target, reduction="none", **options)  # type: ignore[arg-type]
    counted = elements if probabilities else class_weights(target, weight, ignore_index, like=elements)
    weights = torch.ones_like(elements, dtype=wide(elements.dtype)) if probabilities else counted
    return _rowwise(elements, weights, batched)


def mse(output: Tensor, target: Tensor, *, batched: bool = False) -> Weighted:
    """Squared error; numerator: the sum over elements of (o - t)^2, weight: the number of elements.

    Args:
        output: any shape; batched `[B, ...]`.
        target: the same shape. Broadcasting is refused: `(n, 1)` against `(n,)` is n x n errors.
        batched: whether dimension 0 is samples.

    Example:
        >>> mse(torch.tensor([1.0, 3.0]), torch.zeros(2))
        Weighted(numerator=tensor(10.), weight=tensor(2.))
    """
    _same_shape("gf.losses.mse(output, target)", output, target)
    elements = F.mse_loss(output, target, reduction="none")
    return _rowwise(elements, torch.ones_like(elements, dtype=wide(elements.dtype)), batched)


def bce_with_logits(
    output: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    batched: bool = False,
) -> Weighted:
    """Binary cross entropy of logits; weight: the number of elements, whatever the options, as in torch.

    Args:
        output: logits of any shape; batched `[B, ...]`.
        target: probabilities of the same shape.
        weight: factor of each element of one sample, broadcast; enters the numerator only.
        pos_weight: factor of the positive part, broadcast; enters the numerator only.
        batched: whether dimension 0 is samples.

    Example:
        >>> bce_with_logits(torch.zeros(2), torch.ones(2)).weight
        tensor(2.)
    """
    _same_shape("gf.losses.bce_with_logits(output, target)", output, target)
    elements = F.binary_cross_entropy_with_logits(
        output, target.to(output.dtype), weight=weight, pos_weight=pos_weight, reduction="none"
    )
    return _rowwise(elements, torch.ones_like(elements, dtype=wide(elements.dtype)), batched)


def class_weights(target: Tensor, weight: Tensor | None, ignore_index: int, *, like: Tensor) -> Tensor:
    """The weight with which torch's mean counts each target: w_y, 1 without class weights, 0 where ignored."""
    counted = target != ignore_index
    if weight is None:
        return counted.to(wide(like.dtype))
    safe = target.masked_fill(~counted, 0)
    return weight.gather(0, safe.reshape(-1)).reshape(safe.shape).to(wide(like.dtype)) * counted


def _rowwise(elements: Tensor, weights: Tensor, batched: bool) -> Weighted:
    if not batched:
        return Weighted(elements.sum(), weights.sum().detach())
    rows = (len(elements), -1) if elements.numel() else (len(elements), 0)
    return Weighted(elements.reshape(rows).sum(1), weights.reshape(rows).sum(1).detach())


def _same_shape(call: str, output: Tensor, target: Tensor) -> None:
    if output.shape != target.shape:
        raise ValueError(
            message(
                call,
                got=f"output {tuple(output.shape)} and target {tuple(target.shape)}",
                expected="the same shape",
                do="Broadcasting would compare every sample with every other: reshape one of them.",
            )
        )
