"""The two sides of rows that are one product: inputs and cotangents, some samples at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .._factors import Gradient, Outer, Unfolded

# Entries of unfolded inputs at once.
WINDOWS = 2**22


def unit_sides(gradient: Gradient, w: Tensor, scale: float) -> Iterator[tuple[Tensor, Tensor, Tensor]] | None:
    """Weights `[b]`, inputs `[b, T, C]` and cotangents `[b, T, R]` of the rows `u_i = g_i / w_i`, in float64.

    Some samples at a time; None where a row is no one product.
    """
    sides, unit = _sides(gradient), per_unit_of(w, scale)
    return None if sides is None else _read(sides, w, unit)


def _read(
    sides: Iterator[tuple[slice, Tensor, Tensor]], w: Tensor, unit: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for at, x, e in sides:
        c = unit[at][:, None, None]
        x, e = (torch.where(c == 0, 0.0, side.double()) for side in (x, e))
        yield w[at], x, e * c


def per_unit_of(w: Tensor, scale: float) -> Tensor:
    """What makes unit rows of rows that were multiplied by `scale`, `[b]`; 0 at weight 0."""
    return torch.where(w > 0, 1 / (scale * torch.where(w > 0, w, 1.0)), 0.0)


def _sides(gradient: Gradient) -> Iterator[tuple[slice, Tensor, Tensor]] | None:
    """Inputs `[b, T, C]` and cotangents `[b, T, R]` of some samples at a time, where every row is their product."""
    factor = gradient.factors[0] if len(gradient.factors) == 1 and gradient.size else None
    if isinstance(factor, Outer):
        return iter([(slice(0, factor.size), factor.x, factor.g)])
    if isinstance(factor, Unfolded) and factor.steps.groups == 1:
        blocks = factor.blocks(WINDOWS)
        return ((at, windows[:, 0].mT, still[:, 0].mT) for at, still, windows in blocks)
    return None
