"""Kronecker factors whose eigenvalues are those of the rows: EKFAC."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .._per_sample._function import PerSampleGradsFunction
from ._eigen import EigenFactors
from ._kronecker import kronecker_factors, runs_of
from ._sides import unit_sides

# Entries of turned rows at once.
ROWS = 2**22


def corrected_kronecker_factors(
    loss: Callable[..., Any] | PerSampleGradsFunction,
    params: Mapping[str, Tensor],
    batch: Any,
    *,
    likelihood: str | None = None,
    setting: str = "expand",
    **options: Any,
) -> EigenFactors:
    """EKFAC: the eigenvectors of `kronecker_factors`, and in their basis the true second moments of rows.

    With `A = U_A diag(a) U_A^T` and `G = U_G diag(b) U_G^T` of a parameter, and its rows `u_i` as matrices, shares p:

        S = sum p_i (U_G^T u_i U_A)^2, entry by entry, in the place of b a^T

    George et al. 2018, "Fast approximate natural gradient descent in a Kronecker-factored eigenbasis" (arXiv
    1806.03884, eq. 9 and proposition 1): of all matrices with these eigenvectors the nearest to the Fisher matrix's
    block, in the Frobenius norm. A row is one of a sample, all its positions added, in either setting. Parameters
    without factors as there. For influence functions: Grosse et al. 2023 (arXiv 2308.03296).

    Bias: an approximation, no estimate: what is off the diagonal in that basis is left out. The trace of every block is
    exact.

    Cost: `kronecker_factors`, its eigenvectors (`O(R^3 + C^3)`), and its passes once more, in which rows of one
    parameter are formed some samples at a time; where a sample has one position, products of squares stand for them.
    `R^2 + C^2 + R C` numbers a parameter are held.

    Args:
        loss, params, batch, likelihood, setting, options: as `gf.quantities.kronecker_factors`.

    Raises:
        TypeError, ValueError: as there.

    Example:
        >>> import torch, gradfunc as gf
        >>> params, x = {"w": torch.tensor([[2.0, 1.0]])}, torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> loss = lambda p, x: (p["w"] @ x).square().sum() / 2  # rows (8, 0) and (0, 1)
        >>> gf.quantities.kronecker_factors(loss, params, x).dense("w").diagonal()
        tensor([17.0000,  4.2500], dtype=torch.float64)
        >>> gf.quantities.corrected_kronecker_factors(loss, params, x).dense("w").diagonal()
        tensor([32.0000,  0.5000], dtype=torch.float64)
    """
    call = "gf.quantities.corrected_kronecker_factors(loss, params, batch)"
    factors = kronecker_factors(loss, params, batch, likelihood=likelihood, setting=setting, **options)
    eigen, sums = factors.eigen, dict[str, Tensor]()
    weight = torch.zeros((), dtype=torch.float64)
    for run in runs_of(call, loss, params, batch, likelihood, options):
        for rows, weights, scale in run.factors():
            weight = weight + weights.double().sum().to(weight.device)
            for name, gradient in rows.items():
                w = weights.double().to(gradient.like.device)
                sides = unit_sides(gradient, w, scale) if name in eigen.inputs else None
                for own, x, e in sides or ():
                    part = _squares(own, x @ eigen.inputs[name], e @ eigen.outputs[name])
                    sums[name] = sums[name] + part if name in sums else part
    # A vector, which is no product, has its exact block, and so its exact eigenvalues.
    values = eigen.eigenvalues | {name: value / weight.to(value.device) for name, value in sums.items()}
    return dataclasses.replace(eigen, eigenvalues=values)


def _squares(w: Tensor, x: Tensor, e: Tensor) -> Tensor:
    """`sum w_i (e_i^T x_i)^2` of turned inputs `[b, T, C]` and cotangents `[b, T, R]`: `[R, C]`."""
    if x.shape[1] == 1:
        return (e[:, 0].square() * w[:, None]).T @ x[:, 0].square()
    total = x.new_zeros(e.shape[2], x.shape[2])
    for at in torch.arange(len(w), device=w.device).split(max(1, ROWS // max(1, total.numel()))):
        total += torch.tensordot(w[at], (e[at].mT @ x[at]).square(), 1)
    return total
