"""Entries that are independent of each other, of one distribution each; and constants."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .._errors import FINITE, NOT_NEGATIVE, check_number
from ._scheme import Scheme, Shape, spelled

# Of a standard normal number given that it lies within 2 of 0: 1 - 2 a phi(a) / (2 Phi(a) - 1) at a = 2 (Johnson, Kotz,
# Balakrishnan 1994, "Continuous Univariate Distributions" 1, section 10.1).
WITHIN = 2.0
TRUNCATED_STD = math.sqrt(
    1 - 2 * WITHIN * math.exp(-(WITHIN**2) / 2) / math.sqrt(2 * math.pi) / math.erf(WITHIN / math.sqrt(2))
)


def draw(distribution: str, std: float, shape: Shape, dtype: torch.dtype, source: torch.Generator | None) -> Tensor:
    """Entries of mean 0 and this standard deviation, by torch's functions; the distributions of `variance_scaling`."""
    out = torch.empty(shape, dtype=dtype)
    if distribution == "normal":
        return nn.init.normal_(out, 0.0, std, source)
    if distribution == "uniform":
        bound = math.sqrt(3.0) * std
        return nn.init.uniform_(out, -bound, bound, source)
    if std == 0:  # what torch's function divides by
        return out.zero_()
    wide = std / TRUNCATED_STD
    return nn.init.trunc_normal_(out, 0.0, wide, -WITHIN * wide, WITHIN * wide, source)


@dataclass(frozen=True, repr=False, kw_only=True)
class Entries(Scheme):
    """Made by `normal`, `truncated_normal`."""

    distribution: str
    spread: float
    centre: float = 0.0

    def _drawn(self, shape: Shape, dtype: torch.dtype, source: torch.Generator | None) -> Tensor:
        if self.distribution == "normal":
            return nn.init.normal_(torch.empty(shape, dtype=dtype), self.centre, self.spread, source)
        return draw(self.distribution, self.spread, shape, dtype, source)

    def _aims(self, shape: Shape) -> tuple[float, float]:
        return self.centre, self.spread**2


@dataclass(frozen=True, repr=False, kw_only=True)
class Uniform(Scheme):
    """Made by `uniform`."""

    bound: float

    def _drawn(self, shape: Shape, dtype: torch.dtype, source: torch.Generator | None) -> Tensor:
        return nn.init.uniform_(torch.empty(shape, dtype=dtype), -self.bound, self.bound, source)

    def _aims(self, shape: Shape) -> tuple[float, float]:
        return 0.0, self.bound**2 / 3


@dataclass(frozen=True, repr=False, kw_only=True)
class Constant(Scheme):
    """Made by `constant`, `zeros`, `ones`, `layer_scale`."""

    value: float

    @property
    def draws(self) -> bool:
        """No."""
        return False

    def _drawn(self, shape: Shape, dtype: torch.dtype, source: torch.Generator | None) -> Tensor:
        return nn.init.constant_(torch.empty(shape, dtype=dtype), self.value)

    def _aims(self, shape: Shape) -> tuple[float, float]:
        return self.value, 0.0


def normal(std: float = 1.0, *, mean: float = 0.0) -> Scheme:
    """Independent normal numbers: torch's `normal_`.

    Example:
        >>> import gradfunc as gf
        >>> gf.init.normal(0.02)((2, 3), key=0).shape
        torch.Size([2, 3])
    """
    call = "gf.init.normal(std)"
    check_number(call, "std", std, NOT_NEGATIVE)
    check_number(call, "mean", mean, FINITE)
    said = spelled("normal", std, mean=(mean, 0.0))
    return Entries(said=said, distribution="normal", spread=float(std), centre=float(mean))


def truncated_normal(std: float = 1.0) -> Scheme:
    """Normal numbers drawn again beyond two standard deviations, so wide that `std` is what is left: `trunc_normal_`.

    What is cut off takes .226 of the variance, so the normal distribution before has `std / .8796`, and no entry is
    larger than `2 std / .8796 = 2.274 std`. `trunc_normal_(std=s)` itself says s of the distribution before the cut.

    Example:
        >>> import gradfunc as gf
        >>> w = gf.init.truncated_normal(0.02)((100, 100), key=0)
        >>> bool(w.abs().max() <= 2.274 * 0.02), round(float(w.std()), 3)
        (True, 0.02)
    """
    check_number("gf.init.truncated_normal(std)", "std", std, NOT_NEGATIVE)
    said = spelled("truncated_normal", std)
    return Entries(said=said, distribution="truncated_normal", spread=float(std))


def uniform(bound: float = 1.0) -> Scheme:
    """Independent numbers between -bound and bound, all alike: torch's `uniform_`. Their variance is bound^2 / 3.

    Example:
        >>> import gradfunc as gf
        >>> gf.init.uniform(3.0).variance((4,))
        3.0
    """
    check_number("gf.init.uniform(bound)", "bound", bound, NOT_NEGATIVE)
    return Uniform(said=spelled("uniform", bound), bound=float(bound))


def constant(value: float) -> Scheme:
    """The same number everywhere.

    Example:
        >>> import gradfunc as gf
        >>> gf.init.constant(0.5)((2,))
        tensor([0.5000, 0.5000])
    """
    check_number("gf.init.constant(value)", "value", value, FINITE)
    return Constant(said=spelled("constant", value), value=float(value))


def zeros() -> Scheme:
    """Zeros, as biases begin.

    Example:
        >>> import gradfunc as gf
        >>> gf.init.zeros()((2,))
        tensor([0., 0.])
    """
    return Constant(said="zeros()", value=0.0)


def ones() -> Scheme:
    """Ones, as the weights of normalisation layers begin.

    Example:
        >>> import gradfunc as gf
        >>> gf.init.ones()((2,))
        tensor([1., 1.])
    """
    return Constant(said="ones()", value=1.0)
