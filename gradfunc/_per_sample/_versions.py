"""Tensors beside the versions that they had: whether any was changed in place since."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

Versions = tuple[tuple[Tensor, int], ...]


def versions(tensors: Iterable[Tensor]) -> Versions:
    """As they are now."""
    return tuple((tensor, tensor._version) for tensor in tensors)


def changed(before: Versions) -> bool:
    """Whether any of them is at another version now."""
    return any(tensor._version != version for tensor, version in before)
