"""Vector-Jacobian products of one sample after the other, batched where torch can."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def vjp(outputs: list[Any], leaves: list[Tensor], rows: list[Tensor]) -> list[Tensor | None]:
    """Cotangents `[B, *output]` of graph edges, as rows `[B, *leaf]`; None for a leaf that no output depends on."""

    def one(cotangents: list[Tensor], *, batched: bool) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(
            outputs, leaves, cotangents, is_grads_batched=batched, retain_graph=True, allow_unused=True
        )

    try:
        with unhurried():
            return [None if grad is None else dense(grad) for grad in one(rows, batched=True)]
    except (RuntimeError, NotImplementedError):  # no batching rule on the way
        each = [one([r[b] for r in rows], batched=False) for b in range(len(rows[0]))]
    return [
        None if column[0] is None else torch.stack([dense(grad) for grad in column if grad is not None])
        for column in zip(*each, strict=True)
    ]


@contextmanager
def unhurried() -> Iterator[None]:
    """Without torch's warning that an operator has no batching rule: a generic way is slow, which `explain()` says."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop because we have not yet implemented")
        yield


def dense(grad: Tensor) -> Tensor:
    """Sparse gradients, such as of embeddings, as plain ones."""
    return grad if grad.layout == torch.strided else grad.to_dense()
