"""The spectrum of the covariance of gradients, through their Gram matrix."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._per_sample import PerSampleGrads
from .._rounding import unit_roundoff
from ._read import check_samples, check_value, per_unit, shares


@dataclass(frozen=True, eq=False)
class GradientSpectrum:
    """Eigenvalues of a covariance, and how its eigenvectors are made of rows. Made by `gradient_spectrum`.

    Attributes:
        values: the eigenvalues above rounding, the largest first: `[r]`, float64.
        coefficients: `g.weighted_sum(coefficients[:, k])` is the k-th eigenvector, of length 1: `[B, r]`.
        trace: the sum of all of them, `[]`.
    """

    values: Tensor
    coefficients: Tensor = field(repr=False)
    trace: Tensor

    @property
    def effective_rank(self) -> Tensor:
        """`trace^2 / sum values^2`, the participation ratio, `[]`: how many directions carry the spread."""
        return self.trace.square() / self.values.square().sum()


def gradient_spectrum(g: PerSampleGrads, *, centered: bool = True) -> GradientSpectrum:
    """Eigenvalues and eigenvectors of the covariance of gradients, a P x P matrix, from their B x B Gram matrix.

    With rows `u_i = g_i / w_i`, shares p, mean m and `q = sum p_i^2`, the covariance is
    `sum p_i (u_i - m)(u_i - m)^T / (1 - q)`; uncentered, `sum p_i u_i u_i^T` is the second moment, the empirical Fisher
    matrix. `A^T A` and `A A^T` have the same eigenvalues but for zeros, and `A A^T` is the Gram matrix, scaled (and
    centered) on both sides.

    Bias: the matrix is unbiased; its largest eigenvalues are too large and its smallest too small where B is not far
    above the effective rank (Marchenko and Pastur 1967). At most B - 1 of P are not 0 (B uncentered).

    Cost: the Gram matrix and one B x B eigendecomposition; nothing is materialised, and answers have no graph. What
    lies below B unit roundoffs of the Gram matrix's dtype times the largest is rounding and left out.

    Raises:
        TypeError: `g` is something else.
        ValueError: fewer than two samples of weight above 0 (one, uncentered).

    Example:
        >>> import torch, gradfunc as gf
        >>> f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())
        >>> g = f({"w": torch.zeros(2)}, torch.tensor([[1.0, 3.0], [-1.0, 3.0]]))
        >>> found = gf.quantities.gradient_spectrum(g)
        >>> found.values, g.weighted_sum(found.coefficients[:, 0])["w"].abs()
        (tensor([2.], dtype=torch.float64), tensor([1., 0.]))
    """
    call = "gf.quantities.gradient_spectrum(g)"
    check_samples(call, check_value(call, g), 2 if centered else 1)
    with torch.no_grad():
        gram = g.gram()
    p, scale = shares(g).to(gram.device), per_unit(g).to(gram.device)
    products = torch.where((scale == 0)[:, None] | (scale == 0), 0.0, gram.double() * scale[:, None] * scale)
    if centered:
        common = products @ p
        products = products - common[:, None] - common + p @ common
    root = p.sqrt() / ((1 - p.square().sum()).sqrt() if centered else 1.0)
    matrix = root[:, None] * products * root
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    values, vectors = values.flip(0), vectors.flip(1)
    size = float(matrix.diagonal().abs().max()) if not centered else float(_raw(gram, scale, root))
    kept = values > len(p) * unit_roundoff(gram.dtype) * max(size, float(values[0]))
    values, vectors = values[kept], vectors[:, kept]
    z = root[:, None] * vectors / values.sqrt()
    z = z - p[:, None] * z.sum(0) if centered else z
    return GradientSpectrum(values, z * scale[:, None], matrix.diagonal().sum())


def _raw(gram: Tensor, scale: Tensor, root: Tensor) -> Tensor:
    """The largest diagonal entry before the mean is taken off, in units of which the entries are rounded."""
    return torch.where(scale == 0, 0.0, gram.diagonal().double() * scale.square() * root.square()).max()
