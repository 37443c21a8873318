"""What one layer does to the variance of signals and of gradients, in the limit of wide layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .._errors import NOT_NEGATIVE, POSITIVE, check_int, check_number, message, one_of
from ._activation import Activation
from ._moments import AGREED, Moments, moments
from ._settled import next_variance, settled
from ._variance import VarianceFactor, VariancePath

NORMS: tuple[Any, ...] = (None, "batch", "layer", "rms")
LINEAR = 1e-30  # a variance below which an activation that is 0 at 0 is its two slopes there


def variance_factor(
    activation: str | Callable[[Tensor], Tensor] = "relu",
    gain: float = 1.0,
    norm: str | None = None,
    *,
    variance: float | None = None,
    bias_variance: float = 0.0,
) -> VarianceFactor:
    """What a layer `x = W phi(x) + b` multiplies the standard deviation of signals and of gradients by.

    With weights of variance `gain^2 / fan_in` and x normal of variance q, as it is in the limit of wide layers:

        forward^2  = (gain^2 E[phi(x)^2] + bias_variance) / q      (Poole et al. 2016, arXiv 1606.05340, eq. 3)
        backward^2 = chi = gain^2 E[phi'(x)^2]                     (Schoenholz et al. 2017, arXiv 1611.01232, eq. 7)

    Normalised before each activation, x has variance 1, forward is 1, and the norm divides what W did by its size:

        "batch"          backward^2 = E[phi'^2] / Var[phi]         (Yang et al. 2019, arXiv 1902.08129)
        "layer", "rms"   backward^2 = gain^2 E[phi'^2] / (gain^2 E[phi^2] + bias_variance)

    The gain drops out without a bias, and with "batch" the bias does too, as it is the same for all samples.
    Expectations are by adaptive quadrature in float64; phi' is what autograd gives.

    Neglected: that layers are finite, whose logarithms of variances spread, and shift, by O(depth / width); that a norm
    takes the gradient's part along 1 and x away, O(1 / batch) or O(1 / width) a layer. Under "batch" nothing holds the
    sizes of single samples together: at layer l their squares differ by a relative variance of O(l / width), more where
    large samples grow faster than others (gelu, silu), so the logarithm over all layers shifts by O(depth^2 / width).

    Args:
        activation: a name of `torch.nn.functional` ("identity", "relu", "tanh", ...), a module, or any function of a
            tensor that is elementwise, which is checked.
        gain: `sqrt(fan_in Var[W])`; `1 / sqrt(3)` is the default of `torch.nn.Linear`, sqrt(2) that of He et al.
        norm: None, "batch", "layer" or "rms": between the linear map and the activation.
        variance: q, > 0; without it the limit of the forward map from q = 1 on: 0 where signals vanish, then the limits
            of both factors; inf where they grow through an activation to which scale is nothing (relu, identity).
        bias_variance: of b, per entry; 1 / (3 fan_in) is torch's default, which vanishes with width.

    Raises:
        TypeError: what is no number or no activation.
        ValueError: an activation that is not elementwise or has no converging expectation; a gain or variance <= 0; a
            variance beside a norm; no limit of the forward map, which grows.

    Example:
        >>> import gradfunc as gf
        >>> round(gf.init.variance_factor("relu", 3**-0.5).backward, 3)
        0.408
        >>> round(gf.init.variance_factor(torch.sigmoid, 3**-0.5).backward, 3)      # where its variance settles
        0.141
        >>> round(gf.init.variance_factor("relu", norm="batch").backward, 3)        # gradients grow
        1.211
    """
    call = "gf.init.variance_factor(activation, gain, norm)"
    bias = _checked(call, gain, norm, variance, bias_variance)
    phi = Activation(call, activation)
    if norm is not None:
        return _normalised(call, phi, gain, norm, bias)
    q = settled(call, phi, gain, bias) if variance is None else float(variance)
    return _factor(call, phi, gain, bias, q)


def variance_path(
    activation: str | Callable[[Tensor], Tensor] = "relu",
    gain: float = 1.0,
    depth: int = 30,
    norm: str | None = None,
    *,
    variance: float = 1.0,
    bias_variance: float = 0.0,
) -> VariancePath:
    """The same of `depth` layers in a row, each at the variance that the one before has left.

    It tells what a net of finite depth does where the variance moves slowly to its limit (tanh, gelu, silu).

    Args:
        activation: as of `variance_factor`.
        gain: as of `variance_factor`.
        depth: how many layers, >= 1.
        norm: as of `variance_factor`; then all layers are the same.
        variance: of the first pre-activation, > 0; it must be 1 with a norm.
        bias_variance: as of `variance_factor`.

    Raises:
        TypeError, ValueError: as `variance_factor`, but for the limit, which is not asked for.

    Example:
        >>> import gradfunc as gf
        >>> path = gf.init.variance_path("tanh", depth=30)
        >>> [round(q, 3) for q in path.variances[::10]]
        [1.0, 0.052, 0.026, 0.017]
        >>> round(path.backward, 3)      # its limit, at variance 0, is 1 a layer
        0.155
    """
    call = "gf.init.variance_path(activation, gain, depth)"
    check_int(call, "depth", depth, 1)
    bias = _checked(call, gain, norm, None if norm is not None and variance == 1 else variance, bias_variance)
    phi = Activation(call, activation)
    if norm is not None:
        return VariancePath((_normalised(call, phi, gain, norm, bias),) * depth, (1.0,) * (depth + 1))
    everywhere = moments(call, phi, 1.0) if phi.homogeneous else None
    variances, layers = [float(variance)], []
    for _ in range(depth):
        layers.append(_factor(call, phi, gain, bias, variances[-1], everywhere))
        variances.append(variances[-1] * layers[-1].forward ** 2)
    return VariancePath(tuple(layers), tuple(variances))


def gain_for(
    activation: str | Callable[[Tensor], Tensor], *, variance: float = 1.0, direction: str = "backward"
) -> float:
    """The gain at which a layer without norm or bias keeps the variance of gradients, or of signals: its factor is 1.

    `1 / sqrt(E[phi'^2])`, or `sqrt(q / E[phi^2])`: sqrt(2) for relu both ways at any variance (He et al. 2015,
    arXiv 1502.01852). For others the two differ, and both hold at this variance only.

    Args:
        activation: as of `variance_factor`.
        variance: q of the pre-activation, > 0.
        direction: "backward" or "forward".

    Raises:
        TypeError, ValueError: as `variance_factor`; an activation that is constant, or nearly.

    Example:
        >>> import gradfunc as gf
        >>> [round(gf.init.gain_for(name), 4) for name in ("relu", "tanh", "gelu")]
        [1.4142, 1.4674, 1.4811]
    """
    call = "gf.init.gain_for(activation)"
    one_of(call, "direction", direction, ("backward", "forward"))
    _checked(call, 1.0, None, variance, 0.0)
    phi = Activation(call, activation)
    layer = _factor(call, phi, 1.0, 0.0, float(variance))
    factor = layer.backward if direction == "backward" else layer.forward
    if factor == 0:
        got = f"a {direction} factor of 0 from {phi.name} at variance {variance:.3g}"
        raise ValueError(message(call, got=got, expected="an activation that lets something through"))
    return 1 / factor


def _factor(
    call: str, phi: Activation, gain: float, bias: float, q: float, everywhere: Moments | None = None
) -> VarianceFactor:
    value, slope = phi.at_zero
    if phi.homogeneous:  # E[phi^2] is q times that at 1, and the slopes are the same
        m = everywhere or moments(call, phi, 1.0)
        left = bias / q if q else 0.0
        return _result(gain**2 * m.square + left, gain**2 * m.slope, q, m.error)
    if q < LINEAR and value == 0:
        return _result(gain**2 * slope + (bias / q if q else 0.0), gain**2 * slope, q, 1e-15)
    m = moments(call, phi, q)
    return _result(next_variance(m, gain, bias) / q, gain**2 * m.slope, q, m.error)


def _normalised(call: str, phi: Activation, gain: float, norm: str, bias: float) -> VarianceFactor:
    m = moments(call, phi, 1.0)
    size, error = _size(m, gain, norm, bias)
    if not error <= AGREED:
        got = f"{phi.name}, whose values hardly differ"
        raise ValueError(message(call, got=got, expected=f"an activation for norm={norm!r} to divide by"))
    return _result(1.0, gain**2 * m.slope / size, 1.0, error)


def _size(m: Moments, gain: float, norm: str, bias: float) -> tuple[float, float]:
    """The variance that the norm divides by, and how far off it may be, relatively."""
    if norm == "batch":
        spread = m.square - m.mean**2
        # Each of the two terms is off by m.error and some roundings of E[phi^2].
        return gain**2 * spread, (3 * m.error + 1e-15) * m.square / spread if spread > 0 else math.inf
    size = next_variance(m, gain, bias)
    return size, 2 * m.error if size > 0 else math.inf


def _result(forward: float, backward: float, q: float, error: float) -> VarianceFactor:
    return VarianceFactor(math.sqrt(forward), math.sqrt(backward), q, error)


def _checked(call: str, gain: object, norm: object, variance: object, bias: float) -> float:
    one_of(call, "norm", norm, NORMS)
    check_number(call, "gain", gain, POSITIVE)
    check_number(call, "bias_variance", bias, NOT_NEGATIVE)
    if variance is not None:
        check_number(call, "variance", variance, POSITIVE)
        if norm is not None:
            got = f"variance={variance!r} with norm={norm!r}"
            raise ValueError(message(call, got=got, expected="no variance=: what is normalised has variance 1"))
    return float(bias)
