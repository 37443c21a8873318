"""`dh_T / dh_{T-k}` for every lag k: products of the steps' Jacobians, scaled so that they neither over- nor underflow.

Dense where all Jacobians fit, else matrix-free: the largest singular value by ARPACK on products with vectors, whose
residual `|A^T u - sigma v| / sigma` says how good it is (some singular value lies within that share of it).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, svds
from torch import Tensor

from ._jacobians import Jacobians

TOLERANCE = 1e-4  # of scipy, which passes its square to ARPACK for squared singular values


@dataclass(frozen=True, eq=False)
class Products:
    """Norms and spectra along one trajectory; logarithms are natural, -inf for 0.

    Attributes:
        at: which steps, from 1, `step_norms` are of.
        step_norms: `|dh_t / dh_{t-1}|_2`.
        step_spectra: `[T, n]` singular values of every step; None where matrix-free.
        lags: k, from 0.
        log_growth: of `|dh_T / dh_{T-k}|_2`.
        log_spectrum: `[n]`, of the singular values of `dh_T / dh_0`; None where matrix-free. Those below
            `n u` times the largest are rounding.
        residual: the largest relative one of all norms; 0 where dense.
    """

    at: tuple[int, ...]
    step_norms: Tensor
    step_spectra: Tensor | None
    lags: tuple[int, ...]
    log_growth: Tensor
    log_spectrum: Tensor | None
    residual: float


def dense(jacobians: Jacobians) -> Products:
    """Every step and every lag."""
    n, count = jacobians.size, jacobians.steps
    matrices = [jacobians.dense(t) for t in range(count)]
    spectra = torch.stack([torch.linalg.svdvals(matrix) for matrix in matrices])
    product, shift = torch.eye(n, dtype=torch.float64, device=jacobians.like.device), 0.0
    growth, values = [0.0], torch.ones(n, dtype=torch.float64)
    for matrix in reversed(matrices):
        product = product @ matrix
        largest = float(product.abs().max())
        exponent = math.frexp(largest)[1] if largest > 0 else 0
        product, shift = product * 2.0**-exponent, shift + exponent * math.log(2)
        values = torch.linalg.svdvals(product)
        growth.append(_log(float(values[0])) + shift)
    log_growth = torch.tensor(growth, dtype=torch.float64)
    steps = tuple(range(1, count + 1))
    return Products(steps, spectra[:, 0].cpu(), spectra.cpu(), (0, *steps), log_growth, values.cpu().log() + shift, 0.0)


def matrix_free(jacobians: Jacobians, seed: int) -> Products:
    """Some steps, evenly spaced, and lags that double."""
    count = jacobians.steps
    at = sorted({round(t) for t in np.linspace(1, count, min(count, 8))})
    lags = sorted({1 << k for k in range(count.bit_length())} | {count})
    scales = _scales(jacobians, seed)
    single = [_largest(jacobians, t - 1, t, scales, seed) for t in at]
    whole = [_largest(jacobians, count - lag, count, scales, seed) for lag in lags]
    norms = torch.tensor([math.exp(log) for log, _ in single], dtype=torch.float64)
    growth = torch.tensor([0.0, *(log for log, _ in whole)], dtype=torch.float64)
    residual = max(off for _, off in [*single, *whole])
    return Products(tuple(at), norms, None, (0, *lags), growth, None, residual)


def _scales(jacobians: Jacobians, seed: int) -> list[float]:
    """How much each step stretches one tangent vector: what products are divided by on their way."""
    v = _start(jacobians, seed)
    scales = []
    for t in range(jacobians.steps):
        v = jacobians.push(t, v / torch.linalg.vector_norm(v))
        length = float(torch.linalg.vector_norm(v))
        scales.append(length if 0 < length < math.inf else 1.0)
        if length == 0:
            v = _start(jacobians, seed)
    return scales


def _largest(jacobians: Jacobians, start: int, stop: int, scales: Sequence[float], seed: int) -> tuple[float, float]:
    """The logarithm of `|J_stop ... J_{start+1}|_2`, and its relative residual."""
    like = jacobians.like

    def through(order: Sequence[int], multiply: Callable[[int, Tensor], Tensor]) -> Callable[..., np.ndarray]:
        def product(x: np.ndarray) -> np.ndarray:
            v = torch.as_tensor(np.ascontiguousarray(x).reshape(-1)).to(like)
            for t in order:
                v = multiply(t, v) / scales[t]
            return v.detach().double().cpu().numpy()

        return product

    steps = range(start, stop)
    push, pull = through(steps, jacobians.push), through(steps[::-1], jacobians.pull)
    first = _start(jacobians, seed).double().cpu().numpy()
    shift = math.fsum(math.log(scales[t]) for t in steps)
    if not np.any(pull(push(first))):  # a random vector lies in the null space of 0 alone
        return -math.inf, 0.0
    operator = LinearOperator((jacobians.size,) * 2, matvec=push, rmatvec=pull, dtype=np.float64)
    try:
        _, values, right = svds(operator, k=1, v0=first, tol=TOLERANCE)
        v = right[0]
    except ArpackNoConvergence:
        return math.nan, math.inf
    sigma = float(values[0])
    u = push(v)
    off = float(np.linalg.norm(pull(u / sigma) - sigma * v)) / sigma
    return math.log(sigma) + shift, off


def _start(jacobians: Jacobians, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(jacobians.size, generator=generator, dtype=torch.float64).to(jacobians.like)


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf if x == 0 else math.nan
