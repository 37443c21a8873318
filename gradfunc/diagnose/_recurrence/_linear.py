"""The linear recurrence `h_t = W^T h_{t-1}` of one matrix."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..._errors import kind_of, message
from ..._tree import Tensors
from ._eigen import Eigen, eigen, largest
from ._gradients import Clip, clippings, through_time
from ._jacobians import Constant
from ._linear_report import LinearRecurrence
from ._products import dense, matrix_free
from ._system import System, of_step

CALL = "gf.diagnose.recurrence(W, steps=T)"


def linear(
    matrix: Tensor,
    steps: int,
    state: Tensor | None,
    cotangent: Tensor | None,
    clip: Clip,
    share: float,
    exponents: int,
    limit: int,
    seed: int,
) -> LinearRecurrence:
    """The report, in float64."""
    w = checked(matrix)
    n = len(w)
    h, g = (_vector(n, v, name, seed + k) for k, (v, name) in enumerate(((state, "state"), (cotangent, "cotangent"))))
    forward = Constant(w.T.contiguous(), steps)
    small = n <= max(limit, 2)
    numbers = w.numpy()
    found = eigen(numbers.T, steps) if small else _few(numbers, min(exponents, n - 2), steps, seed)
    products = dense(forward) if small else matrix_free(forward, seed)
    basis = torch.as_tensor(found.dominating).to(torch.complex128)
    system = _system(w, h, g, steps)
    norms, cotangents = through_time(system)
    return LinearRecurrence(
        size=n,
        steps=steps,
        matrix_free=not small,
        growth=found.rows,
        spectral_radius=found.rows[0].modulus,
        spectral_norm=float(products.step_norms[0]),
        departure=found.departure,
        condition=found.condition,
        lags=products.lags,
        log_norms=products.log_growth,
        log_spectrum=products.log_spectrum,
        residual=products.residual,
        gradients=norms[0].flip(0),
        shares=torch.tensor([_share(c[0], basis) for c in reversed(cotangents)], dtype=torch.float64),
        clip=clip,
        clipping=clippings(system, clip, lambda grads: _share(grads["W"].T, basis)),
        share=share,
    )


def checked(matrix: Tensor) -> Tensor:
    """In float64 on the CPU, refused where it is no finite square matrix."""
    if matrix.is_complex() or not matrix.is_floating_point():
        raise TypeError(message(CALL, got=f"a matrix of {matrix.dtype}", expected="a real floating type"))
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(message(CALL, got=f"a tensor {tuple(matrix.shape)}", expected="a square matrix [n, n]"))
    w = matrix.detach().double().cpu()
    if not w.isfinite().all():
        row, column = (~w.isfinite()).nonzero()[0].tolist()
        got = f"W[{row}, {column}] = {float(w[row, column])}"
        raise ValueError(message(CALL, got=got, expected="finite entries"))
    return w


def _vector(n: int, given: Tensor | None, name: str, seed: int) -> Tensor:
    if given is None:
        return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / math.sqrt(n)
    if not isinstance(given, Tensor):
        raise TypeError(message(CALL, got=f"{name} {kind_of(given)}", expected=f"a tensor [{n}]"))
    if given.shape != (n,):
        raise ValueError(message(CALL, got=f"{name} {tuple(given.shape)}", expected=f"a tensor [{n}]"))
    if not given.isfinite().all():
        raise ValueError(message(CALL, got=f"{name} with entries that are not finite", expected="finite entries"))
    return given.detach().double().cpu()


def _system(w: Tensor, h: Tensor, g: Tensor, steps: int) -> System:
    """The loss is `g . h_T`, so that its cotangent at the end is g."""

    def criterion(states: Tensor, target: Tensor) -> Tensor:
        return (states[:, -1] * target).sum(1)

    def step(params: Tensors, h: Tensor, x: Tensor) -> Tensor:
        return params["W"].T @ h

    return of_step(step, {"W": w}, h, criterion, (torch.zeros(1, steps, 1, dtype=torch.float64), g[None]))


def _few(numbers: np.ndarray, count: int, steps: int, seed: int) -> Eigen:
    return largest(lambda v: numbers.T @ v, lambda v: numbers @ v, len(numbers), count, steps, seed)


def _share(vectors: Tensor, basis: Tensor) -> float:
    """The part of the squared norm of columns `[n]` or `[n, k]` that lies in a subspace; NaN of nothing."""
    largest = float(vectors.abs().max())
    if not largest:
        return math.nan
    unit = (vectors / largest).to(basis.dtype)
    inside = basis.conj().T @ unit
    return float(inside.abs().square().sum() / unit.abs().square().sum())
