"""Losses of classes: cross entropy of logits, of log probabilities, and of the next token."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .._errors import message
from .._tree import wide
from .._weights import Weighted
from ._rows import check_indices, counted, rowwise


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
    call = "gf.losses.cross_entropy(output, target)"
    logits, target = _classes_first(call, output, target, dim, batched, probabilities=True)
    positions = target.shape if not target.is_floating_point() else logits.shape[:1] + logits.shape[2:]
    rows, targets = logits, target
    if (last := logits.movedim(1, -1)).is_contiguous():  # torch's kernel for rows is quicker than that for images
        rows = last.reshape(positions.numel(), logits.shape[1])
        targets = target.movedim(1, -1).reshape(rows.shape) if target.is_floating_point() else target.reshape(-1)
    elements = F.cross_entropy(
        rows, targets, weight, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="none"
    ).reshape(positions)
    if target.is_floating_point():
        return counted(elements, batched)
    return rowwise(elements, class_weights(target, weight, ignore_index, like=elements), batched)


def nll(
    output: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    dim: int = -1,
    batched: bool = False,
) -> Weighted:
    """Negative log likelihood of classes: cross entropy of log probabilities.

    Args:
        output: log probabilities of one sample, classes in dimension `dim`: `[C]`, `[T, C]`; batched `[B, C]`,
            `[B, T, C]`.
        target: class indices, the shape of `output` without the classes.
        weight: one weight a class, `[C]`.
        ignore_index: target that does not count.
        dim: dimension of the classes in one sample's output; 0 for images `[C, H, W]`.
        batched: whether a first dimension of samples comes before all this.

    | option | numerator | weight |
    |---|---|---|
    | none | sum over positions of -log p_y | number of positions |
    | `weight=w` | sum of w_y (-log p_y) | sum of w_y |
    | `ignore_index` | ignored positions add 0 | ignored positions add 0 |

    Raises:
        TypeError: targets that are no integers.
        ValueError: shapes that do not fit.

    Example:
        >>> nll(torch.tensor([0.5, 0.5]).log(), torch.tensor(1), weight=torch.tensor([1.0, 3.0]))
        Weighted(numerator=tensor(2.0794), weight=tensor(3.))
    """
    logs, target = _classes_first("gf.losses.nll(output, target)", output, target, dim, batched, probabilities=False)
    # one dimension of positions: torch's kernel for images refuses to differentiate classes that were moved there
    rows = logs.movedim(1, -1).reshape(target.numel(), logs.shape[1])
    elements = F.nll_loss(rows, target.reshape(-1), weight=weight, ignore_index=ignore_index, reduction="none")
    elements = elements.reshape(target.shape)
    return rowwise(elements, class_weights(target, weight, ignore_index, like=elements), batched)


def causal_lm(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = -100,
    shift: bool = True,
    label_smoothing: float = 0.0,
    batched: bool = False,
) -> Weighted:
    """Cross entropy of the next token: the logits at position t are compared with the label at t + 1.

    The first label has no prediction and the last logits no label, so that a sequence of T tokens counts at most
    T - 1; one of 0 or 1 tokens is (0, 0).

    Args:
        logits: `[T, V]`; batched `[B, T, V]`.
        labels: token indices, usually the inputs themselves with padding and prompt ignored: `[T]`; batched `[B, T]`.
        ignore_index: label that does not count.
        shift: whether to shift; False if labels are already the next tokens.
        label_smoothing: share of the target spread evenly over the vocabulary, in [0, 1].
        batched: whether dimension 0 is samples.

    | option | numerator | weight |
    |---|---|---|
    | none | sum over t >= 1 of -log p(label_t; logits_{t-1}) | number of labels that count, without the first |
    | `shift=False` | sum over t of -log p(label_t; logits_t) | number of labels that count |
    | `ignore_index` | ignored labels add 0 | ignored labels add 0 |
    | `label_smoothing=e` | (1 - e) (-log p_label) + e/V sum_v (-log p_v) for each | unchanged |

    Raises:
        TypeError: labels that are no integers.
        ValueError: shapes that do not fit.

    Example:
        >>> tokens = torch.tensor([5, 2, 7, -100])    # predicted: 2 and 7
        >>> causal_lm(torch.zeros(4, 8), tokens).weight
        tensor(2.)
    """
    call, first = "gf.losses.causal_lm(logits, labels)", int(batched)
    check_indices(call, "labels", labels)
    if logits.dim() != 2 + first or labels.shape != logits.shape[:-1]:
        expected = "logits [B, T, V] and labels [B, T]" if batched else "logits [T, V] and labels [T]"
        got = f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}"
        raise ValueError(message(call, got=got, expected=expected))
    if shift:
        tokens = labels.shape[-1]
        logits = logits.narrow(first, 0, max(tokens - 1, 0))
        labels = labels.narrow(first, min(tokens, 1), max(tokens - 1, 0))
    return cross_entropy(logits, labels, ignore_index=ignore_index, label_smoothing=label_smoothing, batched=batched)


def class_weights(target: Tensor, weight: Tensor | None, ignore_index: int, *, like: Tensor) -> Tensor:
    """The weight with which torch's mean counts each target: w_y, 1 without class weights, 0 where ignored.

    Args:
        target: class indices, of any shape, which is that of the result.
        weight: one weight a class, `[C]`; None for 1 each.
        ignore_index: target that does not count.
        like: the logits, whose dtype it has; float32 for half types.

    Example:
        >>> target = torch.tensor([1, 0, -100])
        >>> class_weights(target, torch.tensor([0.5, 2.0]), -100, like=torch.zeros(3, 2))
        tensor([2.0000, 0.5000, 0.0000])
    """
    counted = target != ignore_index
    if weight is None:
        return counted.to(wide(like.dtype))
    safe = target.masked_fill(~counted, 0)
    return weight.gather(0, safe.reshape(-1)).reshape(safe.shape).to(wide(like.dtype)) * counted


def _classes_first(
    call: str, output: Tensor, target: Tensor, dim: int, batched: bool, *, probabilities: bool
) -> tuple[Tensor, Tensor]:
    """As torch wants them: samples in dimension 0, classes in dimension 1, indices long."""
    first = int(not batched)
    if not batched:
        output, target = output.unsqueeze(0), target.unsqueeze(0)
    fits = output.dim() >= 2 and -output.dim() < dim < output.dim() - 1
    classes = dim + 1 if dim >= 0 else dim
    moved = output.movedim(classes, 1) if fits else output
    dense = probabilities and target.is_floating_point()
    if not dense:
        check_indices(call, "target", target)
    if not fits or target.shape != (output.shape if dense else moved.shape[:1] + moved.shape[2:]):
        expected = "the target to have the output's shape without its classes"
        raise ValueError(
            message(
                call,
                got=f"output {tuple(output.shape[first:])} and target {tuple(target.shape[first:])}",
                expected=expected + (", or, for probabilities, all of it" if probabilities else ""),
                do=f"The classes are looked for in dimension {dim} of a sample: pass dim= if they sit elsewhere.",
            )
        )
    return moved, target.movedim(classes, 1) if dense else target.long()
