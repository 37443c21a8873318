"""Scores of samples by which data sets are pruned, and mislabelled samples found."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .._errors import kind_of, message
from .._per_sample import PerSampleGrads
from ._read import check_value


def grand(g: PerSampleGrads | Sequence[PerSampleGrads]) -> Tensor:
    """GraNd: the norm of each sample's gradient, on average over models: `[B]`.

    Paul, Ganguli, Dziugaite 2021, "Deep learning on a data diet: finding important examples early in training" (arXiv
    2107.07075, definition 2.1): the expectation is over initialisations (and the first steps of training). The gradient
    is that of the numerator.

    Bias: none as an estimate of that expectation, from independent models; its standard error falls with the root of
    their number, ten in the paper. Cost: norms, nothing materialised.

    Args:
        g: per-sample gradients of the same samples, of one model or of several.

    Raises:
        TypeError: something else.
        ValueError: none, or values of other batch sizes.

    Example:
        >>> import torch, gradfunc as gf
        >>> f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum().square())
        >>> x = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
        >>> gf.quantities.grand([f({"w": torch.tensor([a, 0.0])}, x) for a in (1.0, 2.0)])
        tensor([45.,  3.])
    """
    call = "gf.quantities.grand(g)"
    if isinstance(g, PerSampleGrads):
        return g.norms()
    return _averaged(call, [check_value(call, one, "one of several").norms() for one in _listed(call, g)])


def el2n(logits: Tensor | Sequence[Tensor], labels: Tensor) -> Tensor:
    """EL2N: the length of the error vector, `|softmax(logits) - onehot(label)|`, on average over models: `[B]`.

    Paul, Ganguli, Dziugaite 2021 (arXiv 2107.07075, definition 2.2). It is the norm of the gradient of cross entropy by
    the logits, so it stands for GraNd where logits have gradients of equal length that are orthogonal.

    Bias: as `grand`. Cost: none but the forward pass that gave the logits.

    Args:
        logits: `[B, K]`, or one for each of several models.
        labels: `[B]` classes.

    Raises:
        TypeError: something else.
        ValueError: other shapes; labels that are no class.

    Example:
        >>> import torch, gradfunc as gf
        >>> gf.quantities.el2n(torch.zeros(2, 2), torch.tensor([0, 1]))
        tensor([0.7071, 0.7071])
    """
    call = "gf.quantities.el2n(logits, labels)"
    each = [logits] if isinstance(logits, Tensor) else _listed(call, logits)
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        raise TypeError(message(call, got=f"{kind_of(labels)} as labels", expected="a tensor [B] of classes"))
    scores = []
    for one in each:
        if not isinstance(one, Tensor) or not one.is_floating_point():
            raise TypeError(message(call, got=f"{kind_of(one)} as logits", expected="a floating tensor [B, K]"))
        if one.dim() != 2 or labels.shape != one.shape[:1]:
            got = f"logits of shape {tuple(one.shape)} and labels of shape {tuple(labels.shape)}"
            raise ValueError(message(call, got=got, expected="[B, K] and [B]"))
        if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < one.shape[1]):
            got = f"labels from {int(labels.min())} to {int(labels.max())}"
            raise ValueError(message(call, got=got, expected=f"classes 0 to {one.shape[1] - 1}"))
        error = one.softmax(1) - F.one_hot(labels, one.shape[1]).to(one)
        scores.append(torch.linalg.vector_norm(error, dim=1))
    return _averaged(call, scores)


def _listed(call: str, values: object) -> list[object]:
    if not isinstance(values, Sequence):
        raise TypeError(message(call, got=kind_of(values), expected="one, or a list with one for each model"))
    if not values:
        raise ValueError(message(call, got="an empty list", expected="at least one model's"))
    return list(values)


def _averaged(call: str, scores: list[Tensor]) -> Tensor:
    if len({len(one) for one in scores}) > 1:
        got = f"batches of {[len(one) for one in scores]} samples"
        raise ValueError(message(call, got=got, expected="the same samples for every model"))
    return torch.stack([one.to(scores[0]) for one in scores]).mean(0)
