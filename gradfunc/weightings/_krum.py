"""The rows that are closest to most others."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._errors import check_int, message
from ._gram import checked, given


@dataclass(frozen=True)
class Krum:
    """Made by `gf.weightings.krum`, which has the meanings."""

    byzantine: int
    select: int

    def __call__(self, gram: Tensor, /) -> Tensor:
        """`[n]`.

        Raises:
            ValueError: too few rows.
        """
        call = f"{self!r}(gram)"
        k = checked(call, gram)
        least = max(self.byzantine + 3, self.select)
        if len(k) < least:
            raise ValueError(message(call, got=f"{len(k)} rows", expected=f"at least {least}"))
        own = k.diagonal()
        distances = (own[:, None] + own - 2 * k).clamp(min=0)
        distances.fill_diagonal_(math.inf)
        scores = distances.sort(1).values[:, : len(k) - self.byzantine - 2].sum(1)
        chosen = scores.sort(stable=True).indices[: self.select]
        c = torch.zeros(len(k), dtype=k.dtype)
        c[chosen] = 1 / self.select
        return given(c, gram)

    def __repr__(self) -> str:
        return f"krum({self.byzantine!r}, select={self.select!r})"


def krum(byzantine: int, *, select: int = 1) -> Krum:
    """The row that is closest to its n - f - 2 nearest others, or the mean of several such: Krum, Multi-Krum.

    Row i's score is the sum of its *squared* distances from these (Blanchard et al. 2017, "Machine learning with
    adversaries", section 4); the rows with the least scores are averaged.

    Args:
        byzantine: f, how many of the n rows may be anything; n >= f + 3 (the paper's guarantee needs n > 2f + 2).
        select: how many rows are averaged.

    Raises:
        TypeError, ValueError: an argument that is no int in range; called with too few rows, or something else than a
            finite square matrix.

    Example:
        >>> import torch, gradfunc as gf
        >>> rows = torch.tensor([[1.0], [1.1], [1.3], [100.0]])
        >>> gf.weightings.krum(1)(rows @ rows.T)
        tensor([1., 0., 0., 0.])
    """
    call = "gf.weightings.krum(byzantine, select)"
    check_int(call, "byzantine", byzantine, 0)
    check_int(call, "select", select, 1)
    return Krum(byzantine, select)
