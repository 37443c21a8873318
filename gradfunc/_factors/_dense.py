"""Rows as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._tree import At, wide
from ._blocks import fitting, slack, spans
from ._factor import Method, Terms


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
    def features(self) -> tuple[int, ...]:
        """None: rows of one shape can always be added."""
        return ()

    @property
    def dtype(self) -> torch.dtype:
        """The values', float32 for the half types."""
        return wide(self.values.dtype)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The rows."""
        return (self.values,)

    @property
    def reads(self) -> int:
        """A row."""
        return math.prod(self.shape)

    def select(self, at: At) -> Dense:
        """Some of the rows."""
        return Dense(self.values[at if isinstance(at, slice) else at.to(self.values.device)])

    def mapped(self, fn: Callable[[Tensor], Tensor]) -> Dense:
        """Other rows."""
        return Dense(fn(self.values))

    def dense(self) -> Tensor:
        """The rows themselves."""
        return self.values

    def pieces(self, width: int) -> Iterator[tuple[slice, Tensor]]:
        """Columns of the rows."""
        flat = self._flat
        return ((at, flat[:, at].to(self.dtype)) for at in spans(flat.shape[1], width))

    def method(self, scratch: int) -> Method:
        """One pass over the rows."""
        entries = self.values.numel()
        return Method("dense", 2 * entries, entries * self.values.element_size(), "rows are held as they are")

    def squares(self, scratch: int) -> Terms:
        """Sum of squares of each row."""
        flat = self._flat
        value = torch.linalg.vector_norm(flat, dim=1, dtype=self.dtype).square()
        return Terms(value, torch.full_like(value, slack(self.dtype, flat.shape[1])))

    def gram(self, other: Dense, scratch: int, *, by_rows: bool = False) -> Terms:
        """One product, some columns at a time where types must be widened."""
        dtype = torch.promote_types(self.dtype, other.dtype)
        width = math.prod(self.shape)
        if not self.values.dtype == other.values.dtype == dtype:
            width = fitting(scratch, self.size + other.size)
        value = self.values.new_zeros(self.size, other.size, dtype=dtype)
        for at in spans(math.prod(self.shape), width):
            value.addmm_(self._flat[:, at].to(dtype), other._flat[:, at].to(dtype).T)
        return Terms(value)

    def dots(self, directions: Tensor, scratch: int) -> Tensor:
        """One product."""
        v = directions.reshape(len(directions), math.prod(self.shape)).to(self.dtype)
        return torch.cat([rows @ v.T for rows in self._blocks(scratch)])

    def weighted_sum(self, c: Tensor | None, scratch: int) -> Tensor:
        """One product of a vector and a matrix."""
        if c is None:
            return self.values.sum(0, dtype=self.dtype)
        if self.values.dtype == self.dtype:
            return (c.to(self.dtype) @ self._flat).reshape(self.shape)
        out = self.values.new_zeros(math.prod(self.shape), dtype=self.dtype)
        for rows, part in zip(self._blocks(scratch), c.to(self.dtype).split(self._step(scratch)), strict=True):
            out += part @ rows
        return out.reshape(self.shape)

    @property
    def _flat(self) -> Tensor:
        return self.values.reshape(self.size, math.prod(self.shape))

    def _step(self, scratch: int) -> int:
        whole = self.values.dtype == self.dtype
        return max(1, self.size if whole else fitting(scratch, math.prod(self.shape)))

    def _blocks(self, scratch: int) -> Iterator[Tensor]:
        return (rows.to(self.dtype) for rows in self._flat.split(self._step(scratch)))
