"""A symmetric matrix of blocks, each with eigenvectors that are a Kronecker product: products, inverses."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._errors import POSITIVE, check_number, message
from .._tree import Tensors
from ._products import flattened

Damping = float | Mapping[str, float]


def dampings(call: str, damping: Damping, names: Collection[str]) -> dict[str, float]:
    """A number above 0 for each parameter."""
    each = dict(damping) if isinstance(damping, Mapping) else dict.fromkeys(names, damping)
    for name in names:
        if name not in each:
            raise ValueError(message(call, got=f"damping without {name!r}", expected="a number for each parameter"))
        check_number(call, "damping", each[name], POSITIVE)
    return each


@dataclass(frozen=True, eq=False)
class EigenFactors:
    """An approximate Fisher matrix, one block a parameter; float64. Made by `corrected_kronecker_factors`.

    The block of a parameter with factors turns a matrix V `[R, C]`, the parameter's entries, into
    `U_G (S * (U_G^T V U_A)) U_A^T`.

    Attributes:
        inputs: U_A, eigenvectors in columns, `{name: [C, C]}`.
        outputs: U_G, `{name: [R, R]}`.
        eigenvalues: S, `{name: [R, C]}`.
        diagonal: of parameters without factors, `{name: tensor}`.
        shapes: of all parameters, by name.
    """

    inputs: Tensors = field(repr=False)
    outputs: Tensors = field(repr=False)
    eigenvalues: Tensors = field(repr=False)
    diagonal: Tensors = field(repr=False)
    shapes: dict[str, tuple[int, ...]]

    def product(self, direction: Mapping[str, Tensor]) -> Tensors:
        """The matrix times a direction, `{name: tensor}`: four small products a parameter.

        Raises:
            TypeError, ValueError: another direction.
        """
        return self._apply("EigenFactors.product(direction)", direction, lambda name, v, s: v * s)

    def solve(self, direction: Mapping[str, Tensor], *, damping: Damping) -> Tensors:
        """The inverse of the matrix plus `damping` times the identity, times a direction: `{name: tensor}`.

        Exact for each block; four products.

        Args:
            direction: `{name: tensor}`.
            damping: of all parameters, or `{name: number}`, such as of `relative_damping`.

        Raises:
            TypeError, ValueError: another direction; a damping that is not above 0, or without some parameter.
        """
        call = "EigenFactors.solve(direction, damping)"
        each = dampings(call, damping, self.shapes)
        return self._apply(call, direction, lambda name, v, s: v / (s + each[name]))

    def relative_damping(self, share: float = 0.1) -> dict[str, float]:
        """A share of each block's mean eigenvalue, `{name: number}`: Grosse et al. 2023 (arXiv 2308.03296) take 0.1.

        A block of zeros, which has none, takes the mean of all blocks.

        Raises:
            TypeError, ValueError: a share that is not above 0.
        """
        check_number("EigenFactors.relative_damping(share)", "share", share, POSITIVE)
        held = self.diagonal | self.eigenvalues
        sizes = {name: max(1, held[name].numel()) for name in self.shapes}
        traces = {name: float(held[name].sum()) for name in self.shapes}
        whole = sum(traces.values()) / max(1, sum(sizes.values()))
        return {name: share * (traces[name] / size or whole) for name, size in sizes.items()}

    def dense(self, name: str) -> Tensor:
        """The block of one parameter, entries in their own order: for small cases and tests."""
        if name in self.diagonal:
            return torch.diag(self.diagonal[name].flatten())
        basis = torch.kron(self.outputs[name], self.inputs[name])
        return (basis * self.eigenvalues[name].flatten()) @ basis.T

    def _apply(
        self, call: str, direction: Mapping[str, Tensor], scaled: Callable[[str, Tensor, Tensor], Tensor]
    ) -> Tensors:
        flattened(call, direction, self.shapes)
        held = self.diagonal | self.eigenvalues
        v = {name: direction[name].detach().to(held[name]) for name in self.shapes}
        out = {name: scaled(name, v[name], value) for name, value in self.diagonal.items()}
        for name, values in self.eigenvalues.items():
            down, across = self.outputs[name], self.inputs[name]
            turned = down.T @ v[name].reshape(values.shape) @ across
            out[name] = down @ scaled(name, turned, values) @ across.T
        return {name: out[name].reshape(shape) for name, shape in self.shapes.items()}
