"""Kronecker factors of the Fisher matrix, and what they are good for: products, inverses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._errors import message, one_of
from .._factors import Gradient
from .._per_sample import per_sample_grads
from .._per_sample._function import PerSampleGradsFunction
from .._tree import Tensors, splatted, static
from ._eigen import Damping, EigenFactors, dampings
from ._fisher import root_part
from ._kernels import check_options, flat_output
from ._likelihood import LIKELIHOODS
from ._products import flattened
from ._read import function_of
from ._sides import per_unit_of, unit_sides

SETTINGS = ("expand", "reduce")
# A vector's own block of the Fisher matrix is held whole up to this many entries, its diagonal above.
WHOLE = 4096


@dataclass(frozen=True, eq=False)
class KroneckerFactors:
    """An approximate Fisher matrix, one block a parameter; float64. Made by `gf.quantities.kronecker_factors`.

    The block of a parameter with factors acts on a matrix V `[R, C]`, the parameter's entries, as `G V A`.

    Attributes:
        inputs: A, `{name: [C, C]}`.
        outputs: G, `{name: [R, R]}`.
        diagonal: of parameters without factors, `{name: tensor}`.
        shapes: of all parameters, by name.
    """

    inputs: Tensors = field(repr=False)
    outputs: Tensors = field(repr=False)
    diagonal: Tensors = field(repr=False)
    shapes: dict[str, tuple[int, ...]]

    def product(self, direction: Mapping[str, Tensor]) -> Tensors:
        """The matrix times a direction, `{name: tensor}`: two small products a parameter.

        Raises:
            TypeError, ValueError: another direction.
        """
        flattened("KroneckerFactors.product(direction)", direction, self.shapes)
        held = self.diagonal | self.outputs
        v = {name: direction[name].detach().to(held[name]) for name in self.shapes}
        out = {name: v[name] * value for name, value in self.diagonal.items()}
        for name, a in self.inputs.items():
            out[name] = self.outputs[name] @ v[name].reshape(len(self.outputs[name]), len(a)) @ a
        return {name: out[name].reshape(shape) for name, shape in self.shapes.items()}

    def solve(self, direction: Mapping[str, Tensor], *, damping: Damping) -> Tensors:
        """The inverse of the matrix plus `damping` times the identity, times a direction: `{name: tensor}`.

        Exact for each block, by the eigenvectors of its factors, which are computed once: `O(R^3 + C^3)`, then four
        products. (No factored damping: `G + root damping` and `A + root damping` would be another matrix.)

        Args:
            direction: `{name: tensor}`.
            damping: of all parameters, or `{name: number}`, such as of `relative_damping`.

        Raises:
            TypeError, ValueError: another direction; a damping that is not above 0, or without some parameter.
        """
        call = "KroneckerFactors.solve(direction, damping)"
        each = dampings(call, damping, self.shapes)
        flattened(call, direction, self.shapes)
        return self.eigen.solve(direction, damping=each)

    def relative_damping(self, share: float = 0.1) -> dict[str, float]:
        """As `EigenFactors.relative_damping`."""
        return self.eigen.relative_damping(share)

    def dense(self, name: str) -> Tensor:
        """The block of one parameter, entries in their own order: for small cases and tests."""
        if name in self.diagonal:
            return torch.diag(self.diagonal[name].flatten())
        return torch.kron(self.outputs[name], self.inputs[name])

    @functools.cached_property
    def eigen(self) -> EigenFactors:
        """The same matrix by the eigenvectors of its factors, computed once: `O(R^3 + C^3)` a parameter."""
        inputs, outputs, values = {}, {}, {}
        for name, a in self.inputs.items():
            along, inputs[name] = _eigh(a)
            down, outputs[name] = _eigh(self.outputs[name])
            values[name] = down[:, None] * along
        return EigenFactors(inputs, outputs, values, self.diagonal, self.shapes)


def kronecker_factors(
    loss: Callable[..., Any] | PerSampleGradsFunction,
    params: Mapping[str, Tensor],
    batch: Any,
    *,
    likelihood: str | None = None,
    setting: str = "expand",
    **options: Any,
) -> KroneckerFactors:
    """Kronecker factors of the Fisher matrix, a block a parameter: `F = sum p_i u_i u_i^T` is about `G (x) A`.

    Where a row is `u_i = sum_t e_it x_it^T` of inputs x and cotangents e of T positions (tokens, pixels), shares p:

        "expand":  A = sum p_i sum_t x_it x_it^T / T         G = sum p_i sum_t e_it e_it^T
        "reduce":  A = sum p_i xbar_i xbar_i^T, a mean over t  G = sum p_i ebar_i ebar_i^T, a sum over t

    Martens and Grosse 2015, "Optimizing neural networks with Kronecker-factored approximate curvature" (arXiv
    1503.05671); convolutions, "expand": Grosse and Martens 2016 (arXiv 1602.01407); both settings:
    Eschenhagen et al. 2023, "Kronecker-factored approximate curvature for modern neural network architectures" (arXiv
    2311.00636): "expand" is meant for a loss a position, "reduce" for one loss of all of them. Weight and bias have
    blocks of their own. A vector (a bias, a scale) has its exact block up to 4096 entries; what is neither a vector nor
    one product (an embedding, a tied or derived weight, a grouped convolution) its exact diagonal.

    Bias: an approximation, no estimate: `E[G (x) A]` stands for `E[e e^T (x) x x^T]`. Exact for one sample and one
    position, and where inputs and cotangents are independent of each other ("expand": and positions among themselves).

    Cost: one forward and backward pass, K with a `likelihood`; two products of the size of a weight gradient a layer;
    `R^2 + C^2` numbers a parameter are held.

    Args:
        loss: a loss of one sample (or of a batch, `batched=True`), or a function by `gf.per_sample_grads`: the
            empirical Fisher matrix, of the batch's own labels. With a `likelihood`, the outputs of one sample.
        params, batch, options: as `gf.quantities.output_grads`.
        likelihood: None, or as in `gf.quantities.fisher_rows`: the true Fisher matrix, exact over the outputs.
        setting: "expand" or "reduce".

    Raises:
        TypeError, ValueError: what `gf.per_sample_grads` refuses; another likelihood or setting; a total weight of 0.

    Example:
        >>> import torch, gradfunc as gf
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
        >>> found = gf.quantities.kronecker_factors(lambda p, x: (p["w"] @ x).sum(), {"w": torch.ones(1, 2)}, x)
        >>> found.inputs["w"], found.outputs["w"]
        (tensor([[5., 1.],
                [1., 2.]], dtype=torch.float64), tensor([[1.]], dtype=torch.float64))
    """
    call = "gf.quantities.kronecker_factors(loss, params, batch)"
    one_of(call, "setting", setting, SETTINGS)
    sums: dict[str, list[Tensor]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    weight = torch.zeros((), dtype=torch.float64)
    for run in runs_of(call, loss, params, batch, likelihood, options):
        for rows, weights, scale in run.factors():
            weight = weight + weights.double().sum().to(weight.device)
            for name, gradient in rows.items():
                shapes[name] = tuple(gradient.like.shape)
                found = _sums(gradient, weights.double().to(gradient.like.device), scale, setting)
                sums[name] = _added(call, name, sums[name], found) if name in sums else found
    if float(weight) == 0:
        do = "The batch is empty, or every sample is ignored."
        raise ValueError(message(call, got="a total weight of 0", expected="a sample of weight > 0", do=do))
    means = {name: [value / weight.to(value.device) for value in values] for name, values in sums.items()}
    factored = {name: values for name, values in means.items() if len(values) == 2}
    return KroneckerFactors(
        {name: a for name, (a, _) in factored.items()},
        {name: b for name, (_, b) in factored.items()},
        {name: values[0] for name, values in means.items() if len(values) == 1},
        shapes,
    )


def runs_of(
    call: str, loss: Any, params: Any, batch: Any, likelihood: str | None, options: Mapping[str, Any]
) -> Iterator[Any]:
    """What gives the rows of the empirical Fisher matrix, or of the true one, as factors."""
    args, kwargs = splatted(batch)
    if likelihood is None:
        return iter([function_of(call, loss, options).evaluation(params, args, kwargs)])
    one_of(call, "likelihood", likelihood, LIKELIHOODS)
    check_options(call, options)
    return _by_output(call, loss, params, likelihood, args, kwargs, options)


def _by_output(
    call: str, outputs: Any, params: Any, likelihood: str, args: Any, kwargs: Any, options: Mapping[str, Any]
) -> Iterator[Any]:
    """One run for each output of a sample."""
    part, sizes = root_part(likelihood), [1]

    def loss(p: Mapping[str, Tensor], k: int, *args: Any, **kwargs: Any) -> Any:
        out = flat_output(call, outputs, p, args, kwargs)
        sizes[0] = len(out)
        return part(out, k)

    f, k = per_sample_grads(loss, **options), 0
    while k < sizes[0]:
        yield f.evaluation(params, (static(k), *args), kwargs)
        k += 1


def _added(call: str, name: str, a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    if len(a) != len(b):
        got = f"products for '{name}' in some chunks and none in others, where at most one sample reaches it"
        raise ValueError(message(call, got=got, expected="one form of all chunks", do="Pass a larger chunk_size."))
    return [one + other for one, other in zip(a, b, strict=True)]


def _sums(gradient: Gradient, w: Tensor, scale: float, setting: str) -> list[Tensor]:
    """Sums over samples of A and G; of the squared entries alone where there is no product."""
    sides = unit_sides(gradient, w, scale)
    if sides is None:
        unit = per_unit_of(w, scale)[:, None]
        rows = torch.where(
            unit == 0, 0.0, gradient.dense().reshape(gradient.size, gradient.like.numel()).double() * unit
        )
        if gradient.like.dim() <= 1 and gradient.like.numel() <= WHOLE:
            one = w.sum().reshape(1, 1)  # a vector is a product with 1
            return [one, (rows * w[:, None]).T @ rows]
        return [(w @ rows.square()).reshape(gradient.like.shape)]
    total: list[Tensor] = []
    for own, x, e in sides:
        t = max(1, x.shape[1])
        if setting == "reduce":
            x, e, t = x.mean(1, keepdim=True), e.sum(1, keepdim=True), 1
        found = [_product(x, own / t), _product(e, own)]
        total = [a + b for a, b in zip(total, found, strict=True)] if total else found
    return total


def _product(side: Tensor, w: Tensor) -> Tensor:
    flat = side.flatten(0, 1)
    return (flat * w.repeat_interleave(side.shape[1])[:, None]).T @ flat


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return values.clamp(min=0), vectors
