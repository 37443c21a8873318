"""Gradients that reach some rows of a matrix: embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._tree import At, wide
from ._blocks import fitting, flat_pair, slack, spans
from ._factor import Method, Terms


@dataclass(frozen=True, eq=False)
class Rows:
    """`index: [B, T]`, `g: [B, T, D]`: row `index[b, t]` of a matrix `[V, D]`, viewed as `shape`, gets `g[b, t]`."""

    index: Tensor
    g: Tensor
    shape: tuple[int, ...]
    kind: ClassVar[str] = "rows"

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.index)

    @property
    def features(self) -> tuple[int]:
        """`(D,)`."""
        return (self.g.shape[2],)

    @property
    def count(self) -> int:
        """Number of rows of the matrix, V."""
        d = self.g.shape[2]
        return math.prod(self.shape) // d if d else self.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """That of `g`, float32 for the half types."""
        return wide(self.g.dtype)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The index and what its rows receive."""
        return (self.index, self.g)

    @property
    def reads(self) -> int:
        """What arrives, and where."""
        return self.index.shape[1] * (self.g.shape[2] + 1)

    def select(self, at: At) -> Rows:
        """Some of the samples."""
        at = at if isinstance(at, slice) else at.to(self.g.device)
        return Rows(self.index[at], self.g[at], self.shape)

    def mapped(self, fn: Callable[[Tensor], Tensor]) -> Rows:
        """The same with other tensors."""
        return Rows(fn(self.index), fn(self.g), self.shape)

    def dense(self) -> Tensor:
        """Every row, those that receive nothing 0."""
        out = self.g.new_zeros(self.size * self.count, self.g.shape[2], dtype=self.dtype)
        first = torch.arange(self.size, device=self.g.device)[:, None] * self.count
        out.index_add_(0, (self.index + first).flatten(), self.g.flatten(0, 1).to(self.dtype))
        return out.reshape(self.size, *self.shape)

    def pieces(self, width: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The matrix rows that any sample uses, some at a time."""
        return self._over(self.index.unique(), width)

    def method(self, scratch: int) -> Method:
        """One pass over what arrives."""
        entries = self.g.numel()
        return Method(
            "rows", 3 * entries, 2 * entries * self.dtype.itemsize, "equal indices of a sample are added first"
        )

    def squares(self, scratch: int) -> Terms:
        """Squared norms of what each matrix row receives, equal indices of a sample added first."""
        t, d = self.g.shape[1:]
        value = self.g.new_zeros(self.size, dtype=self.dtype)
        for b in spans(self.size, fitting(scratch, t * d)):
            value[b] = torch.linalg.vector_norm(self._joined(b), dim=(1, 2)).square() if t * d else 0
        return Terms(value, torch.full_like(value, slack(self.dtype, t * d)))

    def gram(self, other: Rows, scratch: int, *, by_rows: bool = False) -> Terms:
        """The cheaper of products of positions, pair by pair, and products over the ids in use."""
        dtype = torch.promote_types(self.dtype, other.dtype)
        t, u = self.index.shape[1], other.index.shape[1]
        if not by_rows and t * u <= min(self.count, self.size * t + other.size * u):
            return self._gram_by_positions(other, dtype, scratch)
        out = self.g.new_zeros(self.size, other.size, dtype=dtype)
        used = torch.cat([self.index.flatten(), other.index.flatten()]).unique()
        width = fitting(scratch, self.size + other.size)
        for (_, rows), (_, others) in zip(self._over(used, width), other._over(used, width), strict=True):
            out.addmm_(rows.to(dtype), others.to(dtype).T)
        return Terms(out)

    def _gram_by_positions(self, other: Rows, dtype: torch.dtype, scratch: int) -> Terms:
        t, u = self.index.shape[1], other.index.shape[1]
        value, magnitude = (self.g.new_zeros(self.size, other.size, dtype=dtype) for _ in range(2))
        step = max(1, math.isqrt(max(1, scratch // 2) // max(1, t * u)))
        for b in spans(self.size, step):
            for c in spans(other.size, step):
                a = self.g[b].to(dtype).flatten(0, 1) @ other.g[c].to(dtype).flatten(0, 1).T
                equal = self.index[b].flatten()[:, None] == other.index[c].flatten()
                a = a.masked_fill_(~equal, 0.0).view(b.stop - b.start, t, c.stop - c.start, u)
                value[b, c] = a.sum((1, 3))
                magnitude[b, c] = torch.linalg.vector_norm(a, 1, dim=(1, 3))
        return Terms(value, magnitude)

    def dots(self, directions: Tensor, scratch: int) -> Tensor:
        """Each direction's rows, looked up."""
        t, d = self.g.shape[1:]
        v = directions.reshape(len(directions), self.count, d)
        out = self.g.new_zeros(self.size, len(directions), dtype=self.dtype)
        for b in spans(self.size, fitting(scratch, t * d)):
            for j in range(len(v)):
                out[b, j] = v[j][self.index[b]].to(self.dtype).mul_(self.g[b]).sum((1, 2))
        return out

    def weighted_sum(self, c: Tensor | None, scratch: int) -> Tensor:
        """Added into the matrix, some samples at a time where they are copied."""
        t, d = self.g.shape[1:]
        out = self.g.new_zeros(self.count, d, dtype=self.dtype)
        copied = c is not None or self.g.dtype != self.dtype
        for b in spans(self.size, fitting(scratch, t * d) if copied else max(1, self.size)):
            g = self.g[b].to(self.dtype)
            g = g if c is None else g * c[b].to(self.dtype)[:, None, None]
            index, g = flat_pair(self.index[b][..., None], g)
            out.index_add_(0, index[:, 0], g)
        return out.reshape(self.shape)

    def _over(self, used: Tensor, width: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows over some of the ids `used` (sorted, no id of `index` missing) at a time."""
        d = self.g.shape[2]
        ids, order = self.index.flatten().sort(stable=True)
        bounds = list(spans(len(used), width // max(1, d)))
        stops = (
            torch.searchsorted(ids, torch.stack([used[at.stop - 1] for at in bounds]), right=True).tolist()
            if bounds
            else []
        )
        for at, start, stop in zip(bounds, [0, *stops], stops, strict=False):
            entries, tall = order[start:stop], at.stop - at.start
            place = (entries // max(1, self.index.shape[1])) * tall + torch.searchsorted(used[at], ids[start:stop])
            for k in spans(d, max(1, width)):
                received = self.g[..., k].flatten(0, 1)[entries].to(self.dtype)
                block = received.new_zeros(self.size * tall, received.shape[1]).index_add_(0, place, received)
                columns = used[at, None] * d + torch.arange(k.start, k.stop, device=used.device)
                yield columns.flatten(), block.view(self.size, tall * received.shape[1])

    def _joined(self, b: slice) -> Tensor:
        """`[b, T, D]`: what arrives at equal indices of a sample added up, in as many places as there are indices."""
        index, t = self.index[b], self.index.shape[1]
        ids, order = index.sort(dim=1)
        rank = torch.zeros_like(ids)
        rank[:, 1:] = (ids[:, 1:] != ids[:, :-1]).cumsum(1)
        place = torch.empty_like(rank).scatter_(1, order, rank)
        place += torch.arange(len(index), device=index.device)[:, None] * t
        out = self.g.new_zeros(index.numel(), self.g.shape[2], dtype=self.dtype)
        out.index_add_(0, place.flatten(), self.g[b].flatten(0, 1).to(self.dtype))
        return out.view(len(index), t, self.g.shape[2])
