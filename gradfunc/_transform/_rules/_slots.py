"""What rules remember: one tensor a parameter, in the precision in which it accumulates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor


def put(entries: Mapping[str, Any], names: Iterable[str], values: Iterable[Any]) -> dict[str, Any]:
    """The entries with these new ones; others stay as they are."""
    return {**entries, **dict(zip(names, values, strict=True))}


def dense(values: Iterable[Tensor]) -> list[Tensor]:
    """Row-major, so that tensors of one shape are in one order of memory."""
    return [value.contiguous() for value in values]


def typed(values: Iterable[Tensor], like: Iterable[Tensor]) -> list[Tensor]:
    """In the dtypes of others."""
    return [value.to(other.dtype) for value, other in zip(values, like, strict=True)]
