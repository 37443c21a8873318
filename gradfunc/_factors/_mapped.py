"""Rows entry by entry through a function, formed some samples at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor

from .._tree import At, count, weighed, wide
from ._blocks import fitting, slack, spans
from ._factor import Factor, Method, Terms

Entrywise = Callable[[Tensor], Tensor]


def as_they_are(values: Tensor) -> Tensor:
    """The function of what is scaled alone."""
    return values


class Inner(Protocol):
    """What is mapped: the rows of one parameter (a `Gradient`, which is made of factors such as this)."""

    @property
    def like(self) -> Tensor:
        """What a row looks like."""

    @property
    def size(self) -> int:
        """Number of samples."""

    @property
    def factors(self) -> tuple[Factor, ...]:
        """Its own."""

    def select(self, at: At) -> Self:
        """Some of the samples."""

    def mapped(self, fn: Callable[[Tensor], Tensor]) -> Self:
        """The same on other tensors."""

    def dense(self) -> Tensor:
        """Every row."""


@dataclass(frozen=True, eq=False)
class Mapped:
    """Row b is `fn(c[b] times row b of inner)`; `fn` acts on every entry alone. `c` is `[B]`, None for ones.

    Nothing is formed until it is asked, and then as many samples at once as fit into the scratch budget.
    """

    inner: Inner
    c: Tensor | None
    fn: Entrywise
    kind: ClassVar[str] = "mapped"

    @property
    def size(self) -> int:
        """Number of samples."""
        return self.inner.size

    @property
    def shape(self) -> tuple[int, ...]:
        """The value's."""
        return tuple(self.inner.like.shape)

    @property
    def features(self) -> tuple[object, ...]:
        """What is joined has one function."""
        return (self.fn, *self.shape)

    @property
    def dtype(self) -> torch.dtype:
        """The accumulation dtype."""
        return wide(self.inner.like.dtype)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What is held."""
        held = [tensor for factor in self.inner.factors for tensor in factor.tensors]
        return (*held, self.inner.like)

    @property
    def reads(self) -> int:
        """A row, and what forms it."""
        return self._entries + sum(factor.reads for factor in self.inner.factors)

    def select(self, at: At) -> Mapped:
        """Some of the samples."""
        c = self.c
        if c is not None:
            c = c[at if isinstance(at, slice) else at.to(c.device)]
        return Mapped(self.inner.select(at), c, self.fn)

    def mapped(self, fn: Callable[[Tensor], Tensor]) -> Mapped:
        """The same on other tensors."""
        return Mapped(self.inner.mapped(fn), self.c, self.fn)

    def dense(self) -> Tensor:
        """All rows."""
        rows = self.inner.dense()
        return self.fn(rows if self.c is None else weighed(rows, self.c))

    def pieces(self, width: int) -> Iterator[tuple[slice, Tensor]]:
        """Columns of the rows, which are formed for it."""
        flat = self.dense().reshape(self.size, self._entries).to(self.dtype)
        return ((at, flat[:, at]) for at in spans(self._entries, width))

    def method(self, scratch: int) -> Method:
        """Rows are formed."""
        entries = self.size * self._entries
        return Method("rows", 2 * entries, 2 * entries * self.dtype.itemsize, "a function of every entry needs entries")

    def squares(self, scratch: int) -> Terms:
        """Sum of squares of each row."""
        parts = [torch.linalg.vector_norm(rows, dim=1).square() for _, rows in self._blocks(scratch)]
        value = self._joined(parts, 0)
        return Terms(value, torch.full_like(value, slack(self.dtype, self._entries)))

    def gram(self, other: Mapped, scratch: int, *, by_rows: bool = False) -> Terms:
        """Products of blocks of rows."""
        parts = []
        for _, rows in self._blocks(scratch // 2):
            parts.append(self._joined([rows @ theirs.to(rows).T for _, theirs in other._blocks(scratch // 2)], 1))
        return Terms(self._joined(parts, 0, other.size))

    def dots(self, directions: Tensor, scratch: int) -> Tensor:
        """Products with blocks of rows."""
        v = directions.reshape(len(directions), self._entries).to(self.dtype)
        return self._joined([rows @ v.T for _, rows in self._blocks(scratch)], 0, len(v))

    def weighted_sum(self, c: Tensor | None, scratch: int) -> Tensor:
        """Sums of blocks of rows."""
        total = self.inner.like.new_zeros(self._entries, dtype=self.dtype)
        for at, rows in self._blocks(scratch):
            total = total + (rows.sum(0) if c is None else c[at].to(self.dtype) @ rows)
        return total.reshape(self.shape)

    @property
    def _entries(self) -> int:
        return math.prod(self.shape)

    def _blocks(self, scratch: int) -> Iterator[tuple[slice, Tensor]]:
        """`[b, entries]` in the accumulation dtype."""
        for at in spans(self.size, fitting(scratch, 2 * self._entries)):
            part = self.select(at)
            yield at, part.dense().reshape(count(at), self._entries).to(self.dtype)

    def _joined(self, parts: list[Tensor], dim: int, *shape: int) -> Tensor:
        return torch.cat(parts, dim) if parts else self.inner.like.new_zeros((0, *shape), dtype=self.dtype)
