"""Sums of squares over samples, entry by entry, without the rows where their form allows it, else by blocks of rows.

one outer product a row    products of squares
rows of a table            the rows of it that are in use
anything else              rows, about 2^20 entries at a time
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .._factors import Gradient, Outer, Rows
from .._per_sample import PerSampleGrads
from .._tree import At, Tensors
from ._read import per_unit

# Entries of rows that are formed at once, in float64.
BLOCK = 2**20


class Part(NamedTuple):
    """Of some samples of one parameter: total weight `[]`, mean and `sum w_i (u_i - mean)^2`, `[*shape]` in float64."""

    weight: Tensor
    mean: Tensor
    spread: Tensor


def merged(a: Part, b: Part) -> Part:
    """Of the samples of both, by the pairwise update: Chan, Golub, LeVeque 1983, with weights for counts."""
    weight = a.weight + b.weight
    share = b.weight / torch.where(weight > 0, weight, 1.0)
    apart = b.mean - a.mean
    square = apart.square() if a.spread.shape == a.mean.shape else apart.square().sum()
    return Part(weight, a.mean + share * apart, a.spread + b.spread + a.weight * share * square)


def spreads(g: PerSampleGrads) -> dict[str, Part]:
    """Mean and spread of the rows `u_i = g_i / w_i` of every parameter."""
    weights = g.weights.double()
    found: dict[str, Part] = {}
    for name, gradient, c, w in _parts(g, weights):
        for part in _ways(gradient)(gradient, c, w):
            found[name] = merged(found[name], part) if name in found else part
    return found


def squares(g: PerSampleGrads) -> Tensors:
    """`sum w_i u_i^2`, entry by entry in float64: sums of what is not negative."""
    found: Tensors = {}
    for name, gradient, c, w in _parts(g, g.weights.double()):
        if _is_product(gradient):
            x, back = _halves(gradient, c)
            value = (back.square() * (c * c * w)[:, None]).T @ x.square()
        else:
            value = torch.zeros(gradient.like.numel(), dtype=torch.float64, device=gradient.like.device)
            for at, rows, own in _columns(gradient, c, w) if _is_table(gradient) else _blocks(gradient, c, w):
                value[at] += own @ rows.square()
        value = value.reshape(gradient.like.shape)
        found[name] = found[name] + value if name in found else value
    return found


def _parts(g: PerSampleGrads, weights: Tensor) -> Iterator[tuple[str, Gradient, Tensor, Tensor]]:
    """Gradients a chunk at a time, with what makes them unit rows and their weights, `[b]` in float64."""
    inverse = per_unit(g)
    with torch.no_grad():
        for piece in g._pieces("moments"):
            at: At = piece.at
            for name in piece.names:
                gradient, own = piece.rows[name], piece.coefficient(name)
                device = gradient.like.device
                c = inverse[at].to(device)
                c = c if own is None else torch.where(c == 0, 0.0, c * own.to(c))
                yield name, gradient, c, weights[at].to(device)


def _is_product(gradient: Gradient) -> bool:
    """Whether every row is one outer product, whose square is the product of the squares."""
    one = gradient.factors[0] if len(gradient.factors) == 1 else None
    return isinstance(one, Outer) and one.x.shape[1] == 1


def _is_table(gradient: Gradient) -> bool:
    return len(gradient.factors) == 1 and isinstance(gradient.factors[0], Rows)


def _ways(gradient: Gradient) -> Callable[[Gradient, Tensor, Tensor], Iterable[Part]]:
    return _by_products if _is_product(gradient) else _by_columns if _is_table(gradient) else _by_blocks


def _halves(gradient: Gradient, c: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and cotangents `[b, .]` in float64; zeros where a coefficient is 0: what is left out may be NaN."""
    factor = gradient.factors[0]
    assert isinstance(factor, Outer)
    x, back = (torch.where((c != 0)[:, None], half[:, 0].double(), 0.0) for half in (factor.x, factor.g))
    return x, back


def _by_products(gradient: Gradient, c: Tensor, w: Tensor) -> Iterator[Part]:
    """Two products in float64. The spread is a difference: off by about n unit roundoffs of the sum of squares."""
    x, back = _halves(gradient, c)
    weight = w.sum()
    mean = (back * (c * w)[:, None]).T @ x / torch.where(weight > 0, weight, 1.0)
    squared = (back.square() * (c * c * w)[:, None]).T @ x.square()
    spread = (squared - weight * mean.square()).clamp_(min=0)
    shape = gradient.like.shape
    yield Part(weight, mean.reshape(shape), spread.reshape(shape))


def _by_columns(gradient: Gradient, c: Tensor, w: Tensor) -> Iterator[Part]:
    like, weight = gradient.like, w.sum()
    mean, spread = (torch.zeros(like.numel(), dtype=torch.float64, device=like.device) for _ in range(2))
    for at, rows, own in _columns(gradient, c, w):
        mean[at] = own @ rows / torch.where(weight > 0, weight, 1.0)
        spread[at] = own @ (rows - mean[at]).square()
    yield Part(weight, mean.reshape(like.shape), spread.reshape(like.shape))


def _by_blocks(gradient: Gradient, c: Tensor, w: Tensor) -> Iterator[Part]:
    for _, rows, own in _blocks(gradient, c, w):
        weight = own.sum()
        mean = own @ rows / torch.where(weight > 0, weight, 1.0)
        shape = gradient.like.shape
        yield Part(weight, mean.reshape(shape), (own @ (rows - mean).square()).reshape(shape))


def _columns(gradient: Gradient, c: Tensor, w: Tensor) -> Iterator[tuple[slice | Tensor, Tensor, Tensor]]:
    """Entries that are not 0 in every row, some at a time: which, unit rows `[b, n]` in float64 of them, weights."""
    for at, rows in gradient.factors[0].pieces(max(1, BLOCK // max(1, gradient.size))):
        yield at, torch.where((c == 0)[:, None], 0.0, rows.double() * c[:, None]), w


def _blocks(gradient: Gradient, c: Tensor, w: Tensor) -> Iterator[tuple[slice | Tensor, Tensor, Tensor]]:
    """All entries, some samples at a time: unit rows `[b, entries]` in float64, zeros at weight 0, and weights."""
    every, step = slice(0, gradient.like.numel()), max(1, BLOCK // max(1, gradient.like.numel()))
    for start in range(0, gradient.size, step):
        at = slice(start, min(start + step, gradient.size))
        rows = gradient.select(at).dense().reshape(at.stop - at.start, gradient.like.numel()).double()
        own = c[at][:, None]
        yield every, torch.where(own == 0, 0.0, rows * own), w[at]
