"""The eigendecomposition of a linear recurrence, and how each of its directions grows.

Eigenvalues that rounding cannot tell apart are one row. They are those of `M + E`, `|E|` up to `n^2 u |M|_F` (Higham,
section 19.3, on products of that many reflections), so eigenvalue i is known up to `|E| / s_i`, `s_i` the cosine
between its left and right eigenvector (Golub and Van Loan, Matrix Computations, section 7.2.2), and up to about
`|M| (|E| / |M|)^(1/m)` where m of them are defective together (section 7.2.3). Such a row has an invariant subspace
from an ordered Schur form instead of eigenvectors, which would be parallel. On it `M = lambda + N`, N nilpotent, and

    M^T = sum_j C(T, j) lambda^(T - j) N^j,    j below the multiplicity.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigs

from ..._errors import message
from ..._rounding import unit_roundoff

UNIT = unit_roundoff(torch.float64)


@dataclass(frozen=True)
class Growth:
    """One eigenvalue of the recurrence, and the growth of its direction over T steps.

    Attributes:
        real: of the eigenvalue.
        imaginary: of the eigenvalue.
        modulus: its absolute value: growth a step, in the long run.
        turns: degrees a step by which its plane turns.
        multiplicity: how many eigenvalues rounding cannot tell from it, itself included.
        chain: length of the longest Jordan chain, as far as rounding lets it be seen; above 1 it is defective, and
            grows by a polynomial besides.
        log_closed: log of the closed form of the growth, `|lambda|^T` for a chain of 1.
        log_measured: log of the growth measured, step by step in this direction.
        error: what is known of the eigenvalue: the first-order bound, or the residual where matrix-free.
    """

    real: float
    imaginary: float
    modulus: float
    turns: float
    multiplicity: int
    chain: int
    log_closed: float
    log_measured: float
    error: float


@dataclass(frozen=True, eq=False)
class Eigen:
    """All rows, largest modulus first; the dominating invariant subspaces; the eigenvectors' condition number.

    Attributes:
        rows: the directions.
        condition: of the matrix of eigenvectors: 1 for a normal matrix; beyond `1 / (n u)` there is no basis of them.
        departure: from normality (Henrici 1962), `sqrt(|M|_F^2 - sum |lambda|^2)`: the norm of the strictly upper part
            of a Schur form.
        dominating: `[n, k]`, an orthonormal basis of the directions of `M^T` (those of cotangents) of largest modulus.
    """

    rows: tuple[Growth, ...]
    condition: float
    departure: float
    dominating: np.ndarray


def eigen(m: np.ndarray, steps: int) -> Eigen:
    """Of `h_t = M h_{t-1}`; the entries of M are brought near 1 before anything is squared."""
    n = len(m)
    exponent = math.frexp(float(np.abs(m).max()))[1] if m.any() else 0
    m = np.ldexp(m, -exponent)
    values, left, right = scipy.linalg.eig(m, left=True, right=True)
    cosines = np.abs(np.einsum("ij,ij->j", left.conj(), right))
    size, off = float(np.linalg.norm(m, 2)), _backward_error(m)
    ill = max(2, int((cosines <= math.sqrt(n**2 * UNIT)).sum()))
    errors = np.minimum(off / np.maximum(cosines, UNIT), size * (off / size) ** (1 / ill) if size else 0.0)
    near = np.abs(values[:, None] - values) <= errors[:, None] + errors
    _, labels = connected_components(near, directed=False)
    rows = []
    for label in range(labels.max() + 1):
        members = np.flatnonzero(labels == label)
        basis = right[:, members] if len(members) == 1 else _invariant(m, values, members)
        rows.append(_scaled_back(_row(m, basis, float(errors[members].max()), steps), exponent, steps))
    rows.sort(key=lambda row: (-row.modulus, -row.imaginary))
    modulus = np.abs(values)
    top = modulus + errors >= (modulus - errors).max()
    joined = np.flatnonzero(np.isin(labels, labels[top]))
    triangle, _ = scipy.linalg.schur(m, output="complex")
    departure = math.ldexp(float(np.linalg.norm(np.triu(triangle, 1))), exponent)
    return Eigen(tuple(rows), float(np.linalg.cond(right)), departure, _invariant(m.T, values, joined))


def _backward_error(m: np.ndarray) -> float:
    return len(m) ** 2 * UNIT * float(np.linalg.norm(m))


def _scaled_back(row: Growth, exponent: int, steps: int) -> Growth:
    shift = steps * exponent * math.log(2)
    return dataclasses.replace(
        row,
        real=math.ldexp(row.real, exponent),
        imaginary=math.ldexp(row.imaginary, exponent),
        modulus=math.ldexp(row.modulus, exponent),
        error=math.ldexp(row.error, exponent),
        log_closed=row.log_closed + shift,
        log_measured=row.log_measured + shift,
    )


def _invariant(m: np.ndarray, values: np.ndarray, members: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the invariant subspace of these eigenvalues."""

    def belongs(value: complex) -> bool:
        return bool(np.isin(np.abs(values - value).argmin(), members))

    _, q, count = scipy.linalg.schur(m, output="complex", sort=belongs)
    return np.asarray(q[:, :count])


def _row(m: np.ndarray, q: np.ndarray, error: float, steps: int) -> Growth:
    """`q` is an orthonormal basis of an invariant subspace, whose eigenvalues are all one, to rounding."""
    inside = q.conj().T @ (m @ q)
    k = len(inside)
    value = complex(np.trace(inside)) / k
    nilpotent = inside - value * np.eye(k)
    powers = [np.linalg.matrix_power(nilpotent, j) for j in range(k + 1)]
    norms, off = [float(np.linalg.norm(power, 2)) for power in powers], _backward_error(m)

    def is_rounding(j: int) -> bool:
        """N is known up to E, and `N^j` so up to the sum of `N^i E N^(j-1-i)`."""
        return norms[j] <= off * sum(norms[i] * norms[j - 1 - i] for i in range(j))

    chain = next((j for j in range(1, k) if is_rounding(j)), k)
    grown, shift = np.eye(k, dtype=complex), 0.0
    for _ in range(steps):
        grown = q.conj().T @ (m @ (q @ grown))
        grown, shift = _scaled(grown, shift)
    return Growth(
        value.real,
        value.imag,
        abs(value),
        math.degrees(math.atan2(value.imag, value.real)) if value else 0.0,
        k,
        chain,
        _log_closed(value, powers[:k], steps),
        _log_norm(grown) + shift,
        error,
    )


def _log_closed(value: complex, powers: Sequence[np.ndarray], steps: int) -> float:
    """log of the norm of `sum_j C(T, j) lambda^(T - j) N^j`."""
    if value == 0:
        return _log_norm(powers[steps]) if steps < len(powers) else -math.inf
    # each term in a length, by its logarithm, and a direction: coefficients leave the range of floats near 0
    terms = [
        (math.log(math.comb(steps, j)) - j * math.log(abs(value)) + _log_norm(power), power)
        for j, power in enumerate(powers[: steps + 1])
        if power.any()
    ]
    largest = max(log for log, _ in terms)
    total, turn = np.zeros_like(powers[0]), abs(value) / value
    for j, (log, power) in enumerate(terms):
        total = total + turn**j * math.exp(log - largest) * (power / np.linalg.norm(power, 2))
    return steps * math.log(abs(value)) + largest + _log_norm(total)


def _scaled(a: np.ndarray, shift: float) -> tuple[np.ndarray, float]:
    exponent = math.frexp(float(np.abs(a).max()))[1] if a.any() else 0
    return a * 2.0**-exponent, shift + exponent * math.log(2)


def _log_norm(a: np.ndarray) -> float:
    length = float(np.linalg.norm(a, 2))
    return math.log(length) if length else -math.inf


Multiply = Callable[[np.ndarray], np.ndarray]


def largest(multiply: Multiply, transposed: Multiply, n: int, count: int, steps: int, seed: int) -> Eigen:
    """The `count` eigenvalues of largest modulus by ARPACK, from products with M and `M^T`."""
    values, vectors = _arpack(multiply, n, count, seed)
    rows = []
    for value, vector in zip(values, vectors.T, strict=True):
        product = multiply(vector.real) + 1j * multiply(vector.imag)
        log, measured = (steps * math.log(x) if x else -math.inf for x in (abs(value), np.linalg.norm(product)))
        turns = math.degrees(math.atan2(value.imag, value.real))
        off = float(np.linalg.norm(product - value * vector))
        rows.append(Growth(float(value.real), float(value.imag), abs(value), turns, 1, 1, log, measured, off))
    rows.sort(key=lambda row: (-row.modulus, -row.imaginary))
    values, vectors = _arpack(transposed, n, count, seed)
    top = np.abs(values) >= np.abs(values).max() - max(row.error for row in rows)
    return Eigen(tuple(rows), math.nan, math.nan, scipy.linalg.orth(vectors[:, top]))


def _arpack(multiply: Multiply, n: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    operator = LinearOperator((n, n), matvec=multiply, dtype=np.float64)
    try:
        values, vectors = eigs(operator, k=count, v0=np.random.default_rng(seed).standard_normal(n))
    except ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors  # those that did
    except ArpackError:  # such as of a matrix that makes 0 of the starting vector
        values, vectors = np.empty(0), np.empty((n, 0))
    if not len(values):
        got, do = f"a matrix of {n} rows none of whose eigenvalues ARPACK finds", f"Pass dense={n}."
        raise ValueError(message("gf.diagnose.recurrence(W, ...)", got=got, expected="one", do=do))
    return np.asarray(values), np.asarray(vectors)
