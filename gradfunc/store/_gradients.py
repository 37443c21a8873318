"""Factors on disk as gradients: a source of rows, some of them read at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _factors
from .._engines import Block
from .._factors import Gradient, Gradients
from .._per_sample import PerSampleGrads, factors_of, from_source
from .._tree import At, Tensors, at_positions
from ._columns import Part
from ._kinds import factor_of
from ._layout import LOSSES, WEIGHTS, group_of
from ._manifest import Manifest
from ._view import BLOCK, View

# Bytes of factors that are held at a time, their entries padded to as many for each row; one row always is.
_HELD = 2**26


@dataclass(frozen=True, eq=False)
class StoredSource:
    """The rows of a view, whose losses and weights are known, `[n]` each."""

    view: View
    losses: Tensor
    weights: Tensor

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.view)

    def plan(self, chunk: int) -> list[At]:
        """Stretches of one shard, of rows that are not much longer than others."""
        return list(stretches(self.view, chunk))

    def rows(self, at: At) -> Block:
        """Read."""
        where = at_positions(at)
        part = self.view.part(where) if len(where) else Part(0, {})
        return self.values(at)._replace(grads=gradients(part, self.view.manifest))

    def values(self, at: At) -> Block:
        """Losses and weights."""
        return Block({}, self.losses[at], self.weights[at])

    def unused(self, at: At) -> Tensor:
        """Parameters of which nothing is kept."""
        found = self.rows(at).grads
        return torch.stack([_factors.norms({name: g}) == 0 for name, g in found.items()], 1)


def value_of(view: View) -> PerSampleGrads:
    """All gradients of a view; nothing but losses and weights is read."""
    like = torch.empty((), dtype=torch.float64)
    losses, weights = (view.column(name, like) for name in (LOSSES, WEIGHTS))
    return from_source(StoredSource(view, losses, weights), shapes_of(view.manifest), losses, weights, "store")


def shapes_of(manifest: Manifest) -> Tensors:
    """What parameters look like: tensors of one entry each."""
    return {
        name: torch.empty((), dtype=getattr(torch, dtype)).expand(shape)
        for name, (shape, dtype) in (manifest.parameters or {}).items()
    }


def gradients(part: Part, manifest: Manifest) -> Gradients:
    """The rows of a part, a parameter whose rows are kept in part as factors and in part as they are being formed."""
    found = {}
    for name, like in shapes_of(manifest).items():
        groups = [
            (facts, part.ragged.get(group_of(name, key))) for key, facts in manifest.factors.get(name, {}).items()
        ]
        factors = [factor_of(facts, own, tuple(like.shape)) for facts, own in groups if own and bool(own.lengths.any())]
        found[name] = Gradient.of(like, part.count, factors)
    return found


def stretches(view: View, most: int = BLOCK, start: int = 0) -> Iterator[slice]:
    """Rows from `start` on, at most so many at a time, of one shard, whose padded factors are held at once."""
    for first, shard in zip(view.starts, view.shards, strict=False):
        for low in range(0, shard.part.count, most):
            for at in _cut(shard.part, low, min(low + most, shard.part.count)):
                if first + at.start >= start:
                    yield slice(first + at.start, first + at.stop)


def blocks(view: View, most: int = BLOCK, start: int = 0) -> Iterator[tuple[slice, Gradients]]:
    """The same with their gradients."""
    for at in stretches(view, most, start):
        yield at, gradients(view.part(at_positions(at)), view.manifest)


def _cut(part: Part, low: int, high: int) -> Iterator[slice]:
    """Halves of a stretch, until each fits."""
    each = [
        (own.lengths[low:high], sum(t[:1].numel() * t.element_size() for t in own.tensors.values()))
        for own in part.ragged.values()
    ]
    padded = (high - low) * sum(int(lengths.max()) * size for lengths, size in each)
    if padded <= _HELD or high - low <= 1:
        yield slice(low, high)
    else:
        middle = (low + high) // 2
        yield from _cut(part, low, middle)
        yield from _cut(part, middle, high)


def formed(rows: Gradients, dtype: torch.dtype) -> Tensor:
    """Rows one parameter behind the other, `[B, size]`."""
    flat = [gradient.dense().reshape(gradient.size, gradient.like.numel()) for gradient in rows.values()]
    return torch.cat([part.to(dtype) for part in flat], 1)


def asked(queries: Tensor | PerSampleGrads, manifest: Manifest) -> list[tuple[At, Gradients]]:
    """Queries as gradients on the CPU: their factors, or rows `[q, size]`."""
    if isinstance(queries, PerSampleGrads):
        with torch.no_grad():
            return [(at, _factors.mapped(rows, lambda t: t.cpu())) for at, rows in factors_of(queries, "dot")]
    shapes = shapes_of(manifest)
    parts = queries.split([like.numel() for like in shapes.values()], 1)
    rows = {name: part.reshape(-1, *like.shape) for (name, like), part in zip(shapes.items(), parts, strict=True)}
    return [(slice(0, len(queries)), _factors.from_rows(rows))]


def inner(left: Gradients, right: Gradients, dtype: torch.dtype) -> Tensor:
    """Inner products of rows, `[B, B']`, by factors."""
    found = list(_factors.gram(left, right).values())
    return torch.stack([value.to(dtype) for value in found]).sum(0)
