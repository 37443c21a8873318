"""What is asked of the gradients of a store: they are read some at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from .._errors import check_int, kind_of, message
from .._factors import Projection
from .._per_sample import PerSampleGrads
from . import _gradients, _index, _query
from ._asked import check_parameters, positions, queries_of
from ._error import refused
from ._query import Queries, TopK
from ._view import BLOCK, View


class Questions:
    """Rows of a view, asked. The base of `GradientStore`."""

    path: Path
    _view: View
    _projection: Projection | None

    def __len__(self) -> int:
        return len(self._view)

    def rows(self, at: slice | Sequence[int] | Tensor | None = None) -> Tensor:
        """Rows as they are on disk, bit by bit: `[m, size]`, copies. Factored gradients are formed, m x P.

        Args:
            at: positions; all of them by default.

        Raises:
            TypeError, IndexError: no positions of rows.
        """
        where = positions(f"{self._name}.rows(at)", at, len(self))
        if not self._view.manifest.is_factored:
            return self._view.rows(where)
        value = _gradients.value_of(self._view).select(where).materialize()
        return torch.cat([rows.reshape(len(where), math.prod(rows.shape[1:])) for rows in value.values()], 1)

    def gradients(self, at: slice | Sequence[int] | Tensor | None = None) -> PerSampleGrads:
        """Factored gradients as a value, with its losses and weights: everything that is asked of gradients.

        Each query reads factors some samples at a time; nothing is computed again, and no model is needed.

        Args:
            at: positions; all of them by default.

        Raises:
            TypeError, IndexError: no positions of rows.
            StoreError: a store of rows, which keeps no factors.

        Example:
            >>> import tempfile, torch, gradfunc as gf
            >>> model = gf.stateless(gf.models.mlp([20, 30, 5]))
            >>> f = gf.per_sample_grads(lambda p, x: model.sample(p, x).square().sum())
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     store = gf.store.GradientStore.create(folder, params=model.params, factored=True)
            ...     with store.writer() as w:
            ...         count = w.append(f(model.params, torch.eye(20)))
            ...     store.gradients().norms().equal(f(model.params, torch.eye(20)).norms())
            True
        """
        call = f"{self._name}.gradients(at)"
        if not self._view.manifest.is_factored:
            do = "GradientStore.create(path, params=..., factored=True) keeps them; store.rows() gives rows."
            got = f"a store of {dict(self._view.manifest.projection)}"
            raise refused(call, got=got, expected="one of factored gradients", do=do)
        value = _gradients.value_of(self._view)
        return value if at is None else value.select(positions(call, at, len(self)))

    def blocks(self, size: int = BLOCK) -> Iterator[tuple[slice, Tensor]]:
        """All rows, some at a time, as float32 (float64 for that): `(positions, [b, size])`; copy what is to be kept.

        Args:
            size: how many rows at most.
        """
        check_int(f"{self._name}.blocks(size)", "size", size, 1)
        if self._view.manifest.is_factored:
            blocks = _gradients.blocks(self._view, size)
            return ((at, _gradients.formed(rows, self._view.dtype)) for at, rows in blocks)
        return self._view.blocks(block=size)

    def dot(self, queries: Tensor | PerSampleGrads) -> Tensor:
        """Inner products of all rows with each query: `[n, q]`, float32 (float64 for rows of that).

        Args:
            queries: `[q, size]`, or per-sample gradients, which go through the store's projection; of factored
                gradients neither side is formed.

        Raises:
            TypeError, ValueError, StoreError: something else, or gradients of another model.
        """
        return _query.dot(self._view, *self._queries("dot(queries)", queries))

    def top_k(self, queries: Tensor | PerSampleGrads, k: int, *, approximate: bool = False) -> TopK:
        """The k rows with the largest inner products with each query.

        Exact: one pass over the rows, in blocks. Approximate: by the index that `build_index()` made (extra "store"),
        whose candidates are then ranked by their exact inner products.

        Args:
            queries: as for `dot`.
            k: at most as many as there are rows.
            approximate: ask the index.

        Raises:
            TypeError, ValueError, StoreError: something else, or there is no index of these rows.
        """
        call = f"{self._name}.top_k(queries, k={k!r})"
        given, count = self._queries("top_k(queries, k)", queries)
        if approximate:
            return _index.top_k(call, self.path, self._view, given, k)
        return _query.top_k(call, self._view, given, count, k)

    def gram(self, other: Self | None = None) -> Tensor:
        """Inner products of all pairs of rows: `[n, m]`; with the rows of `other`, or these."""
        return _query.gram(self._view, self._other("gram(other)", other))

    def gram_blocks(self, other: Self | None = None, size: int = BLOCK) -> Iterator[tuple[slice, slice, Tensor]]:
        """The same some rows and columns at a time: `(i, j, [b, b'])`; without `other` those not below the diagonal."""
        check_int(f"{self._name}.gram_blocks(other, size)", "size", size, 1)
        return _query.gram_blocks(self._view, self._other("gram_blocks(other)", other), size)

    def build_index(self, links: int = 32) -> None:
        """An approximate index of inner products, beside the shards, for the rows that are there (extra "store").

        Hierarchical navigable small worlds (Malkov, Yashunin 2018), by faiss, on float16 copies of the rows, all scaled
        by one factor: it takes their size in memory and on disk once more. It pays beyond about a million rows.

        Args:
            links: of a row, at least 2.

        Raises:
            StoreError: factored gradients, whose rows are not formed; no faiss; a folder that cannot be written.
        """
        call = f"{self._name}.build_index()"
        check_int(call, "links", links, 2)
        _index.build(call, self.path, self._view, links)

    @property
    def _name(self) -> str:
        return f"GradientStore({str(self.path)!r})"

    def _queries(self, what: str, queries: Tensor | PerSampleGrads) -> tuple[Queries, int]:
        return queries_of(f"{self._name}.{what}", queries, self._view.manifest, self._projection, self._view.dtype)

    def _other(self, what: str, other: Self | None) -> View:
        if other is None:
            return self._view
        call = f"{self._name}.{what}"
        if not isinstance(other, Questions):
            raise TypeError(message(call, got=kind_of(other), expected="another store"))
        ours, theirs = self._view.manifest, other._view.manifest
        for fact in ("size", "projection"):
            mine, own = getattr(ours, fact), getattr(theirs, fact)
            if mine != own:
                raise refused(call, got=f"a store of {fact} {own}", expected=f"{fact} {mine}")
        check_parameters(call, ours, theirs.parameters or ours.parameters or {})
        return other._view
