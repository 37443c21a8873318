"""Weights with a structure: orthogonal, identities, sparse."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .._errors import FINITE, NOT_NEGATIVE, Range, check_int, check_number, message
from .._random import drawing_from
from .._tree import wide
from ._scheme import Scheme, Shape, spelled
from ._variance_scaling import check_two

_SHARE = Range("a number in [0, 1]", lambda x: 0 <= x <= 1)


@dataclass(frozen=True, repr=False, kw_only=True)
class Orthogonal(Scheme):
    """Made by `orthogonal`."""

    gain: float

    def check(self, call: str, shape: Shape) -> None:
        """A matrix, or what flattens to one."""
        check_two(call, shape)

    def _drawn(self, shape: Shape, dtype: torch.dtype, source: torch.Generator | None) -> Tensor:
        return _orthogonal(shape, self.gain, dtype, source)

    def _aims(self, shape: Shape) -> tuple[float, float]:
        return 0.0, self.gain**2 / max(shape[0], math.prod(shape[1:]))


@dataclass(frozen=True, repr=False, kw_only=True)
class DeltaOrthogonal(Scheme):
    """Made by `delta_orthogonal`."""

    gain: float

    def check(self, call: str, shape: Shape) -> None:
        """A convolution's weight."""
        _check_kernel(call, shape)

    def _drawn(self, shape: Shape, dtype: torch.dtype, source: torch.Generator | None) -> Tensor:
        out = torch.zeros(shape, dtype=dtype)
        if out.numel():
            out[_centre(shape)] = _orthogonal(shape[:2], self.gain, dtype, source)
        return out

    def _aims(self, shape: Shape) -> tuple[float, float]:
        return 0.0, self.gain**2 / max(shape[:2]) / math.prod(shape[2:])


@dataclass(frozen=True, repr=False, kw_only=True)
class Identity(Scheme):
    """Made by `identity`."""

    gain: float

    @property
    def draws(self) -> bool:
        """No."""
        return False

    def check(self, call: str, shape: Shape) -> None:
        """A matrix."""
        _check_matrix(call, shape)

    def _drawn(self, shape: Shape, dtype: torch.dtype, source: torch.Generator | None) -> Tensor:
        return nn.init.eye_(torch.empty(shape, dtype=dtype)).mul_(self.gain)

    def _aims(self, shape: Shape) -> tuple[float, float]:
        return _some_of(self.gain, min(shape) / math.prod(shape))


@dataclass(frozen=True, repr=False, kw_only=True)
class Dirac(Scheme):
    """Made by `dirac`."""

    groups: int

    @property
    def draws(self) -> bool:
        """No."""
        return False

    def check(self, call: str, shape: Shape) -> None:
        """A convolution's weight that the groups divide."""
        _check_kernel(call, shape)
        if shape[0] % self.groups:
            got, expected = f"shape {shape} for groups={self.groups}", "a first dimension that they divide"
            raise ValueError(message(call, got=got, expected=expected))

    def _drawn(self, shape: Shape, dtype: torch.dtype, source: torch.Generator | None) -> Tensor:
        out = torch.empty(shape, dtype=dtype)
        return nn.init.dirac_(out, self.groups) if out.numel() else out

    def _aims(self, shape: Shape) -> tuple[float, float]:
        ones = self.groups * min(shape[0] // self.groups, shape[1])
        return _some_of(1.0, ones / math.prod(shape))


@dataclass(frozen=True, repr=False, kw_only=True)
class Sparse(Scheme):
    """Made by `sparse`."""

    sparsity: float
    spread: float

    def check(self, call: str, shape: Shape) -> None:
        """A matrix."""
        _check_matrix(call, shape)

    def _drawn(self, shape: Shape, dtype: torch.dtype, source: torch.Generator | None) -> Tensor:
        assert source is not None
        # Torch's function takes the places of the zeros from the global generator, whatever it is given.
        with drawing_from(source):
            return nn.init.sparse_(torch.empty(shape, dtype=dtype), self.sparsity, self.spread)

    def _aims(self, shape: Shape) -> tuple[float, float]:
        kept = 1 - math.ceil(self.sparsity * shape[0]) / shape[0]
        return 0.0, kept * self.spread**2


def orthogonal(gain: float = 1.0) -> Scheme:
    """A uniformly random orthogonal matrix times `gain`: torch's `orthogonal_`, bit for bit in float32 and float64.

    Saxe et al. 2014, "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks". Of
    `[rows, columns]`, dimensions after the first flattened, the smaller side is orthonormal: `W W^T` or `W^T W` is
    `gain^2 I`. Entries have variance `gain^2 / max(rows, columns)`. Half types are drawn in float32 and rounded (torch
    has no QR decomposition of them).

    Example:
        >>> import gradfunc as gf
        >>> w = gf.init.orthogonal(2.0)((3, 5), key=0, dtype=torch.float64)
        >>> torch.allclose(w @ w.T, 4 * torch.eye(3, dtype=torch.float64))
        True
    """
    check_number("gf.init.orthogonal(gain)", "gain", gain, FINITE)
    return Orthogonal(said=_gained("orthogonal", gain), gain=float(gain))


def delta_orthogonal(gain: float = 1.0) -> Scheme:
    """A convolution that acts at the centre of its kernel alone, there by an orthogonal matrix times `gain`.

    Xiao et al. 2018, "Dynamical Isometry and a Mean Field Theory of CNNs", algorithm 2. With no fewer output channels
    than input channels, and circular padding, the layer keeps the norm of its input (times `gain`), at any depth; with
    fewer, the backward pass keeps it. The centre is `size // 2`, as in `dirac`.

    Example:
        >>> import gradfunc as gf
        >>> w = gf.init.delta_orthogonal()((4, 3, 5, 5), key=0)
        >>> int((w != 0).sum()), int((w[:, :, 2, 2] != 0).sum())
        (12, 12)
    """
    check_number("gf.init.delta_orthogonal(gain)", "gain", gain, FINITE)
    return DeltaOrthogonal(said=_gained("delta_orthogonal", gain), gain=float(gain))


def identity(gain: float = 1.0) -> Scheme:
    """Ones on the diagonal of a matrix, times `gain`; zeros elsewhere: torch's `eye_`.

    With `gain` 1, for the recurrent weight of a ReLU network: Le, Jaitly, Hinton 2015 (arXiv 1504.00941).

    Example:
        >>> import gradfunc as gf
        >>> gf.init.identity(0.5)((2, 3))
        tensor([[0.5000, 0.0000, 0.0000],
                [0.0000, 0.5000, 0.0000]])
    """
    check_number("gf.init.identity(gain)", "gain", gain, FINITE)
    return Identity(said=_gained("identity", gain), gain=float(gain))


def dirac(*, groups: int = 1) -> Scheme:
    """A convolution that hands its input on, as far as channels last, in each group: torch's `dirac_`.

    Example:
        >>> import gradfunc as gf
        >>> x = torch.randn(1, 4, 6)
        >>> torch.equal(torch.conv1d(x, gf.init.dirac()((4, 4, 3)), padding=1), x)
        True
    """
    check_int("gf.init.dirac(groups=...)", "groups", groups, 1)
    return Dirac(said=spelled("dirac", groups=(groups, 1)), groups=groups)


def sparse(sparsity: float, *, std: float = 0.01) -> Scheme:
    """Normal entries, of which a share `sparsity` in each column (rounded up to whole rows) is 0: torch's `sparse_`.

    Martens 2010, "Deep learning via Hessian-free optimization". Bit for bit what `sparse_` gives when the global
    generator has the state of this one: it draws the places of the zeros from there, whatever it is given.

    Args:
        sparsity: in [0, 1].
        std: of the others.

    Raises:
        TypeError, ValueError: something else; in a call, no matrix.

    Example:
        >>> import gradfunc as gf
        >>> (gf.init.sparse(0.75)((8, 3), key=0) == 0).sum(dim=0)
        tensor([6, 6, 6])
    """
    call = "gf.init.sparse(sparsity)"
    check_number(call, "sparsity", sparsity, _SHARE)
    check_number(call, "std", std, NOT_NEGATIVE)
    said = spelled("sparse", sparsity, std=(std, 0.01))
    return Sparse(said=said, sparsity=float(sparsity), spread=float(std))


def _orthogonal(shape: Shape, gain: float, dtype: torch.dtype, source: torch.Generator | None) -> Tensor:
    return nn.init.orthogonal_(torch.empty(shape, dtype=wide(dtype)), gain, source).to(dtype)


def _some_of(value: float, share: float) -> tuple[float, float]:
    """Mean and variance where this share of the entries is `value`, the others 0."""
    return value * share, value**2 * share * (1 - share)


def _centre(shape: Shape) -> tuple[slice | int, ...]:
    return (slice(None), slice(None), *[size // 2 for size in shape[2:]])


def _gained(name: str, gain: float) -> str:
    return spelled(name) if gain == 1.0 else spelled(name, gain)


def _check_matrix(call: str, shape: Shape) -> None:
    if len(shape) != 2:
        raise ValueError(message(call, got=f"shape {shape}", expected="two dimensions"))


def _check_kernel(call: str, shape: Shape) -> None:
    if len(shape) not in (3, 4, 5):
        expected = "a convolution's: (out, in, *kernel), three to five dimensions"
        raise ValueError(message(call, got=f"shape {shape}", expected=expected))
