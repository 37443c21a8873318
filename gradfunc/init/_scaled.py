"""A scheme times a number: residual branches by depth, recurrent weights by their spectral radius; layer scale."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._errors import FINITE, POSITIVE, check_int, check_number, message
from ._entries import Constant, normal
from ._place import Place
from ._scheme import Scheme, Shape, check_scheme, spelled


@dataclass(frozen=True, repr=False, kw_only=True)
class Scaled(Scheme):
    """Made by `scaled`, `depth_scaled`."""

    base: Scheme
    factor: float

    @property
    def draws(self) -> bool:
        """As the base."""
        return self.base.draws

    def at(self, place: Place) -> Scheme:
        """With the base that the place asks for."""
        return dataclasses.replace(self, base=self.base.at(place))

    def stream(self, name: str) -> str:
        """The base's."""
        return self.base.stream(name)

    def check(self, call: str, shape: Shape) -> None:
        """As the base."""
        self.base.check(call, shape)

    def _drawn(self, shape: Shape, dtype: torch.dtype, source: torch.Generator | None) -> Tensor:
        return self.base._drawn(shape, dtype, source).mul_(self.factor)

    def _aims(self, shape: Shape) -> tuple[float, float]:
        mean, variance = self.base._aims(shape)
        return mean * self.factor, variance * self.factor**2


@dataclass(frozen=True, repr=False, kw_only=True)
class SpectralRadius(Scheme):
    """Made by `spectral_radius`."""

    radius: float
    base: Scheme

    @property
    def draws(self) -> bool:
        """As the base."""
        return self.base.draws

    def check(self, call: str, shape: Shape) -> None:
        """Square blocks above each other."""
        if len(shape) != 2 or 0 in shape or shape[0] % shape[1]:
            expected = "(H, H), or (k H, H) of k gates above each other"
            raise ValueError(message(call, got=f"shape {shape}", expected=expected))
        self.base.check(call, (shape[1], shape[1]))

    def _drawn(self, shape: Shape, dtype: torch.dtype, source: torch.Generator | None) -> Tensor:
        size = shape[1]
        blocks = [self.base._drawn((size, size), dtype, source) for _ in range(shape[0] // size)]
        return torch.cat([self._rescaled(block) for block in blocks]).to(dtype)

    def _rescaled(self, block: Tensor) -> Tensor:
        found = float(torch.linalg.eigvals(block.double()).abs().max())
        if found == 0:
            do = "A draw of zeros, or one whose powers vanish, cannot be rescaled to another radius."
            got = f"a draw of spectral radius 0 from {self.base}"
            raise ValueError(message(f"{self}(shape, ...)", got=got, expected="one above 0", do=do))
        return block.double() * (self.radius / found)

    def _aims(self, shape: Shape) -> tuple[float, float]:
        return math.nan, math.nan


@dataclass(frozen=True, repr=False, kw_only=True)
class ForgetBias(Scheme):
    """Made by `lstm_forget_bias`."""

    value: float

    @property
    def draws(self) -> bool:
        """No."""
        return False

    def check(self, call: str, shape: Shape) -> None:
        """Four gates."""
        if len(shape) != 1 or shape[0] % 4:
            raise ValueError(message(call, got=f"shape {shape}", expected="(4 H,), the bias of four gates"))

    def _drawn(self, shape: Shape, dtype: torch.dtype, source: torch.Generator | None) -> Tensor:
        out = torch.zeros(shape, dtype=dtype)
        hidden = shape[0] // 4
        out[hidden : 2 * hidden] = self.value
        return out

    def _aims(self, shape: Shape) -> tuple[float, float]:
        return self.value / 4, self.value**2 * 3 / 16


def scaled(scheme: Scheme, factor: float) -> Scheme:
    """What a scheme draws, times a number.

    Example:
        >>> import gradfunc as gf
        >>> gf.init.scaled(gf.init.identity(), 0.9).std((2, 2))
        0.45
    """
    call = "gf.init.scaled(scheme, factor)"
    base = check_scheme(call, "scheme", scheme)
    check_number(call, "factor", factor, FINITE)
    return Scaled(said=spelled("scaled", base, factor), base=base, factor=float(factor))


def depth_scaled(scheme: Scheme, layers: int) -> Scheme:
    """What a scheme draws, over sqrt(layers): for the last weight of each residual branch.

    The sum of that many independent branches then has the variance of one. Radford et al. 2019, "Language Models are
    Unsupervised Multitask Learners" (GPT-2), section 2.3: 1 / sqrt(N), N the number of residual layers. A transformer
    block adds twice, attention and MLP: N is twice the number of blocks.

    Example:
        >>> import gradfunc as gf
        >>> scheme = gf.init.depth_scaled(gf.init.normal(0.02), layers=2 * 12)
        >>> round(scheme.std((768, 768)), 6)
        0.004082
    """
    call = "gf.init.depth_scaled(scheme, layers)"
    base = check_scheme(call, "scheme", scheme)
    check_int(call, "layers", layers, 1)
    return Scaled(said=spelled("depth_scaled", base, layers), base=base, factor=1 / math.sqrt(layers))


def layer_scale(value: float | None = None, *, depth: int | None = None) -> Scheme:
    """The factors a residual branch's channels begin with, all small and alike: `value`, or by the network's depth.

    Touvron et al. 2021, "Going deeper with Image Transformers" (CaiT), section 2: 0.1 up to 18 blocks, 1e-5 up to 24,
    1e-6 beyond.

    Args:
        value: of each factor.
        depth: the number of blocks, in its place.

    Raises:
        TypeError, ValueError: none or both of them, or something else.

    Example:
        >>> import gradfunc as gf
        >>> [gf.init.layer_scale(depth=d).mean((384,)) for d in (12, 24, 36)]
        [0.1, 1e-05, 1e-06]
    """
    call = "gf.init.layer_scale(value)"
    if (value is None) == (depth is None):
        raise ValueError(message(call, got=f"value={value!r} and depth={depth!r}", expected="one of them"))
    if depth is None:
        check_number(call, "value", value, FINITE)
        return Constant(said=spelled("layer_scale", value), value=float(value or 0.0))
    check_int(call, "depth", depth, 1)
    chosen = 0.1 if depth <= 18 else 1e-5 if depth <= 24 else 1e-6
    return Constant(said=spelled("layer_scale", depth=(depth, None)), value=chosen)


def spectral_radius(radius: float, *, base: Scheme | None = None) -> Scheme:
    """A recurrent weight whose largest eigenvalue, in modulus, is exactly `radius` (to rounding).

    Jaeger 2001, "The echo state approach". The weight `[H, H]`, or each of the k blocks of `[k H, H]` (the gates of
    `nn.LSTM` and `nn.GRU`), is a draw of `base`, divided by its own spectral radius in float64. The cost is an
    eigendecomposition, H^3. No variance is stated: it depends on the draw, and is near `radius^2 / H` for independent
    entries (the circular law), equal to that for `base=orthogonal()`.

    Args:
        radius: above 0; what a linear recurrence grows by a step, in the long run.
        base: what draws each square block; `normal()` by default, whose scale does not matter.

    Raises:
        TypeError, ValueError: something else; in a call, another shape, or a draw whose own radius is 0.

    Example:
        >>> import gradfunc as gf
        >>> w = gf.init.spectral_radius(0.9)((20, 20), key=0, dtype=torch.float64)
        >>> round(float(torch.linalg.eigvals(w).abs().max()), 6)
        0.9
    """
    call = "gf.init.spectral_radius(radius)"
    check_number(call, "radius", radius, POSITIVE)
    chosen = normal() if base is None else check_scheme(call, "base", base)
    said = spelled("spectral_radius", radius, base=(base, None))
    return SpectralRadius(said=said, radius=float(radius), base=chosen)


def lstm_forget_bias(value: float = 1.0) -> Scheme:
    """A bias `[4 H]` of an LSTM: 0, but `value` for the forget gate (torch's order: input, forget, cell, output).

    Gers, Schmidhuber, Cummins 2000, "Learning to Forget"; Jozefowicz, Zaremba, Sutskever 2015 advise 1. `nn.LSTM` has
    two biases, `bias_ih_l0` and `bias_hh_l0`, that add: give one of them this, the other `zeros()`.

    Example:
        >>> import gradfunc as gf
        >>> gf.init.lstm_forget_bias()((8,))
        tensor([0., 0., 1., 1., 0., 0., 0., 0.])
    """
    check_number("gf.init.lstm_forget_bias(value)", "value", value, FINITE)
    return ForgetBias(
        said=spelled("lstm_forget_bias") if value == 1.0 else spelled("lstm_forget_bias", value), value=float(value)
    )
