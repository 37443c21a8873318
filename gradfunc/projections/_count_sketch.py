"""Every entry is added, with a sign, to one of few numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .._random import Draw
from ._entrywise import Entrywise
from ._keys import by_variance, checked, key_of


@dataclass(frozen=True)
class CountSketch(Entrywise):
    """One sign in each column, at a drawn place. Made by `gf.projections.count_sketch`."""

    kind: ClassVar[str] = "count_sketch"

    def places(self, name: str, entries: Tensor) -> tuple[Tensor, Tensor]:
        """Where n entries of the parameter `name` are added, int64 `[n]`, and with what sign, float32 `[n]`."""
        drawn = Draw(key_of(self.seed, name), 0, entries).integers((), 0, 2 * self.size, entries.device)
        return drawn >> 1, (drawn & 1).float().mul_(2).sub_(1)

    def columns(self, name: str, entries: Tensor) -> Tensor:
        """`[n, size]`: the matrix for n entries of the parameter `name`, float32."""
        place, sign = self.places(name, entries)
        return sign.new_zeros(len(entries), self.size).scatter_(1, place[:, None], sign[:, None])

    def _held(self, samples: int) -> int:
        return samples

    def _add(self, out: Tensor, name: str, entries: Tensor, rows: Tensor) -> None:
        place, sign = self.places(name, entries)
        out.index_add_(1, place, rows * sign.to(rows.dtype))

    def error(self, failure: float = 0.01) -> float:
        """The eps such that |<Pu, Pv> - <u, v>| <= eps |u| |v| for given u, v, but with probability `failure`.

        `sqrt(2 / (size failure))`, Chebyshev's bound: two large entries of a row may meet in one number, so there is no
        better one that holds for every row.
        """
        return by_variance("count_sketch(...).error(failure)", self.variance, failure)


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
