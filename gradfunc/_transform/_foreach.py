"""Arithmetic on lists of tensors, a list in one kernel where torch can; results are what the functions return.

Names that end in "_" may write to their first list, which must be the caller's own. Inside a transform of torch.func,
for which torch has no such kernels, each tensor is computed by itself and nothing is written.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._swap import levels

HALF = (torch.float16, torch.bfloat16)


def multiply(values: list[Tensor], factor: float) -> list[Tensor]:
    """Every entry times a number."""
    return list(torch._foreach_mul(values, factor)) if _at_once(values) else [value * factor for value in values]


def multiply_(values: list[Tensor], factor: float) -> list[Tensor]:
    """Every entry times a number; rounded once, as out of place (`_foreach_mul_` of half types rounds the number)."""
    if not _at_once(values):
        return [value * factor for value in values]
    if any(value.dtype in HALF for value in values):
        return [value.mul_(factor) for value in values]
    torch._foreach_mul_(values, factor)
    return values


def add(values: list[Tensor], others: list[Tensor], alpha: float) -> list[Tensor]:
    """Plus `alpha` times others, in the dtypes of the first."""
    if _at_once(values, others):
        return list(torch._foreach_add(values, others, alpha=alpha))
    return [value.add(other.to(value.dtype), alpha=alpha) for value, other in zip(values, others, strict=True)]


def add_(values: list[Tensor], others: list[Tensor], alpha: float) -> list[Tensor]:
    """The same."""
    if not _at_once(values, others):
        return add(values, others, alpha)
    torch._foreach_add_(values, others, alpha=alpha)
    return values


def lerp(values: list[Tensor], others: list[Tensor], weight: float) -> list[Tensor]:
    """`values + weight (others - values)`, of others in the same dtypes."""
    if _at_once(values):
        return list(torch._foreach_lerp(values, others, weight))
    return [value.lerp(other, weight) for value, other in zip(values, others, strict=True)]


def lerp_(values: list[Tensor], others: list[Tensor], weight: float) -> list[Tensor]:
    """The same."""
    if not _at_once(values):
        return lerp(values, others, weight)
    torch._foreach_lerp_(values, others, weight)
    return values


def _at_once(values: list[Tensor], others: list[Tensor] | None = None) -> bool:
    """Whether there is anything, and torch has a kernel for lists of it."""
    if not values or levels():
        return False
    return others is None or all(a.dtype == b.dtype for a, b in zip(values, others, strict=True))
