"""Equal coefficients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._gram import checked, given


@dataclass(frozen=True)
class Mean:
    """Made by `gf.weightings.mean`."""

    def __call__(self, gram: Tensor, /) -> Tensor:
        """`[n]`."""
        k = checked("gf.weightings.mean()", gram)
        return given(torch.full((len(k),), 1 / max(len(k), 1), dtype=torch.float64), gram)

    def __repr__(self) -> str:
        return "mean()"


def mean() -> Mean:
    """1/n for each of n rows.

    Example:
        >>> import torch, gradfunc as gf
        >>> gf.weightings.mean()(torch.eye(4))
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    return Mean()
