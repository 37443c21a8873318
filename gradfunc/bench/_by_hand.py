"""Rows by `vmap(grad)` as one would write them without gradfunc."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from .._tree import Tensors
from ._workload import Case


def rows(case: Case, start: int = 0, stop: int | None = None) -> Tensors:
    """The gradients of samples start to stop: `{name: [B, *shape]}`."""

    def loss(params: Tensors, *sample: Tensor) -> Tensor:
        *inputs, target = (tensor.unsqueeze(0) for tensor in sample)
        output = functional_call(case.module, params, tuple(inputs))
        out: Tensor = case.workload.criterion(output, target, reduction="sum")
        return out

    batch = [tensor[start:stop] for tensor in case.batch]
    out: Tensors = vmap(grad(loss), in_dims=(None, *[0] * len(batch)))(case.model.params, *batch)
    return out


def norms(grads: Mapping[str, Tensor]) -> Tensor:
    """Of each row over all parameters, `[B]`."""
    parts = torch.stack([torch.linalg.vector_norm(value.flatten(1), dim=1) for value in grads.values()])
    out: Tensor = torch.linalg.vector_norm(parts, dim=0)
    return out


def gram(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Tensor:
    """Inner products of rows, `[B, B']`."""
    return torch.stack([value.flatten(1) @ right[name].flatten(1).T for name, value in left.items()]).sum(0)


def clip_factors(norms: Tensor, max_norm: float) -> Tensor:
    """`min(1, max_norm / norm)`, and 1 for a norm of 0."""
    return (max_norm / norms).clamp(max=1)


def weighted_sum(grads: Mapping[str, Tensor], c: Tensor) -> Tensors:
    """`sum_i c[i] g_i`, `{name: tensor}`."""
    return {name: torch.tensordot(c, value, dims=1) for name, value in grads.items()}
