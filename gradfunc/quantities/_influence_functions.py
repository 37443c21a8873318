"""Influence functions: what a training sample did to a loss, by the inverse of the curvature."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

from .._errors import NOT_NEGATIVE, POSITIVE, check_int, check_number, message
from .._per_sample import PerSampleGrads, per_sample_grads
from .._per_sample._function import PerSampleGradsFunction
from .._tree import Tensors, splatted
from ._eigen import Damping, EigenFactors, dampings
from ._ends import Array, Products
from ._hessian import MeanHessian
from ._kronecker import KroneckerFactors
from ._products import flattened
from ._read import function_of, on_batch

Solve = Callable[[Tensors], Tensors]
Curvature = str | KroneckerFactors | EigenFactors


def influence_functions(
    loss: Callable[..., Any] | PerSampleGradsFunction,
    params: Mapping[str, Tensor],
    train: Any,
    test: Any,
    *,
    damping: Damping,
    curvature: Curvature = "hessian",
    test_loss: Callable[..., Any] | PerSampleGradsFunction | None = None,
    tol: float = 1e-6,
    max_products: int = 1000,
    **options: Any,
) -> Tensor:
    """`<h_j, (H + damping)^-1 g_i>`, `[n, m]`: the influence of training sample i on the loss of test sample j.

    Koh and Liang 2017, "Understanding black-box predictions via influence functions" (arXiv 1703.04730, eq. 2), with
    the sign of `grad_dot` and `tracin`: positive where i helps j. At a minimum of the mean loss, training without
    sample i changes the loss of j by about this over the total weight of the training samples.

    | curvature          | H                                                    | a test sample costs         |
    |--------------------|------------------------------------------------------|-----------------------------|
    | "hessian"          | the Hessian of the mean loss, by conjugate gradients | as many products as needed  |
    | `KroneckerFactors` | a Fisher matrix, by `kronecker_factors`              | four small products a layer |
    | `EigenFactors`     | likewise, by `corrected_kronecker_factors`           | likewise                    |

    (The last with `damping=factors.relative_damping(0.1)` as Grosse et al. 2023, arXiv 2308.03296.)

    Bias: a first-order expansion in `1 / n`; damping shrinks it along directions of little curvature; away from a
    minimum it is of the quadratic model (Basu et al. 2021, arXiv 2006.14651). Kronecker factors have theirs besides.

    Cost: per-sample gradients of both batches, which are not materialised but for one test sample at a time, the
    solves, and a `dot` with the training rows for each.

    Args:
        loss: a loss of one sample, one of a batch with `batched=True`, or a `gf.per_sample_grads(...)` function; a
            penalty on parameters belongs in it, or is the damping.
        params: `{name: tensor}`.
        train: a batch: a mapping is passed on as keywords, a tuple or list as positionals, anything else as one.
        test: likewise.
        damping: a multiple of the identity, added to H; >= 0, and > 0 for Kronecker factors, where it may be a number
            for each parameter, such as `factors.relative_damping(0.1)`.
        curvature: "hessian", or Kronecker factors of the same parameters, corrected or not.
        test_loss: of the test samples, if it is another one (without the penalty).
        tol: residuals of conjugate gradients are within this share of the right-hand side.
        max_products: a limit on the products for one test sample.
        options: those of `gf.per_sample_grads`.

    Raises:
        TypeError, ValueError: an argument of another type or range; a direction in which `H + damping` is not positive.
        RuntimeError: no convergence within `max_products`.

    Example:
        >>> import torch, gradfunc as gf
        >>> loss = lambda p, x, y: (p["w"] * x - y).square() / 2
        >>> params, train = {"w": torch.tensor(2.0)}, (torch.tensor([1.0, 1.0]), torch.tensor([1.0, 3.0]))
        >>> test = (torch.tensor([1.0]), torch.tensor([0.0]))
        >>> gf.quantities.influence_functions(loss, params, train, test, damping=0.0)
        tensor([[ 2.],
                [-2.]])
    """
    call = "gf.quantities.influence_functions(loss, params, train, test)"
    f, solve = _solver(call, loss, params, train, damping, curvature, tol, max_products, options)
    other = f if test_loss is None else test_loss
    h = other if isinstance(other, PerSampleGradsFunction) else per_sample_grads(other, **options)
    rows, targets = on_batch(f, params, train), on_batch(h, params, test)
    columns = [rows.dot(_like(solve(_row(targets, j)), rows)) for j in range(targets.batch_size)]
    return torch.stack(columns, 1) if columns else rows.norms().new_zeros(rows.batch_size, 0)


def self_influence_functions(
    loss: Callable[..., Any] | PerSampleGradsFunction,
    params: Mapping[str, Tensor],
    train: Any,
    *,
    damping: Damping,
    curvature: Curvature = "hessian",
    tol: float = 1e-6,
    max_products: int = 1000,
    **options: Any,
) -> Tensor:
    """`<g_i, (H + damping)^-1 g_i>`, `[n]`: the diagonal of `influence_functions` on the training samples themselves.

    What training without sample i adds to its own loss, times the total weight: large where nothing but the sample
    teaches its label. Koh and Liang 2017 (arXiv 1703.04730, section 5.4) look there for wrong labels.

    Bias, errors: as `influence_functions`. Cost: one solve a sample; one row is materialised at a time.

    Args:
        loss, params, train, damping, curvature, tol, max_products, options: as `gf.quantities.influence_functions`.

    Raises:
        TypeError, ValueError, RuntimeError: as there.

    Example:
        >>> import torch, gradfunc as gf
        >>> loss = lambda p, x, y: (p["w"] * x - y).square() / 2
        >>> params, train = {"w": torch.tensor(2.0)}, (torch.tensor([1.0, 1.0]), torch.tensor([1.0, 4.0]))
        >>> gf.quantities.self_influence_functions(loss, params, train, damping=0.0)
        tensor([1., 4.])
    """
    call = "gf.quantities.self_influence_functions(loss, params, train)"
    f, solve = _solver(call, loss, params, train, damping, curvature, tol, max_products, options)
    g = on_batch(f, params, train)
    own = (_row(g, i) for i in range(g.batch_size))
    each = [sum((v.double() * s.double()).sum() for v, s in _pairs(row, solve(row))) for row in own]
    return torch.stack([torch.as_tensor(v) for v in each]).to(g.norms()) if each else g.norms()


def _pairs(row: Tensors, solved: Tensors) -> list[tuple[Tensor, Tensor]]:
    return [(value, solved[name].to(value.device)) for name, value in row.items()]


def _solver(
    call: str,
    loss: Any,
    params: Mapping[str, Tensor],
    train: Any,
    damping: Damping,
    curvature: Curvature,
    tol: float,
    max_products: int,
    options: Mapping[str, Any],
) -> tuple[PerSampleGradsFunction, Solve]:
    """The function of the training samples, and the inverse of their damped curvature."""
    factors = curvature if isinstance(curvature, KroneckerFactors | EigenFactors) else None
    if factors is None and curvature != "hessian":
        got, expected = f"curvature={curvature!r}", "'hessian' or gf.quantities.KroneckerFactors or EigenFactors"
        raise ValueError(message(call, got=got, expected=expected))
    check_number(call, "tol", tol, POSITIVE)
    check_int(call, "max_products", max_products, 1)
    if factors is not None:
        each = dampings(call, damping, factors.shapes)
        return function_of(call, loss, options), functools.partial(factors.solve, damping=each)
    if isinstance(damping, Mapping):
        do = "Pass one number, or Kronecker factors."
        raise TypeError(message(call, got="a damping of each parameter", expected="one of the Hessian", do=do))
    check_number(call, "damping", damping, NOT_NEGATIVE)
    f = function_of(call, loss, options)
    return f, _by_cg(call, f, params, train, damping, tol, max_products)


def _by_cg(
    call: str, f: PerSampleGradsFunction, params: Any, batch: Any, damping: float, tol: float, limit: int
) -> Solve:
    args, kwargs = splatted(batch)
    hessian = MeanHessian.of(call, f, (params, args, kwargs), None)
    products = Products(call, hessian)
    shapes = {name: tuple(shape) for name, shape in hessian.shapes.items()}

    def damped(vector: Array) -> Array:
        flat = vector.reshape(-1)
        image = products(flat) + damping * flat
        if flat.any() and float(flat @ image) <= 0:
            got = f"a direction in which the curvature is {float(flat @ image) / float(flat @ flat):.3g}"
            do = "Raise damping=, train to a minimum, or pass Kronecker factors, which are never negative."
            raise ValueError(message(call, got=got, expected="H + damping to be positive", do=do))
        return image

    operator = LinearOperator((hessian.size, hessian.size), matvec=damped, dtype=np.float64)

    def solve(row: Tensors) -> Tensors:
        target = flattened(call, row, shapes).numpy()
        found, info = cg(operator, target, rtol=tol, atol=0.0, maxiter=limit)
        if info:
            got, do = f"no convergence within {limit} products at tol={tol:g}", "Raise damping=, tol= or max_products=."
            raise RuntimeError(message(call, got=got, expected="fewer to suffice", do=do))
        return hessian.named(torch.from_numpy(found))

    return solve


def _row(g: PerSampleGrads, j: int) -> Tensors:
    return g.select([j]).sum(wide=True)


def _like(values: Tensors, g: PerSampleGrads) -> Tensors:
    return {name: values[name].to(like.device, like.dtype) for name, like in g._shapes.items()}
