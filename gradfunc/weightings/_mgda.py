"""The shortest weighted mean of the rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._errors import check_int, kind_of, message
from ._gram import checked, given
from ._mean import Mean


@dataclass(frozen=True)
class Mgda:
    """Made by `gf.weightings.mgda`, which has the meanings."""

    tolerance: float
    max_iterations: int

    def __call__(self, gram: Tensor, /) -> Tensor:
        """`[n]`.

        Raises:
            RuntimeError: the tolerance was not reached.
        """
        call = f"{self!r}(gram)"
        k = checked(call, gram)
        largest = float(k.diagonal().max()) if len(k) else 0.0
        if largest <= 0:  # every combination is 0
            return Mean()(gram)
        k = _semidefinite(k / largest)
        c, gap = _nearest_to_zero(k, self.tolerance, self.max_iterations)
        if gap > self.tolerance:
            got = f"a duality gap of {gap:.1e} of the largest squared norm after {self.max_iterations} iterations"
            do = "Raise max_iterations, or the tolerance."
            raise RuntimeError(message(call, got=got, expected=f"at most {self.tolerance:.1e}", do=do))
        return given(c, gram)

    def __repr__(self) -> str:
        return f"mgda(tolerance={self.tolerance!r}, max_iterations={self.max_iterations!r})"


def mgda(*, tolerance: float = 1e-9, max_iterations: int = 1000) -> Mgda:
    """The shortest vector among all weighted means of the rows: the direction in which no row's loss increases.

    Coefficients are >= 0 and sum to 1 (multiple-gradient descent, Désidéri 2012). They are found by Wolfe's active-set
    method (1976, "Finding the nearest point in a polytope"), which ends after finitely many steps, on the matrix with
    the negative eigenvalues that rounding left taken off. Where rows depend on each other several coefficients give
    the one shortest vector; one of them is returned.

    Args:
        tolerance: on the duality gap `|x|^2 - min_i <x, g_i>` over the largest squared norm of a row. The gap bounds
            the squared distance of x from the shortest vector: `gf.weightings.duality_gap` measures it.
        max_iterations: rows that may enter the active set, counted with repetition.

    Raises:
        TypeError, ValueError: an argument out of range; called with something else than a finite square matrix.
        RuntimeError: called, the gap does not fall to the tolerance.

    Example:
        >>> import torch, gradfunc as gf
        >>> rows = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
        >>> c = gf.weightings.mgda()(rows @ rows.T)
        >>> c, c @ rows
        (tensor([0.8000, 0.2000, 0.0000]), tensor([0.8000, 0.4000]))
    """
    call = "gf.weightings.mgda(...)"
    if not isinstance(tolerance, (int, float)) or isinstance(tolerance, bool):
        raise TypeError(message(call, got=f"tolerance={tolerance!r}", expected="a number"))
    if not 0 < tolerance < math.inf:
        raise ValueError(message(call, got=f"tolerance={tolerance!r}", expected="a finite number > 0"))
    check_int(call, "max_iterations", max_iterations, 1)
    return Mgda(float(tolerance), max_iterations)


def duality_gap(gram: Tensor, c: Tensor) -> Tensor:
    """`|x|^2 - min_i <x, g_i>` of the vector x with these coefficients, `[]` in float64.

    For c >= 0 of sum 1 it is 0 only where x is the shortest weighted mean of the rows, and never less than the squared
    distance from that.

    Raises:
        TypeError, ValueError: no finite square matrix; coefficients of another length.

    Example:
        >>> import torch, gradfunc as gf
        >>> gf.weightings.duality_gap(torch.eye(2), torch.tensor([0.5, 0.5]))
        tensor(0., dtype=torch.float64)
    """
    call = "gf.weightings.duality_gap(gram, c)"
    k = checked(call, gram)
    if not isinstance(c, Tensor) or c.shape != (len(k),) or not len(k):
        got = f"c of shape {tuple(c.shape)}" if isinstance(c, Tensor) else kind_of(c)
        raise ValueError(message(call, got=got, expected=f"one coefficient for each of {len(k)} rows, at least one"))
    c = c.detach().to(k)
    products = k @ c
    return c @ products - products.min()


def _nearest_to_zero(k: Tensor, tolerance: float, max_iterations: int) -> tuple[Tensor, float]:
    """Wolfe's method: coefficients of the shortest weighted mean, and the duality gap that is left."""
    c = torch.zeros(len(k), dtype=k.dtype)
    c[k.diagonal().argmin()] = 1.0
    best, least = c, math.inf
    for _ in range(max_iterations):
        products = k @ c
        entering = int(products.argmin())
        if (gap := float(c @ products - products[entering])) < least:
            best, least = c, gap
        active = c > 0
        if gap <= tolerance or bool(active[entering]):  # what is active and least again is rounding
            break
        active[entering] = True
        c = _on_face(k, c, active)
    return best, least


def _on_face(k: Tensor, c: Tensor, active: Tensor) -> Tensor:
    """From c towards the shortest affine combination of the active rows, giving up those that turn negative."""
    while True:
        rows = active.nonzero()[:, 0]
        target = torch.zeros_like(c)
        target[rows] = _shortest_affine(k[rows[:, None], rows])
        falling = active & (target <= 0)
        if not bool(falling.any()):
            return target
        steps = torch.where(falling, c / (c - target).clamp(min=torch.finfo(c.dtype).tiny), math.inf)
        step = min(float(steps.min()), 1.0)
        c = torch.where(active, c + step * (target - c), 0.0)
        active = active & (steps > step) & (c > 0)
        c = torch.where(active, c, 0.0)
        c = c / c.sum()


def _shortest_affine(k: Tensor) -> Tensor:
    """Coefficients of sum 1 for which `k c` has equal entries."""
    solved = torch.linalg.lstsq(k + 1.0, torch.ones(len(k), 1, dtype=k.dtype), driver="gelsd").solution[:, 0]
    shortest: Tensor = solved / solved.sum()
    return shortest


def _semidefinite(k: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(k)
    return k if float(values[0]) >= 0 else (vectors * values.clamp(min=0)) @ vectors.T
