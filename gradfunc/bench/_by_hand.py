"""Rows by `vmap(grad)`, or a loop, as one would write them without gradfunc."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap

from .._tree import Tensors
from ._workload import Case


def rows(case: Case, start: int = 0, stop: int | None = None) -> Tensors:
    """The gradients of samples start to stop: `{name: [B, *shape]}`."""
    batch = [tensor[start:stop] for tensor in case.batch]
    rows_of = vmap(grad(case.plain_loss), in_dims=(None, *[0] * len(batch)), randomness="different")
    out: Tensors = rows_of(case.model.params, *batch)
    return out


def looped(case: Case, start: int = 0, stop: int | None = None) -> Tensors:
    """The same by one backward pass a sample, for a model that does not run under vmap."""
    leaves = {name: value.detach().requires_grad_() for name, value in case.model.params.items()}
    options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    found = [
        torch.autograd.grad(case.plain_loss(leaves, *sample), list(leaves.values()), **options)
        for sample in zip(*[tensor[start:stop] for tensor in case.batch], strict=True)
    ]
    return {name: torch.stack(parts) for name, parts in zip(leaves, zip(*found, strict=True), strict=True)}


def answer(quantity: str, grads: Tensors, max_norm: float) -> Any:
    """A quantity of rows that are held."""
    if quantity == "materialise":
        return grads
    if quantity == "gram":
        return gram(grads, grads)
    found = norms(grads)
    return found if quantity == "norms" else weighted_sum(grads, clip_factors(found, max_norm))


def norms(grads: Mapping[str, Tensor]) -> Tensor:
    """Of each row over all parameters, `[B]`."""
    parts = torch.stack([torch.linalg.vector_norm(_flat(value), dim=1) for value in grads.values()])
    out: Tensor = torch.linalg.vector_norm(parts, dim=0)
    return out


def gram(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Tensor:
    """Inner products of rows, `[B, B']`."""
    return torch.stack([_flat(value) @ _flat(right[name]).T for name, value in left.items()]).sum(0)


def clip_factors(norms: Tensor, max_norm: float) -> Tensor:
    """`min(1, max_norm / norm)`, and 1 for a norm of 0."""
    return (max_norm / norms).clamp(max=1)


def weighted_sum(grads: Mapping[str, Tensor], c: Tensor) -> Tensors:
    """`sum_i c[i] g_i`, `{name: tensor}`."""
    return {name: torch.tensordot(c, value, dims=1) for name, value in grads.items()}


def _flat(rows: Tensor) -> Tensor:
    """A row a sample, also of numbers."""
    return rows.reshape(len(rows), -1)
