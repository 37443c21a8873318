"""Gradients of a stack of matrices, each of which some positions meet: experts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._tree import At, wide
from ._factor import Method, Terms
from ._outer import Outer
from ._products import gram_by_pieces


@dataclass(frozen=True, eq=False)
class Grouped:
    """`index: [B, T]`, `x: [B, T, I]`, `g: [B, T, O]`: matrix `index[b, t]` of a stack `[E, O, I]` gets `g_bt^T x_bt`.

    The stack is viewed as `shape`. To each matrix it is an outer product of the positions that meet it.
    """

    index: Tensor
    x: Tensor
    g: Tensor
    shape: tuple[int, ...]
    kind: ClassVar[str] = "grouped"

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.x)

    @property
    def features(self) -> tuple[int, int]:
        """`(I, O)`."""
        return self.x.shape[2], self.g.shape[2]

    @property
    def count(self) -> int:
        """Number of matrices, E."""
        entries = math.prod(self.features)
        return math.prod(self.shape) // entries if entries else 0

    @property
    def dtype(self) -> torch.dtype:
        """That of a product of both halves, float32 for the half types."""
        return wide(torch.promote_types(self.x.dtype, self.g.dtype))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The index and both halves."""
        return (self.index, self.x, self.g)

    @property
    def reads(self) -> int:
        """Both halves of a row, and where it belongs."""
        return self.x.shape[1] * (self.x.shape[2] + self.g.shape[2] + 1)

    def select(self, at: At) -> Grouped:
        """Some of the samples."""
        at = at if isinstance(at, slice) else at.to(self.x.device)
        return self.mapped(lambda tensor: tensor[at])

    def mapped(self, fn: Callable[[Tensor], Tensor]) -> Grouped:
        """The same with other tensors."""
        return Grouped(fn(self.index), fn(self.x), fn(self.g), self.shape)

    def dense(self) -> Tensor:
        """One product a sample and matrix."""
        out = torch.zeros(self.size, self.count, *self.features[::-1], dtype=self.dtype, device=self.x.device)
        for e, met in self._matrices():
            out[:, e] = met.dense()
        return out.reshape(self.size, *self.shape)

    def pieces(self, width: int) -> Iterator[tuple[slice, Tensor]]:
        """Those of one matrix after the other."""
        each = math.prod(self.features)
        for e, met in self._matrices(every=True):
            for at, rows in met.pieces(width):
                yield slice(e * each + at.start, e * each + at.stop), rows

    def method(self, scratch: int) -> Method:
        """As of an outer product of the positions that meet a matrix, were they as many for each."""
        t = -(-self.x.shape[1] // max(1, self.count))
        found = Outer(self.x[:, :t], self.g[:, :t], (self.features[1], self.features[0])).method(scratch)
        why = f"each of {self.count} matrices: {found.why}"
        return Method(found.name, self.count * found.flops, self.count * found.bytes, why)

    def squares(self, scratch: int) -> Terms:
        """The sum of those of each matrix."""
        value, magnitude = (self.x.new_zeros(self.size, dtype=self.dtype) for _ in range(2))
        for _, met in self._matrices():
            term = met.squares(scratch)
            value += term.value
            magnitude += term.value.abs() if term.magnitude is None else term.magnitude
        return Terms(value, magnitude)

    def gram(self, other: Grouped, scratch: int, *, by_rows: bool = False) -> Terms:
        """Products of rows, some entries of one matrix at a time."""
        return gram_by_pieces(self, other, scratch)

    def dots(self, directions: Tensor, scratch: int) -> Tensor:
        """The sum of those of each matrix."""
        v = directions.reshape(len(directions), self.count, *self.features[::-1])
        out = self.x.new_zeros(self.size, len(directions), dtype=self.dtype)
        for e, met in self._matrices():
            out += met.dots(v[:, e], scratch)
        return out

    def weighted_sum(self, c: Tensor | None, scratch: int) -> Tensor:
        """One product a matrix, over the positions that meet it."""
        out = torch.zeros(self.count, *self.features[::-1], dtype=self.dtype, device=self.x.device)
        for e, met in self._matrices():
            out[e] = met.weighted_sum(c, scratch)
        return out.reshape(self.shape)

    def _matrices(self, *, every: bool = False) -> Iterator[tuple[int, Outer]]:
        """Each matrix that a position meets, or each at all, and what its gradient is made of."""
        inputs, outputs = self.features
        for e in range(self.count):
            meets = self.index == e
            most = int(meets.sum(1).max()) if meets.numel() else 0
            if not most and not every:
                continue
            order = meets.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most, None]
            x, g = (half.gather(1, order.expand(-1, -1, half.shape[2])) for half in (self.x, self.g))
            own = meets.gather(1, order[..., 0])[..., None]
            yield e, Outer(x.masked_fill(~own, 0), g.masked_fill(~own, 0), (outputs, inputs))
