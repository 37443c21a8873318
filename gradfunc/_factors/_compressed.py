"""Rows as matrices, multiplied from both sides before they are formed."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ._blocks import fitting, spans
from ._factor import Factor
from ._outer import Outer
from ._rows import Rows
from ._unfolded import Unfolded

# Rows of a matrix `[entries, k]`, those of the entries `[n]` that are asked for: `[n, k]`.
Side = Callable[[Tensor], Tensor]


def compressed(factor: Factor, left: Side, right: Side, sizes: tuple[int, int], scratch: int) -> Tensor:
    """`left^T R_b right` of every row, `[B, *sizes]`, R_b being the row as a matrix `[shape[0], all others]`.

    Inputs and cotangents are multiplied each on its own side before their product: rows of products, convolutions and
    embeddings are not formed, others some samples at a time.
    """
    outputs, inputs = factor.shape[0], math.prod(factor.shape[1:])
    if isinstance(factor, Outer) and factor.features == (inputs, outputs):
        x = _through(factor.x, right, sizes[1], factor.dtype, scratch)
        return _through(factor.g, left, sizes[0], factor.dtype, scratch).mT @ x
    if isinstance(factor, Rows) and (factor.count, *factor.features) == (outputs, inputs):
        return _of_rows(factor, left, right, sizes, scratch)
    if isinstance(factor, Unfolded) and outputs == factor.steps.weight[0]:
        return _of_windows(factor, left, right, sizes, scratch)
    device = factor.tensors[-1].device
    out = torch.zeros(factor.size, *sizes, dtype=factor.dtype, device=device)
    left = _kept(left, outputs, sizes[0], device, scratch)
    right = _kept(right, inputs, sizes[1], device, scratch)
    for b in spans(factor.size, fitting(scratch, outputs * inputs)):
        rows = factor.select(b).dense().reshape(-1, outputs, inputs)
        inner = _through(rows, right, sizes[1], factor.dtype, scratch)
        out[b] = _through(inner.mT, left, sizes[0], factor.dtype, scratch).mT
    return out


def _through(values: Tensor, side: Side, size: int, dtype: torch.dtype, scratch: int) -> Tensor:
    """`values [..., n]` times `side [n, size]`, drawn for some entries at a time: `[..., size]`."""
    out = torch.zeros(*values.shape[:-1], size, dtype=dtype, device=values.device)
    for at in spans(values.shape[-1], fitting(scratch, max(1, size))):
        entries = torch.arange(at.start, at.stop, device=values.device)
        out += values[..., at].to(dtype) @ side(entries).to(dtype)
    return out


def _kept(side: Side, count: int, size: int, device: torch.device, scratch: int) -> Side:
    """The side drawn once for all blocks of samples, where it fits."""
    if count * size > scratch:
        return side
    drawn = side(torch.arange(count, device=device))
    return lambda entries: drawn[entries]


def _of_rows(factor: Rows, left: Side, right: Side, sizes: tuple[int, int], scratch: int) -> Tensor:
    """Of embeddings: the left side is looked up at the indices in use."""
    used, place = factor.index.unique(return_inverse=True)
    g = _through(factor.g, right, sizes[1], factor.dtype, scratch)
    out = torch.zeros(factor.size, *sizes, dtype=factor.dtype, device=g.device)
    for at in spans(len(used), fitting(scratch, max(1, sizes[0]))):
        drawn = left(used[at]).to(factor.dtype)
        here = (place >= at.start) & (place < at.stop)
        looked_up = drawn[(place - at.start).clamp(0, len(drawn) - 1)].masked_fill(~here[..., None], 0.0)
        out += looked_up.mT @ g
    return out


def _of_windows(factor: Unfolded, left: Side, right: Side, sizes: tuple[int, int], scratch: int) -> Tensor:
    """Of convolutions: both sides of a few samples, their windows unfolded."""
    channels, each = factor.steps.weight[0], math.prod(factor.steps.weight[1:])
    device = factor.x.device
    a = left(torch.arange(channels, device=device)).to(factor.dtype).unflatten(0, (factor.steps.groups, -1))
    b = right(torch.arange(each, device=device)).to(factor.dtype)
    out = torch.zeros(factor.size, *sizes, dtype=factor.dtype, device=device)
    for at, still, windows in factor.blocks(scratch):
        out[at] = ((a.mT @ still) @ (b.T @ windows).mT).sum(1)
    return out
