"""Norms of the gradients of single tokens of sequences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ._kernels import by_output


def token_norms(losses: Callable[..., Tensor], params: Mapping[str, Tensor], batch: Any, **options: Any) -> Tensor:
    """The norm of the gradient of every token's loss: `[B, T]`.

    Row (i, t) is the gradient of the loss of token t of sequence i, whatever of the sequence it reads. The gradient of
    the sequence is the sum of these rows, its norm not the sum of their norms.

    Bias: none; it is no estimate. Cost: T forward and backward passes of the batch, whose norms are asked one after the
    other: factors of one token of every sequence are held at a time, nothing is materialised.

    Args:
        losses: `losses(params, *sample, **sample)` of one sequence, a loss for each of its T tokens, such as
            `torch.nn.functional.cross_entropy(..., reduction="none")`.
        params, batch, options: as `gf.quantities.output_grads`.

    Raises:
        TypeError, ValueError: as `gf.quantities.output_grads`.

    Example:
        >>> import torch, gradfunc as gf
        >>> x = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
        >>> gf.quantities.token_norms(lambda p, x: p["w"] * x, {"w": torch.ones(())}, x)
        tensor([[3., 0.],
                [0., 4.]])
    """
    call = "gf.quantities.token_norms(losses, params, batch)"
    each, _ = by_output(call, losses, lambda out, k: out[k], params, batch, options)
    return torch.stack([g.norms() for g in each], 1)
