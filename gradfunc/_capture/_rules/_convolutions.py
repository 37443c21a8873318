"""Convolutions: windows of the input are the rows of a matrix product.

A transposed convolution is the same with its two sides exchanged: windows are of the cotangent, and the input is what
they are multiplied by.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..._factors import Dense, Factor, Outer
from ..._tree import wide
from ._site import Maker, Site

# Entries of windows at once where they are summed over.
_BUDGET = 2**22


def convolution(site: Site) -> Maker | None:
    """Inputs: the data `[N, C, ...]`, the weight, the bias."""
    if site.layout.dim != 0 or site.input not in (1, 2):
        return None
    if site.input == 2:
        return lambda g: site.summed(g.flatten(2).sum(2))
    node, x = site.node, site.saved("input")
    if x is None:
        return None
    steps = tuple(zip(*(getattr(node, f"_saved_{name}") for name in ("stride", "padding", "dilation")), strict=True))
    rule = _Convolution(site, steps, bool(node._saved_transposed), int(node._saved_groups))
    return lambda g: rule.factor(site.split(x), site.split(g))


@dataclass(frozen=True, eq=False)
class _Convolution:
    """One use of a weight `[rows, columns / groups, *kernel]`.

    Attributes:
        steps: stride, padding and dilation of each dimension of the kernel.
        transposed: whether rows are channels of the input and windows are taken of the cotangent.
        groups: of channels, each with a part of the weight.
    """

    site: Site
    steps: tuple[tuple[int, int, int], ...]
    transposed: bool
    groups: int

    def factor(self, x: Tensor, g: Tensor) -> Factor:
        """From `[B, slots, C, ...]` and `[B, slots, O, ...]`: what is smaller, the rows or both of their halves."""
        still, moving = (x, g) if self.transposed else (g, x)
        shape, positions = self.site.shape, x.shape[1] * math.prod(still.shape[3:])
        columns = math.prod(shape[1:]) * self.groups
        rows = math.prod(shape)
        if self.groups == 1 and positions * (shape[0] + columns) < rows:
            return Outer(self._windows(moving, still), self._positions(still), shape)
        dtype = wide(torch.promote_types(x.dtype, g.dtype))
        sizes = (len(x), self.groups, shape[0] // self.groups, columns // self.groups)
        out = torch.empty(sizes, dtype=dtype, device=x.device)
        step = max(1, _BUDGET // max(1, positions * columns))
        for start in range(0, len(x), step):
            at = slice(start, start + step)
            a, b = self._positions(still[at]), self._windows(moving[at], still[at])
            a, b = (t.unflatten(2, (self.groups, -1)).movedim(2, 1).to(dtype) for t in (a, b))
            torch.matmul(a.mT, b, out=out[at])
        return Dense(out.reshape(len(x), *shape))

    def _positions(self, still: Tensor) -> Tensor:
        """`[b, slots, channels, ...]` as `[b, T, channels]`."""
        return still.flatten(3).movedim(2, 3).flatten(1, 2)

    def _windows(self, moving: Tensor, still: Tensor) -> Tensor:
        """What the kernel sees at each position of the other side: `[b, T, channels * kernel]`."""
        kernel, counts = self.site.shape[2:], still.shape[3:]
        around: list[int] = []
        for n, k, size, (stride, pad, dilation) in zip(counts, kernel, moving.shape[3:], self.steps, strict=True):
            reach = (n - 1) * stride + dilation * (k - 1) + 1
            around = [pad, max(0, reach - size - pad), *around]  # torch pads the last dimension first
        padded = F.pad(moving.flatten(0, 1), around).contiguous()
        first, channel, *inner = padded.stride()
        across = [s * stride for s, (stride, _, _) in zip(inner, self.steps, strict=True)]
        within = [s * dilation for s, (_, _, dilation) in zip(inner, self.steps, strict=True)]
        sizes = (len(padded), *counts, padded.shape[1], *kernel)
        view = padded.as_strided(sizes, (first, *across, channel, *within))
        return view.reshape(len(moving), moving.shape[1] * math.prod(counts), padded.shape[1] * math.prod(kernel))


RULES = {"ConvolutionBackward0": convolution}
