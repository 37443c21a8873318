"""Products of curvature matrices with vectors: Hessian and generalised Gauss-Newton; traces from products."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._errors import check_int, kind_of, message, one_of
from .._per_sample._function import PerSampleGradsFunction
from .._tree import Tensors, splatted
from .._weights import as_weighted, check_weights, total
from ._hessian import MeanHessian
from ._read import function_of


def hessian_product(
    loss: Callable[..., Any] | PerSampleGradsFunction,
    params: Mapping[str, Tensor],
    batch: Any,
    *,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Callable[[Mapping[str, Tensor]], Tensors]:
    """The Hessian of a batch's mean loss `sum n_i / sum w_i` as a function of a direction: `{name: tensor}` float64.

    Pearlmutter 1994, "Fast exact multiplication by the Hessian" (Neural Computation 6), as one backward pass through
    the graph of the gradient, which is made once and kept, or again for each product of a batch in chunks.

    Bias: none of the batch's Hessian. Cost: a product is about two backward passes.

    Args:
        loss, params, batch, dtype, options: as `gf.quantities.hessian_extremes`.

    Raises:
        TypeError, ValueError: as there.

    Example:
        >>> import torch, gradfunc as gf
        >>> params, x = {"w": torch.zeros(2)}, torch.tensor([[1.0, 2.0]])
        >>> product = gf.quantities.hessian_product(lambda p, x: (p["w"] * x).sum().square() / 2, params, x)
        >>> product({"w": torch.tensor([1.0, 0.0])})["w"]
        tensor([1., 2.], dtype=torch.float64)
    """
    call = "gf.quantities.hessian_product(loss, params, batch)"
    f = function_of(call, loss, options)
    args, kwargs = splatted(batch)
    hessian = MeanHessian.of(call, f, (params, args, kwargs), dtype)

    def product(direction: Mapping[str, Tensor]) -> Tensors:
        vector = flattened(f"{call}(direction)", direction, {k: tuple(v) for k, v in hessian.shapes.items()})
        return hessian.named(hessian.product(vector))

    return product


def ggn_product(
    outputs: Callable[..., Tensor],
    criterion: Callable[..., Any],
    params: Mapping[str, Tensor],
    batch: Any,
) -> Callable[[Mapping[str, Tensor]], Tensors]:
    """The generalised Gauss-Newton matrix `sum_i J_i^T H_i J_i / sum w_i` as a function of a direction.

    J is the Jacobian of a sample's outputs, H the Hessian of its loss in them. Schraudolph 2002, "Fast curvature
    matrix-vector products for second-order gradient descent" (Neural Computation 14); positive semidefinite
    where the criterion is convex in the outputs. `J v` is a derivative of the backward pass, so reverse mode alone is
    needed.

    Bias: none of the batch's matrix. Cost: a product is about three backward passes; the graph of the whole batch is
    kept.

    Args:
        outputs: `outputs(params, *inputs)` of one sample; without draws.
        criterion: `criterion(output, target)` of one sample, a scalar or `gf.Weighted`, twice differentiable.
        params: `{name: tensor}`.
        batch: `(*inputs, target)`, tensors with the samples in dimension 0.

    Raises:
        TypeError, ValueError: a batch that is no tuple of two or more; a total weight of 0.

    Example:
        >>> import torch, gradfunc as gf
        >>> params, batch = {"w": torch.zeros(2)}, (torch.tensor([[1.0, 2.0]]), torch.zeros(1))
        >>> square = lambda out, y: (out - y).square() / 2
        >>> product = gf.quantities.ggn_product(lambda p, x: (p["w"] * x).sum(), square, params, batch)
        >>> product({"w": torch.tensor([1.0, 0.0])})["w"]
        tensor([1., 2.])
    """
    call = "gf.quantities.ggn_product(outputs, criterion, params, batch)"
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        raise TypeError(message(call, got=f"{kind_of(batch)} as batch", expected="a tuple (*inputs, target)"))
    *inputs, target = batch
    leaves = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    with torch.enable_grad():
        out = torch.vmap(lambda *sample: outputs(leaves, *sample), randomness="error")(*inputs)
        seed = torch.zeros_like(out, requires_grad=True)
        back = _grads(out, leaves, seed, create_graph=True)
        seen = out.detach().requires_grad_()
        numerators, weights = torch.vmap(lambda o, y: tuple(as_weighted(call, criterion(o, y), batched=False)))(
            seen, target
        )
        (slope,) = torch.autograd.grad(numerators.sum(), seen, create_graph=True)
    check_weights(call, weights)
    weight = total(weights)
    if float(weight) == 0:
        raise ValueError(message(call, got="a total weight of 0", expected="a sample of weight > 0"))

    def product(direction: Mapping[str, Tensor]) -> Tensors:
        flattened(f"{call}(direction)", direction, {k: tuple(v.shape) for k, v in leaves.items()})
        used = [name for name, value in back.items() if value.requires_grad]
        along = torch.zeros_like(out)
        if used:
            tangents = [direction[name].to(back[name]) for name in used]
            along = torch.autograd.grad([back[k] for k in used], seed, tangents, retain_graph=True)[0]
        curved = torch.zeros_like(along)
        if slope.requires_grad:
            curved = torch.autograd.grad(slope, seen, along, retain_graph=True)[0]
        return {name: v.detach() / weight.to(v) for name, v in _grads(out, leaves, curved).items()}

    return product


@dataclass(frozen=True)
class TraceEstimate:
    """An estimate of a trace, made by `gf.quantities.hutchinson_trace`.

    Attributes:
        value: the mean of `v^T A v`.
        error: its standard error, from the spread of the samples; NaN for one sample.
        samples: how many.
    """

    value: float
    error: float
    samples: int


def hutchinson_trace(
    product: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    params: Mapping[str, Tensor],
    *,
    samples: int = 100,
    distribution: str = "rademacher",
    seed: int = 0,
) -> TraceEstimate:
    """The trace of a symmetric matrix from its products with random vectors: the mean of `v^T A v`.

    Hutchinson 1990, "A stochastic estimator of the trace of the influence matrix" (Communications in Statistics 19).
    Bias: none. The variance of one term is `2 (|A|_F^2 - sum a_ii^2)` for signs, `2 |A|_F^2` for normal entries: signs
    are exact for a diagonal matrix.

    Cost: `samples` products.

    Args:
        product: `{name: tensor}` to `{name: tensor}`, such as of `hessian_product`, `ggn_product`, or
            `lambda v: fisher_product(g, v)`.
        params: what a vector looks like, `{name: tensor}`; only shapes, dtypes and devices are read.
        samples: how many vectors, at least 1.
        distribution: "rademacher" (signs) or "normal".
        seed: of the vectors.

    Raises:
        TypeError, ValueError: an argument of another type or range.

    Example:
        >>> import torch, gradfunc as gf
        >>> scale = torch.tensor([1.0, 2.0, 4.0])
        >>> gf.quantities.hutchinson_trace(lambda v: {"w": scale * v["w"]}, {"w": scale}, samples=2)
        TraceEstimate(value=7.0, error=0.0, samples=2)
    """
    call = "gf.quantities.hutchinson_trace(product, params)"
    check_int(call, "samples", samples, 1)
    check_int(call, "seed", seed, 0)
    one_of(call, "distribution", distribution, ("rademacher", "normal"))
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(samples):
        vector = {}
        for name, like in params.items():
            drawn = torch.randn(like.shape, generator=generator, dtype=torch.float64)
            vector[name] = (drawn if distribution == "normal" else torch.where(drawn < 0, -1.0, 1.0).double()).to(like)
        image = product(vector)
        found.append(sum(float((v.double() * image[k].to(v.device).double()).sum()) for k, v in vector.items()))
    each = torch.tensor(found, dtype=torch.float64)
    error = float(each.std() / samples**0.5) if samples > 1 else float("nan")
    return TraceEstimate(float(each.mean()), error, samples)


def flattened(call: str, direction: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> Tensor:
    """A direction as one vector, `[P]` in float64 on the CPU."""
    if not isinstance(direction, Mapping):
        raise TypeError(message(call, got=kind_of(direction), expected="a dict {name: tensor}"))
    given = {k: tuple(v.shape) if isinstance(v, Tensor) else None for k, v in direction.items()}
    for name, shape in shapes.items():
        if given.get(name) != shape:
            raise ValueError(message(call, got=f"'{name}' of shape {given.get(name)}", expected=f"{shape}"))
    return torch.cat([direction[name].detach().to("cpu", torch.float64).flatten() for name in shapes])


def _grads(out: Tensor, leaves: Tensors, cotangent: Tensor, *, create_graph: bool = False) -> Tensors:
    values = list(leaves.values())
    found = torch.autograd.grad(out, values, cotangent, retain_graph=True, create_graph=create_graph, allow_unused=True)
    return {k: torch.zeros_like(v) if g is None else g for (k, v), g in zip(leaves.items(), found, strict=True)}
