"""A matrix for inputs and one for cotangents: their product is projected without being formed."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._errors import kind_of, message
from .._factors import Factor, compressed
from ._count_sketch import CountSketch
from ._dense import Gaussian
from ._keys import by_variance, checked


@dataclass(frozen=True)
class TwoSided:
    """`(P_o ⊗ P_i) vec(G)` of a parameter's gradient G as a matrix. Made by `gf.projections.two_sided`.

    Attributes:
        sizes: (k_o, k_i): how many numbers the cotangents' side becomes, and the inputs'.
        seed: other matrices for each.
        drawn: about how many entries of a side are drawn at a time; no part of what the projection is.
    """

    sizes: tuple[int, int]
    seed: int = 0
    drawn: int = field(default=2**20, compare=False, repr=False)
    kind: ClassVar[str] = "two_sided"

    @property
    def size(self) -> int:
        """k_o k_i."""
        return math.prod(self.sizes)

    def columns(self, name: str, entries: Tensor, shape: tuple[int, ...]) -> Tensor:
        """`[n, size]`: the matrix for n entries of the parameter `name` of this shape, float64."""
        if len(shape) < 2:
            return self._of_vectors.columns(name, entries).double()
        left, right = (
            side.columns(label, at).double()
            for (side, label), at in zip(self._sides(name), _at(entries, shape), strict=True)
        )
        return (left[:, :, None] * right[:, None, :]).flatten(1)

    def apply(self, name: str, factor: Factor) -> Tensor:
        """Both halves of a factor through their own side, then multiplied: `[B, size]`."""
        if len(factor.shape) < 2:
            return self._of_vectors.apply(name, factor)
        left, right = (functools.partial(side.columns, label) for side, label in self._sides(name))
        return compressed(factor, left, right, self.sizes, self.drawn).flatten(1)

    @property
    def variance(self) -> float:
        """Of <Pu, Pv> for unit vectors, at most: (1 + 2 / k_o)(1 + 2 / k_i) - 1.

        That of matrices; the 2 / (k_o k_i) of vectors is less.
        """
        return math.prod(1 + 2 / k for k in self.sizes) - 1

    def error(self, failure: float = 0.01) -> float:
        """The eps such that |<Pu, Pv> - <u, v>| <= eps |u| |v| for given u, v, but with probability `failure`.

        Chebyshev's bound: products of normal numbers have heavy tails.
        """
        return by_variance("two_sided(...).error(failure)", self.variance, failure)

    def to_dict(self) -> dict[str, Any]:
        """What names the projection, JSON-ready; `gf.projections.from_dict` reads it."""
        return {"kind": self.kind, "sizes": list(self.sizes), "seed": self.seed}

    @property
    def _of_vectors(self) -> CountSketch:
        """For what is no matrix, and has no sides to be projected."""
        return CountSketch(self.size, self.seed, self.drawn)

    def _sides(self, name: str) -> tuple[tuple[Gaussian, str], tuple[Gaussian, str]]:
        """What draws each side, and under which name: no parameter has a line break in its own."""
        k_o, k_i = self.sizes
        return (Gaussian(k_o, self.seed), f"{name}\noutputs"), (Gaussian(k_i, self.seed), f"{name}\ninputs")


def _at(entries: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The row and the column of each entry of a matrix `[shape[0], all others]`."""
    inputs = math.prod(shape[1:])
    return torch.div(entries, inputs, rounding_mode="floor"), entries % inputs


def two_sided(sizes: tuple[int, int], seed: int = 0) -> TwoSided:
    """`P_o G P_i^T` of each parameter's gradient G, `[out, in]` (LoGra: Choe et al. 2024, arXiv 2405.13954, section 3).

    It draws k_o normal numbers for each output, k_i for each input, and one word for each entry of a vector; no row of
    a product, an embedding or a convolution is formed. The gradient of a product is `sum_t g_t x_t^T`, hence
    `sum_t (P_o g_t)(P_i x_t)^T`: cotangents and inputs are projected, and multiplied when they are small. A weight of
    more dimensions is a matrix `[shape[0], all others]`. Entries of P_o and P_i are independent N(0, 1 / k_o) and
    N(0, 1 / k_i). Parameters are added; `per_parameter` keeps them apart, as the paper does.

    Parameters of fewer than two dimensions (biases, affines of norms) have no sides: they go through `count_sketch` of
    k_o k_i numbers, where a dense matrix would draw k_o k_i for each entry. The paper leaves them out.

    <Pu, Pv> has mean <u, v> and variance at most `((1 + 2 / k_o)(1 + 2 / k_i) - 1) |u|^2 |v|^2`; of vectors alone, at
    most `2 / (k_o k_i) |u|^2 |v|^2`, which is less.

    Args:
        sizes: (k_o, k_i), each at least 1.
        seed: other matrices for each, at least 0.

    Raises:
        TypeError, ValueError: something else.

    Example:
        >>> import gradfunc as gf
        >>> model = gf.stateless(gf.models.mlp([20, 30, 5]))
        >>> f = gf.per_sample_grads(lambda p, x: model.sample(p, x).square().sum())
        >>> f(model.params, torch.ones(3, 20)).project(gf.projections.two_sided((4, 8))).shape
        torch.Size([3, 32])
    """
    call = "gf.projections.two_sided(sizes, seed)"
    if not isinstance(sizes, (tuple, list)) or len(sizes) != 2:
        raise TypeError(message(call, got=f"sizes={sizes!r} ({kind_of(sizes)})", expected="two ints (k_o, k_i)"))
    for size in sizes:
        checked(call, size, seed)
    return TwoSided((sizes[0], sizes[1]), seed)
