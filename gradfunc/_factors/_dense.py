"""Rows as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._tree import At, wide


@dataclass(frozen=True, eq=False)
class Dense:
    """`values`, `[B, *shape]`: biases, affine parameters of norms, and whatever has no structure."""

    values: Tensor
    kind: ClassVar[str] = "dense"

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """The value's."""
        return tuple(self.values.shape[1:])

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The rows."""
        return (self.values,)

    def select(self, at: At) -> Dense:
        """Some of the rows."""
        return Dense(self.values[at])

    def dense(self) -> Tensor:
        """The rows themselves."""
        return self.values

    def squared_norms(self, scratch: int) -> Tensor:
        """Sum of squares of each row."""
        return torch.linalg.vector_norm(self._flat(), dim=1).square()

    def gram(self, other: Dense, scratch: int) -> Tensor:
        """One product."""
        return self._flat() @ other._flat().T

    def dots(self, directions: Tensor, scratch: int) -> Tensor:
        """One product."""
        flat = self._flat()
        return flat @ directions.reshape(len(directions), -1).to(flat.dtype).T

    def weighted_sum(self, c: Tensor | None) -> Tensor:
        """One product of a vector and a matrix."""
        if c is None:
            return self.values.sum(0, dtype=wide(self.values.dtype))
        flat = self._flat()
        return (c.to(flat.dtype) @ flat).reshape(self.shape)

    def _flat(self) -> Tensor:
        return self.values.reshape(self.size, self.values[:1].numel() if self.size else 0).to(wide(self.values.dtype))
