"""Inner products of rows `g_b^T x_b`: from products of positions (`x x^T` and `g g^T`), or from the rows' entries."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from ._blocks import fitting, slack, spans
from ._factor import Factor, Method, Terms

# Positions a block of `x x^T`. Smaller blocks skip more of the half that symmetry repeats, in slower products: on a CPU
# blocks of 64 and 32 are no quicker than the whole at T = 128, and slower than 128 at T = 256 and 512.
_TILE = 128
# What moving a byte costs in flops.
BALANCE = 8


def choose(size: int, t: int, inputs: int, outputs: int, itemsize: int, dtype: torch.dtype) -> Method:
    """The cheaper way to squared norms, in flops and bytes moved."""
    read = size * t * (inputs + outputs) * itemsize
    each = dtype.itemsize
    if t <= 1:
        flops = 2 * size * t * (inputs + outputs)
        return Method("gram", flops, read, "one position: |x|^2 |g|^2")
    pairs = size * t * (t + min(t, _TILE)) // 2
    gram = 2 * pairs * (inputs + outputs), read + 6 * pairs * each
    direct = 2 * size * t * inputs * outputs, read + 2 * size * inputs * outputs * each
    by_gram = gram[0] + BALANCE * gram[1] <= direct[0] + BALANCE * direct[1]
    flops, moved = gram if by_gram else direct
    why = f"T(T+{min(t, _TILE)})(I+O) = {gram[0] / max(1, size):.3g} flops a sample by gram, 2TIO = "
    why += f"{direct[0] / max(1, size):.3g} directly"
    return Method("gram" if by_gram else "direct", flops, moved, why)


def squares_by_gram(x: Tensor, g: Tensor, dtype: torch.dtype, scratch: int) -> Terms:
    """`sum((x_b x_b^T) * (g_b g_b^T))`: blocks on and above the diagonal, those above count twice."""
    size, t, inputs = x.shape
    if t == 1:
        a, c = (torch.linalg.vector_norm(half, dim=(1, 2), dtype=dtype).square() for half in (x, g))
        return Terms(a * c, (inputs * c + g.shape[2] * a + 1) * slack(dtype, 1))
    if not size * t:
        return Terms(x.new_zeros(size, dtype=dtype), x.new_zeros(size, dtype=dtype))
    length = min(t, _TILE, max(1, math.isqrt(scratch // 2)))
    wider = not x.dtype == g.dtype == dtype
    each = 2 * length * t + (t * (inputs + g.shape[2]) if wider else 0)
    parts = []
    for b in spans(size, fitting(scratch, each)):
        xs, gs = x[b].to(dtype), g[b].to(dtype)
        width = max(length, fitting(scratch, 2 * length * len(xs)))
        blocks = [_block(xs, gs, rows, columns) for rows in spans(t, length) for columns in spans(t, width, rows.start)]
        parts.append([functools.reduce(torch.add, terms) for terms in zip(*blocks, strict=True)])
    value, magnitude = (torch.cat(column) if len(column) > 1 else column[0] for column in zip(*parts, strict=True))
    return Terms(value, magnitude)


def _block(xs: Tensor, gs: Tensor, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
    """Sums `[b]` over one block of `(x x^T) * (g g^T)` and its mirror image: of the products, and of their sizes."""
    a = xs[:, rows] @ xs[:, columns].mT
    c = gs[:, rows] @ gs[:, columns].mT
    tall = rows.stop - rows.start
    lost: Tensor | None = None
    if columns.start == rows.start:
        own = [product.diagonal(dim1=1, dim2=2).sum(1) for product in (a, c)]
        lost = torch.add(own[1] * xs.shape[2], own[0], alpha=gs.shape[2]).add_(tall)
    a.mul_(c)
    if lost is not None and a.shape[2] > tall:  # what lies right of the block on the diagonal counts twice
        a[:, :, tall:].mul_(2)
    value, magnitude = a.sum((1, 2)), a.abs_().sum((1, 2))
    if lost is None:
        return value.mul_(2), magnitude.mul_(2)
    return value, magnitude.add_(lost, alpha=slack(a.dtype, xs.shape[1]))


def of_grams(a: Tensor, c: Tensor, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    """Sums `[b]` over the product of two Gram matrices `[b, T, T]`, and their magnitudes; `a` is overwritten."""
    lost = c.diagonal(dim1=1, dim2=2).sum(1) * inputs + a.diagonal(dim1=1, dim2=2).sum(1) * outputs + a.shape[1]
    product = a.mul_(c)
    value = product.sum((1, 2))
    return value, product.abs_().sum((1, 2)).add_(lost, alpha=slack(a.dtype, a.shape[1]))


def squares_by_rows(x: Tensor, g: Tensor, dtype: torch.dtype, scratch: int) -> Terms:
    """`|g_b^T x_b|^2`: some samples at a time, some outputs of one sample where even one does not fit."""
    size, t, inputs = x.shape
    outputs = g.shape[2]
    value = x.new_zeros(size, dtype=dtype)
    wider = not x.dtype == g.dtype == dtype
    whole = inputs * outputs + (t * (inputs + outputs) if wider else 0)
    step = fitting(scratch, whole)
    width = outputs if whole <= scratch else fitting(scratch, inputs)
    for b in spans(size, step):
        xs = x[b].to(dtype)
        for o in spans(outputs, width):
            rows = g[b, :, o].to(dtype).mT @ xs
            value[b] += torch.linalg.vector_norm(rows, dim=(1, 2)).square()
    return Terms(value, torch.full_like(value, slack(dtype, inputs * outputs)))


def gram_by_positions(
    left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor], dtype: torch.dtype, scratch: int, *, same: bool
) -> Terms:
    """`sum_{t,s} (x_bt . x'_cs) (g_bt . g'_cs)` for all b, c; with `same`, pairs b <= c alone."""
    (x, g), (y, h) = left, right
    size, t, other, u = len(x), x.shape[1], len(y), y.shape[1]
    value, magnitude = (x.new_zeros(size, other, dtype=dtype) for _ in range(2))
    room = max(1, scratch // 2)
    tall, wide_ = min(t, math.isqrt(room)), min(u, math.isqrt(room))
    step = max(1, math.isqrt(room // max(1, tall * wide_)))
    for b in spans(size, step):
        for c in spans(other, step, b.start if same else 0):
            for rows in spans(t, tall):
                for columns in spans(u, wide_):
                    a = _products(x[b, rows], y[c, columns], dtype)
                    a.mul_(_products(g[b, rows], h[c, columns], dtype))
                    value[b, c] += a.sum((1, 3))
                    magnitude[b, c] += torch.linalg.vector_norm(a, 1, dim=(1, 3))
            if same and c.start > b.start:
                value[c, b], magnitude[c, b] = value[b, c].T, magnitude[b, c].T
    return Terms(value, magnitude if t > 1 or u > 1 else None)


def gram_by_pieces(left: Factor, right: Factor, scratch: int) -> Terms:
    """Inner products of rows, from some entries of all rows at a time; both have their entries in the same pieces."""
    dtype = torch.promote_types(left.dtype, right.dtype)
    out = left.tensors[-1].new_zeros(left.size, right.size, dtype=dtype)
    width = fitting(scratch, left.size + (0 if left is right else right.size))
    if left is right:
        for _, rows in left.pieces(width):
            out.addmm_(rows, rows.T)
        return Terms(out)
    for (_, rows), (_, others) in zip(left.pieces(width), right.pieces(width), strict=True):
        out.addmm_(rows.to(dtype), others.to(dtype).T)
    return Terms(out)


def _products(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """`[m, t, k]` and `[n, u, k]` -> inner products `[m, t, n, u]`."""
    flat = a.to(dtype).flatten(0, 1) @ b.to(dtype).flatten(0, 1).T
    return flat.view(*a.shape[:2], *b.shape[:2])
