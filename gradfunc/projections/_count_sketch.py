"""Every entry is added, with a sign, to one of few numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._factors import Factor, fitting
from .._random import Draw
from ._keys import by_variance, checked, key_of


@dataclass(frozen=True)
class CountSketch:
    """One sign in each column, at a drawn place. Made by `gf.projections.count_sketch`.

    Attributes:
        size: how many numbers a row becomes.
        seed: another matrix for each.
        drawn: about how many entries of the rows are held at a time; no part of what the projection is.
    """

    size: int
    seed: int = 0
    drawn: int = field(default=2**20, compare=False, repr=False)
    kind: ClassVar[str] = "count_sketch"

    def places(self, name: str, entries: Tensor) -> tuple[Tensor, Tensor]:
        """Where n entries of the parameter `name` are added, int64 `[n]`, and with what sign, float32 `[n]`."""
        drawn = Draw(key_of(self.seed, name), 0, entries).integers((), 0, 2 * self.size, entries.device)
        return drawn >> 1, (drawn & 1).float().mul_(2).sub_(1)

    def columns(self, name: str, entries: Tensor) -> Tensor:
        """`[n, size]`: the matrix for n entries of the parameter `name`, float32."""
        place, sign = self.places(name, entries)
        return sign.new_zeros(len(entries), self.size).scatter_(1, place[:, None], sign[:, None])

    def apply(self, name: str, factor: Factor) -> Tensor:
        """Some entries of the rows at a time, added where they belong: `[B, size]`."""
        some = factor.tensors[-1]
        out = some.new_zeros(factor.size, self.size, dtype=factor.dtype)
        if not factor.size:
            return out
        for at, rows in factor.pieces(fitting(self.drawn, factor.size)):
            entries = torch.arange(at.start, at.stop, device=some.device) if isinstance(at, slice) else at
            place, sign = self.places(name, entries)
            out.index_add_(1, place, rows * sign.to(rows.dtype))
        return out

    @property
    def variance(self) -> float:
        """Of <Pu, Pv> for unit vectors, at most: 2 / size."""
        return 2 / self.size

    def error(self, failure: float = 0.01) -> float:
        """The eps such that |<Pu, Pv> - <u, v>| <= eps |u| |v| for given u, v, but with probability `failure`.

        `sqrt(2 / (size failure))`, Chebyshev's bound: two large entries of a row may meet in one number, so there is no
        better one that holds for every row.
        """
        return by_variance("count_sketch(...).error(failure)", self.variance, failure)

    def to_dict(self) -> dict[str, Any]:
        """What names the projection, JSON-ready; `gf.projections.from_dict` reads it."""
        return {"kind": self.kind, "size": self.size, "seed": self.seed}


def count_sketch(size: int, seed: int = 0) -> CountSketch:
    """Each entry added with a random sign to one of `size` numbers (Charikar, Chen, Farach-Colton 2002).

    One draw and one addition for each entry of a row, whatever the size: the cheapest. <Pu, Pv> has mean <u, v> and
    variance (|u|^2 |v|^2 + <u, v>^2 - 2 sum_e u_e^2 v_e^2) / size. The same places and signs on every device.

    Args:
        size: how many numbers a row becomes, at least 1.
        seed: another matrix for each, at least 0.

    Raises:
        TypeError, ValueError: something else.

    Example:
        >>> import gradfunc as gf
        >>> gf.projections.count_sketch(2, seed=3).columns("w", torch.arange(3)).abs().sum(1)
        tensor([1., 1., 1.])
    """
    checked("gf.projections.count_sketch(size, seed)", size, seed)
    return CountSketch(size, seed)
