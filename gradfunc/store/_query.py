"""Questions about rows, streamed: some rows at a time, widened in one place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._errors import check_int, message
from .._factors import Gradients
from .._tree import At
from . import _gradients as gradients
from ._ids import Named
from ._ids import at as ids_at
from ._view import BLOCK, View

# Rows `[q, size]`; for factored gradients, those of some queries at a time.
Queries = Tensor | Sequence[tuple[At, Gradients]]


@dataclass(frozen=True, eq=False)
class TopK:
    """The k largest inner products of each query, the largest first; of equal ones that of the earlier row.

    Attributes:
        values: `[q, k]`.
        ids: of samples, `[q, k]`; an array of numpy's where they are strings.
        positions: of rows in the store, `[q, k]`.
    """

    values: Tensor
    ids: Named
    positions: Tensor


def dot(view: View, queries: Queries, count: int) -> Tensor:
    """`[n, q]`."""
    out = torch.empty(len(view), count, dtype=view.dtype)
    for at, found in _products(view, queries, count):
        out[at] = found.T
    return out


def top_k(call: str, view: View, queries: Queries, count: int, k: int) -> TopK:
    """One pass over all rows; beside a block there are `[q, block + k]` numbers."""
    check_k(call, view, k)
    values = torch.full((count, 0), 0.0, dtype=view.dtype)
    positions = torch.empty(count, 0, dtype=torch.int64)
    for at, found in _products(view, queries, count):
        # most blocks change little: only queries whose k largest change are sorted
        is_open = values.shape[1] < k
        asked = torch.arange(count) if is_open else (found > values[:, -1:]).any(1).nonzero()[:, 0]
        if not len(asked):
            continue
        here = torch.arange(at.start, at.stop).expand(len(asked), -1)
        # earlier rows first, and a stable sort: of equal ones the earlier stays in front
        both = torch.cat([values[asked], found[asked]], 1)
        order = both.sort(dim=1, descending=True, stable=True).indices[:, :k]
        where = torch.cat([positions[asked], here], 1).gather(1, order)
        if is_open:
            values, positions = both.gather(1, order), where
        else:
            values[asked], positions[asked] = both.gather(1, order), where
    return TopK(values, ids_at(view.ids(), positions), positions)


def _products(view: View, queries: Queries, count: int) -> Iterator[tuple[slice, Tensor]]:
    """Inner products of the queries with some rows at a time, `[q, b]`."""
    if isinstance(queries, Tensor):
        for at, rows in view.blocks():
            yield at, queries @ rows.T
        return
    for at, own in gradients.blocks(view):
        found = torch.empty(count, at.stop - at.start, dtype=view.dtype)
        for where, asked in queries:
            found[where] = gradients.inner(own, asked, view.dtype).T
        yield at, found


def check_k(call: str, view: View, k: int) -> None:
    """Raise unless there are so many rows."""
    check_int(call, "k", k, 1)
    if k > len(view):
        raise ValueError(message(call, got=f"k={k}", expected=f"at most the {len(view)} rows of the store"))


def gram_blocks(left: View, right: View, block: int = BLOCK) -> Iterator[tuple[slice, slice, Tensor]]:
    """`(i, j, rows[i] rows[j]^T)` for all pairs; of one store with itself those with j.start >= i.start."""
    same = left is right
    if left.manifest.is_factored:
        for i, mine in gradients.blocks(left, block):
            for j, theirs in gradients.blocks(right, block, i.start if same else 0):
                yield i, j, gradients.inner(mine, mine if same and i == j else theirs, left.dtype)
        return
    for i, rows in left.blocks(block=block):
        for j, others in right.blocks(start=i.start if same else 0, block=block):
            yield i, j, rows @ others.to(rows.dtype).T


def gram(left: View, right: View) -> Tensor:
    """`[n, m]`."""
    out = torch.empty(len(left), len(right), dtype=left.dtype)
    for i, j, block in gram_blocks(left, right):
        out[i, j] = block
        if left is right:
            out[j, i] = block.T
    return out
