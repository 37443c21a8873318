"""What rules remember: one tensor a parameter, in the precision in which it accumulates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..._errors import message
from ..._tree import Tensors, wide


def zeros(params: Mapping[str, Tensor]) -> Tensors:
    """Beside each parameter; float32 for half types, whose squares and small steps would be lost."""
    return {k: torch.zeros_like(v, dtype=wide(v.dtype), requires_grad=False) for k, v in params.items()}


def picked(stage: object, entries: Mapping[str, Any], names: Iterable[str]) -> list[Any]:
    """Those of these names.

    Raises:
        ValueError: a gradient that the state knows nothing of.
    """
    if missing := [name for name in names if name not in entries]:
        call, do = f"{stage!r}.update(grads, state)", "Start from init(params) of the parameters themselves."
        raise ValueError(message(call, got=f"gradients of {missing}", expected=f"some of {list(entries)}", do=do))
    return [entries[name] for name in names]


def put(entries: Mapping[str, Any], names: Iterable[str], values: Iterable[Any]) -> dict[str, Any]:
    """The entries with these new ones; others stay as they are."""
    return {**entries, **dict(zip(names, values, strict=True))}


def dense(values: Iterable[Tensor]) -> list[Tensor]:
    """Row-major, so that tensors of one shape are in one order of memory."""
    return [value.contiguous() for value in values]


def typed(values: Iterable[Tensor], like: Iterable[Tensor]) -> list[Tensor]:
    """In the dtypes of others."""
    return [value.to(other.dtype) for value, other in zip(values, like, strict=True)]
