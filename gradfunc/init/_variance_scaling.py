"""One variance scaling, and the names under which the field knows it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .._errors import FINITE, NOT_NEGATIVE, check_number, message, one_of
from ._entries import draw
from ._fans import TORCH, Fans, check_fans
from ._scheme import Scheme, Shape, spelled

_NONLINEARITIES = ("linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu")
_LAYERS = tuple(f"conv{way}{d}d" for way in ("", "_transpose") for d in (1, 2, 3))


@dataclass(frozen=True, repr=False, kw_only=True)
class VarianceScaling(Scheme):
    """Made by `variance_scaling`, `kaiming_normal`, `xavier_uniform`, ...."""

    gain: float
    mode: str
    distribution: str
    fans: Fans = TORCH

    def check(self, call: str, shape: Shape) -> None:
        """Fans need two dimensions."""
        check_two(call, shape)
        if math.prod(shape) and not min(fans := self.fans(shape)) > 0:
            got = f"fans {fans} for shape {shape}"
            raise ValueError(message(call, got=got, expected="two numbers > 0 from the function fans="))

    def _drawn(self, shape: Shape, dtype: torch.dtype, source: torch.Generator | None) -> Tensor:
        if not math.prod(shape):
            return torch.empty(shape, dtype=dtype)
        return draw(self.distribution, self._std(shape), shape, dtype, source)

    def _aims(self, shape: Shape) -> tuple[float, float]:
        fan = self._fan(shape)
        return 0.0, self.gain * self.gain / fan

    def _std(self, shape: Shape) -> float:
        # As torch.nn.init computes it, to the last bit.
        if self.mode == "fan_avg":
            return self.gain * math.sqrt(2.0 / float(sum(self.fans(shape))))
        return self.gain / math.sqrt(self._fan(shape))

    def _fan(self, shape: Shape) -> float:
        fan_in, fan_out = self.fans(shape)
        return {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[self.mode]


def check_two(call: str, shape: Shape) -> None:
    """Raise ValueError unless the shape has an output and an input dimension."""
    if len(shape) < 2:
        do = "A bias or a norm's weight takes gf.init.zeros(), ones() or normal(std)."
        raise ValueError(message(call, got=f"shape {shape}", expected="two dimensions or more, out and in", do=do))


def variance_scaling(
    gain: float = 1.0, *, mode: str = "fan_in", distribution: str = "normal", fans: Fans | None = None
) -> Scheme:
    """Independent entries of mean 0 and variance `gain^2 / fan`: what all the schemes below are.

    Args:
        gain: what the layer multiplies the standard deviation by.
        mode: the fan: "fan_in" keeps the variance of activations from layer to layer, "fan_out" that of gradients,
            "fan_avg" is the average of the two.
        distribution: "normal", "uniform" (up to sqrt(3) standard deviations) or "truncated_normal" (cut off at two
            standard deviations, and widened so that the variance is right after the cut).
        fans: `shape -> (fan_in, fan_out)`; torch's by default. Groups and transposed convolutions take
            `gf.init.fans(...)`.

    Raises:
        TypeError, ValueError: something else; in a call, fewer than two dimensions.

    Example:
        >>> import gradfunc as gf
        >>> scheme = gf.init.variance_scaling(2.0, mode="fan_out", distribution="uniform")
        >>> scheme.variance((8, 3)), scheme((8, 3), key=0).shape
        (0.5, torch.Size([8, 3]))
    """
    call = "gf.init.variance_scaling(gain)"
    options = {"mode": (mode, "fan_in"), "distribution": (distribution, "normal"), "fans": (fans, None)}
    gained = () if gain == 1.0 else (gain,)
    return _scaling(call, spelled("variance_scaling", *gained, **options), gain, mode, distribution, fans)


def kaiming_normal(
    *, nonlinearity: str = "leaky_relu", a: float = 0.0, mode: str = "fan_in", fans: Fans | None = None
) -> Scheme:
    """Variance `gain^2 / fan`, the gain by the nonlinearity that follows: torch's `kaiming_normal_`, bit for bit.

    He et al. 2015, "Delving Deep into Rectifiers", equations 10, 14 and 15. The gains are those of
    `torch.nn.init.calculate_gain`: sqrt(2) for "relu", sqrt(2 / (1 + a^2)) for "leaky_relu".

    Args:
        nonlinearity: "linear", "sigmoid", "tanh", "relu", "leaky_relu" or "selu".
        a: the negative slope of "leaky_relu"; others ignore it.
        mode: "fan_in" or "fan_out".
        fans: as in `variance_scaling`.

    Raises:
        TypeError, ValueError: something else.

    Example:
        >>> import gradfunc as gf
        >>> round(gf.init.kaiming_normal(nonlinearity="relu").variance((5, 8)), 6)
        0.25
    """
    return _kaiming("normal", nonlinearity, a, mode, fans)


def kaiming_uniform(
    *, nonlinearity: str = "leaky_relu", a: float = 0.0, mode: str = "fan_in", fans: Fans | None = None
) -> Scheme:
    """The same variance as `kaiming_normal`, uniform: torch's `kaiming_uniform_`, bit for bit.

    Example:
        >>> import gradfunc as gf
        >>> w = gf.init.kaiming_uniform(nonlinearity="relu")((5, 6), key=0)
        >>> bool(w.abs().max() <= 1)      # sqrt(2) sqrt(3 / 6)
        True
    """
    return _kaiming("uniform", nonlinearity, a, mode, fans)


def xavier_normal(*, gain: float = 1.0, fans: Fans | None = None) -> Scheme:
    """Variance `2 gain^2 / (fan_in + fan_out)`: torch's `xavier_normal_`, bit for bit.

    Glorot, Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks", equation 12.

    Example:
        >>> import gradfunc as gf
        >>> gf.init.xavier_normal().variance((6, 2))
        0.25
    """
    return _named("xavier_normal", gain, "fan_avg", "normal", fans)


def xavier_uniform(*, gain: float = 1.0, fans: Fans | None = None) -> Scheme:
    """The same variance as `xavier_normal`, uniform (their equation 16): torch's `xavier_uniform_`, bit for bit.

    Example:
        >>> import gradfunc as gf
        >>> gf.init.xavier_uniform(gain=2.0).variance((6, 2))
        1.0
    """
    return _named("xavier_uniform", gain, "fan_avg", "uniform", fans)


def lecun_normal(*, gain: float = 1.0, fans: Fans | None = None) -> Scheme:
    """Variance `gain^2 / fan_in`: LeCun et al. 1998, "Efficient BackProp", equation 16; what SELU needs.

    Example:
        >>> import gradfunc as gf
        >>> gf.init.lecun_normal().variance((5, 4))
        0.25
    """
    return _named("lecun_normal", gain, "fan_in", "normal", fans)


def lecun_uniform(*, gain: float = 1.0, fans: Fans | None = None) -> Scheme:
    """The same variance as `lecun_normal`, uniform.

    Example:
        >>> import gradfunc as gf
        >>> gf.init.lecun_uniform().variance((5, 4))
        0.25
    """
    return _named("lecun_uniform", gain, "fan_in", "uniform", fans)


def _kaiming(distribution: str, nonlinearity: str, a: float, mode: str, fans: Fans | None) -> Scheme:
    name = f"kaiming_{distribution}"
    call = f"gf.init.{name}(nonlinearity=..., a=..., mode=...)"
    one_of(call, "nonlinearity", nonlinearity, (*_NONLINEARITIES, *_LAYERS), _OTHER_GAIN)
    check_number(call, "a", a, FINITE)
    one_of(call, "mode", mode, ("fan_in", "fan_out"), "gf.init.xavier_normal() takes the average.")
    options = {"nonlinearity": (nonlinearity, "leaky_relu"), "a": (a, 0.0), "mode": (mode, "fan_in")}
    gain = nn.init.calculate_gain(nonlinearity, a)  # type: ignore[arg-type]
    return _scaling(call, spelled(name, **options, fans=(fans, None)), gain, mode, distribution, fans)


_OTHER_GAIN = "Another activation takes gf.init.variance_scaling(gain=...)."


def _named(name: str, gain: float, mode: str, distribution: str, fans: Fans | None) -> Scheme:
    said = spelled(name, gain=(gain, 1.0), fans=(fans, None))
    return _scaling(f"gf.init.{name}(gain=...)", said, gain, mode, distribution, fans)


def _scaling(call: str, said: str, gain: float, mode: str, distribution: str, fans: Fans | None) -> Scheme:
    check_number(call, "gain", gain, NOT_NEGATIVE)
    one_of(call, "mode", mode, ("fan_in", "fan_out", "fan_avg"))
    one_of(call, "distribution", distribution, ("normal", "uniform", "truncated_normal"))
    counted = check_fans(call, fans)
    return VarianceScaling(said=said, gain=float(gain), mode=mode, distribution=distribution, fans=counted)
