"""Eigenvectors of a Hessian from both ends of its spectrum: by the whole matrix, and by Lanczos."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from scipy.linalg import norm  # which neither overflows nor underflows
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from .._errors import message
from ._hessian import MeanHessian

Array = np.ndarray[Any, np.dtype[np.float64]]


class Products:
    """Counts products; those that are not finite raise."""

    def __init__(self, call: str, hessian: MeanHessian) -> None:
        self.call, self.hessian, self.count = call, hessian, 0

    def __call__(self, vector: Array) -> Array:
        out: Array = self.hessian.product(torch.from_numpy(np.ascontiguousarray(vector).reshape(-1))).numpy()
        self.count += 1
        if not np.isfinite(out).all():
            got, do = "second derivatives that are inf or NaN", "Look at the parameters and at the loss."
            raise ValueError(message(self.call, got=got, expected="finite ones", do=do))
        return out


def by_matrix(products: Products) -> Array:
    """Every eigenvector, `[P, P]`, by ascending eigenvalue."""
    matrix = np.stack([products(row) for row in np.eye(products.hessian.size)])
    vectors: Array = np.linalg.eigh((matrix + matrix.T) / 2)[1]
    return vectors


class _Spent(Exception):
    """As many products as there may be."""


def by_lanczos(products: Products, k: int, *, tol: float, limit: int, seed: int) -> Array:
    """The eigenvectors of k eigenvalues from each end, `[P, 2 k]`, by ascending eigenvalue."""
    size, generator = products.hessian.size, np.random.default_rng(seed)
    start = generator.standard_normal(size)
    # ARPACK asks for residuals relative to each eigenvalue, which of one near 0 can never be had. All of H / |H| + 2
    # are between 1 and 3; a few steps of the power iteration tell |H| well enough.
    scale, vector = 0.0, start / norm(start)
    for _ in range(3):
        vector = products(vector)
        length = float(norm(vector))
        if length == 0:  # H is 0
            return np.linalg.qr(generator.standard_normal((size, 2 * k)))[0]
        scale, vector = max(scale, length), vector / length
    seeded = {"rng": generator} if "rng" in inspect.signature(eigsh).parameters else {}  # scipy 1.17
    for held, upto in ((max(20, 4 * k + 2), min(limit, products.count + 100)), (max(80, 8 * k), limit)):

        def shifted(vector: Array, upto: int = upto) -> Array:
            if products.count >= upto:
                raise _Spent
            return products(vector) / scale + 2 * vector.reshape(-1)

        operator = LinearOperator((size, size), matvec=shifted, dtype=np.float64)
        sought = {"k": 2 * k, "which": "BE", "ncv": min(size, held), "tol": tol / 3, "maxiter": limit}
        try:
            values, vectors = eigsh(operator, v0=start, **sought, **seeded)
        except (_Spent, ArpackNoConvergence):
            continue
        found: Array = vectors[:, np.argsort(values)]
        return found
    got = f"no convergence of both ends within {products.count} products at tol={tol:g}"
    do = "Pass a larger tol= or max_products=: eigenvalues that lie close together at an end take many."
    raise RuntimeError(message(products.call, got=got, expected="fewer to suffice", do=do))
