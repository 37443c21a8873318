"""Principal components of one length."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._errors import one_of
from ._gram import checked, given
from ._mean import Mean


@dataclass(frozen=True)
class AlignedMtl:
    """Made by `gf.weightings.aligned_mtl`, which has the meanings."""

    scale: str

    def __call__(self, gram: Tensor, /) -> Tensor:
        """`[n]`."""
        k = checked(f"{self!r}(gram)", gram)
        if not len(k):
            return Mean()(gram)
        values, vectors = torch.linalg.eigh(k)
        kept = values > values[-1] * len(k) * torch.finfo(gram.dtype).eps
        if not bool(kept.any()):
            return Mean()(gram)
        values, vectors = values[kept], vectors[:, kept]
        common = {"min": values[0], "median": values.median(), "rmse": values.mean()}[self.scale]
        weights = torch.full((len(k),), 1 / len(k), dtype=k.dtype)
        return given(vectors @ ((common / values).sqrt() * (vectors.T @ weights)), gram)

    def __repr__(self) -> str:
        return f"aligned_mtl(scale={self.scale!r})"


def aligned_mtl(*, scale: str = "min") -> AlignedMtl:
    """The mean of the rows after all their principal components were given one length.

    With the singular value decomposition `G = U S V^T` of the rows, it is the mean of the rows of `s U V^T`: in terms
    of the Gram matrix `U S^2 U^T` the coefficients are `s U S^-1 U^T 1/n` (Senushkin et al. 2023, "Independent
    component alignment for multi-task learning", algorithm 1). Directions whose `S^2` is at most n times the machine
    epsilon of the matrix's dtype times the largest are left out. Coefficients may be negative.

    Args:
        scale: s: "min", the least of the singular values, "median", the middle one (of two the lower), or "rmse", the
            root of the mean of their squares.

    Raises:
        ValueError: another `scale`; called with something else than a finite square matrix.

    Example:
        >>> import torch, gradfunc as gf
        >>> rows = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
        >>> c = gf.weightings.aligned_mtl()(rows @ rows.T)
        >>> c, c @ rows
        (tensor([0.1250, 0.5000]), tensor([0.5000, 0.5000]))
    """
    one_of("gf.weightings.aligned_mtl(scale=...)", "scale", scale, ("min", "median", "rmse"))
    return AlignedMtl(scale)
