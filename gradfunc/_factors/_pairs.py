"""Inner products of rows of two factors of one parameter, of whatever kinds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._blocks import fitting, spans
from ._dense import Dense
from ._factor import Factor, Terms
from ._outer import Outer
from ._rows import Rows


def cross(a: Factor, b: Factor, scratch: int) -> Terms:
    """Row i of `a` with row i of `b`: `[B]`."""
    if isinstance(a, Rows) and isinstance(b, Outer):
        return cross(b, a, scratch)
    if isinstance(a, Outer) and isinstance(b, Rows) and _aligned(a, b):
        return _tied(a, b, scratch)
    value = a.tensors[-1].new_zeros(a.size, dtype=torch.promote_types(a.dtype, b.dtype))
    magnitude = torch.zeros_like(value)
    for at in spans(a.size, fitting(scratch, 2 * math.prod(a.shape))):
        product = (a.select(at).dense() * b.select(at).dense()).flatten(1)
        value[at] = product.sum(1)
        magnitude[at] = torch.linalg.vector_norm(product, 1, dim=1)
    return Terms(value, magnitude)


def cross_gram(a: Factor, b: Factor, scratch: int, *, by_rows: bool = False) -> Terms:
    """Every row of `a` with every row of `b`: `[B, B']`."""
    if isinstance(a, type(b)) and a.features == b.features:
        return a.gram(b, scratch, by_rows=by_rows)
    if isinstance(a, Outer) and isinstance(b, Rows) and _aligned(a, b) and not by_rows:
        return _tied_gram(a, b, scratch)
    if isinstance(a, Rows) and isinstance(b, Outer) and _aligned(b, a) and not by_rows:
        value, magnitude = _tied_gram(b, a, scratch)
        return Terms(value.T, None if magnitude is None else magnitude.T)
    if isinstance(a, Dense):
        return Terms(_by_directions(b, a, scratch).T)
    return Terms(_by_directions(a, b, scratch))


def _by_directions(a: Factor, b: Factor, scratch: int) -> Tensor:
    """The rows of `b` as directions for `a`, some samples at a time."""
    if not b.size:
        return a.tensors[-1].new_zeros(a.size, 0, dtype=torch.promote_types(a.dtype, b.dtype))
    step = b.size if isinstance(b, Dense) else fitting(scratch, math.prod(b.shape))
    return torch.cat([a.dots(b.select(at).dense(), scratch) for at in spans(b.size, step)], 1)


def _aligned(outer: Outer, rows: Rows) -> bool:
    """Whether the outer product's matrix `[O, I]` is the `[V, D]` of the rows, not another view of its entries."""
    return outer.features == (rows.features[0], rows.count)


def _tied(outer: Outer, rows: Rows, scratch: int) -> Terms:
    """`sum_{t,s} g2[s, i_t] (g1_t . x2_s)`, with `(x2, g2)` the outer product's and `(i, g1)` the rows'."""
    dtype = torch.promote_types(outer.dtype, rows.dtype)
    s, t = outer.x.shape[1], rows.index.shape[1]
    value = outer.x.new_zeros(outer.size, dtype=dtype)
    magnitude = torch.zeros_like(value)
    for b in spans(outer.size, fitting(scratch, 2 * s * t)):
        for at in spans(s, fitting(scratch, 2 * t)):
            product = outer.x[b, at].to(dtype) @ rows.g[b].to(dtype).mT
            index = rows.index[b, None].expand(product.shape)
            product.mul_(outer.g[b, at].gather(2, index))
            value[b] += product.sum((1, 2))
            magnitude[b] += torch.linalg.vector_norm(product, 1, dim=(1, 2))
    return Terms(value, magnitude)


def _tied_gram(outer: Outer, rows: Rows, scratch: int) -> Terms:
    """The same for every pair of samples."""
    dtype = torch.promote_types(outer.dtype, rows.dtype)
    s, t = outer.x.shape[1], rows.index.shape[1]
    value = outer.x.new_zeros(outer.size, rows.size, dtype=dtype)
    magnitude = torch.zeros_like(value)
    height = fitting(scratch, 2 * t)
    for b in range(outer.size):
        for c in spans(rows.size, fitting(scratch, 2 * min(s, height) * t)):
            index, g = rows.index[c].flatten(), rows.g[c].to(dtype).flatten(0, 1)
            for at in spans(s, height):
                product = outer.x[b, at].to(dtype) @ g.T
                product.mul_(outer.g[b, at][:, index])
                value[b, c] += product.view(-1, c.stop - c.start, t).sum((0, 2))
                magnitude[b, c] += torch.linalg.vector_norm(product.view(-1, c.stop - c.start, t), 1, dim=(0, 2))
    return Terms(value, magnitude)
