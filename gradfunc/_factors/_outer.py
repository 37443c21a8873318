"""Products of what came in and what came back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._tree import At, wide
from ._blocks import fitting, flat_pair, spans
from ._factor import Method, Terms
from ._products import choose, gram_by_pieces, gram_by_positions, squares_by_gram, squares_by_rows


@dataclass(frozen=True, eq=False)
class Outer:
    """`x: [B, T, I]` and `g: [B, T, O]`: row b is `g_b^T x_b`, `[O, I]` viewed as `shape`."""

    x: Tensor
    g: Tensor
    shape: tuple[int, ...]
    kind: ClassVar[str] = "outer"

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.x)

    @property
    def features(self) -> tuple[int, int]:
        """`(I, O)`."""
        return self.x.shape[2], self.g.shape[2]

    @property
    def dtype(self) -> torch.dtype:
        """That of a product of both, float32 for the half types."""
        return wide(torch.promote_types(self.x.dtype, self.g.dtype))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Both halves."""
        return (self.x, self.g)

    @property
    def reads(self) -> int:
        """Both halves of a row."""
        return self.x.shape[1] * (self.x.shape[2] + self.g.shape[2])

    def select(self, at: At) -> Outer:
        """Some of the samples."""
        at = at if isinstance(at, slice) else at.to(self.x.device)
        return Outer(self.x[at], self.g[at], self.shape)

    def mapped(self, fn: Callable[[Tensor], Tensor]) -> Outer:
        """Products of other halves."""
        return Outer(fn(self.x), fn(self.g), self.shape)

    def dense(self) -> Tensor:
        """One product a sample."""
        return (self.g.to(self.dtype).mT @ self.x.to(self.dtype)).reshape(self.size, *self.shape)

    def pieces(self, width: int) -> Iterator[tuple[slice, Tensor]]:
        """Some outputs at a time, all inputs of each where they fit."""
        inputs, outputs = self.features
        for o in spans(outputs, width // max(1, inputs)):
            g = self.g[:, :, o].to(self.dtype).mT
            for i in spans(inputs, max(width, 1)):
                start = o.start * inputs + i.start
                block = g @ self.x[:, :, i].to(self.dtype)
                yield slice(start, start + block.shape[1] * block.shape[2]), block.flatten(1)

    def method(self, scratch: int) -> Method:
        """The cheaper of products of positions and products of features."""
        return choose(self.size, self.x.shape[1], *self.features, self.x.element_size(), self.dtype)

    def squares(self, scratch: int) -> Terms:
        """Squared norms by that method."""
        if self.method(scratch).name == "gram":
            return squares_by_gram(self.x, self.g, self.dtype, scratch)
        return squares_by_rows(self.x, self.g, self.dtype, scratch)

    def gram(self, other: Outer, scratch: int, *, by_rows: bool = False) -> Terms:
        """The cheaper of products of positions, pair by pair, and products of rows, some entries at a time."""
        dtype = torch.promote_types(self.dtype, other.dtype)
        (inputs, outputs), t, u = self.features, self.x.shape[1], other.x.shape[1]
        pairs = self.size * other.size
        cost = (self.size * t + other.size * u + pairs) * inputs * outputs
        if (not by_rows or t == u == 1) and pairs * t * u * (inputs + outputs) <= cost:
            return gram_by_positions((self.x, self.g), (other.x, other.g), dtype, scratch, same=self is other)
        return gram_by_pieces(self, other, scratch)

    def dots(self, directions: Tensor, scratch: int) -> Tensor:
        """A few directions one after the other, many beside the rows, some entries at a time."""
        (inputs, outputs), t, k = self.features, self.x.shape[1], len(directions)
        flat = directions.reshape(k, outputs * inputs).to(self.dtype)
        out = self.x.new_zeros(self.size, k, dtype=self.dtype)
        if k * t > t + k + 32:  # the rows cost about as much to write as 32 products an entry
            for at, rows in self.pieces(fitting(scratch, self.size)):
                out.addmm_(rows, flat[:, at].T)
            return out
        each = t * (min(inputs, outputs) if self._is_wide else inputs + outputs)
        for b in spans(self.size, fitting(scratch, each)):
            x, g = self.x[b].to(self.dtype), self.g[b].to(self.dtype)
            for j, v in enumerate(flat.view(k, outputs, inputs)):
                product = (x @ v.T).mul_(g) if outputs <= inputs else (g @ v).mul_(x)
                out[b, j] = product.sum((1, 2))
        return out

    def weighted_sum(self, c: Tensor | None, scratch: int) -> Tensor:
        """One product over all samples and positions; the smaller half is scaled."""
        (inputs, outputs), t = self.features, self.x.shape[1]
        copied = 0 if c is None else t * min(inputs, outputs)
        copied = copied if self._is_wide else t * (inputs + outputs)
        step = fitting(scratch, copied) if copied else max(1, self.size)
        out: Tensor | None = None
        for b in spans(self.size, step):
            x, g = self.x[b].to(self.dtype), self.g[b].to(self.dtype)
            if c is not None:
                scale = c[b].to(self.dtype)[:, None, None]
                x, g = (x * scale, g) if inputs < outputs else (x, g * scale)
            x, g = flat_pair(x, g)
            out = g.T @ x if out is None else out.addmm_(g.T, x)
        if out is None:
            out = self.x.new_zeros(outputs, inputs, dtype=self.dtype)
        return out.reshape(self.shape)

    @property
    def _is_wide(self) -> bool:
        """Whether both halves are held in the accumulation dtype."""
        return self.x.dtype == self.g.dtype == self.dtype
