"""Variance, second moment and signal to noise of the gradients of samples."""

from __future__ import annotations

from torch import Tensor

from .._errors import message, one_of
from .._per_sample import PerSampleGrads
from .._tree import Tensors
from ._entries import squares
from ._moments import Moments, moments, squares_by_norms
from ._read import PER, check_samples, check_value, gathered, square_of


def variance(of: PerSampleGrads | Moments, *, per: str = "entry") -> Tensors | Tensor:
    """The variance of one sample's gradient: `sum w_i (u_i - m)^2 / (W (1 - q))`, with `q = sum w_i^2 / W^2`.

    For equal weights this is the division by n - 1. The variance of a parameter, a layer or of all is the sum of those
    of entries, the trace of their covariance; the variance of the mean is q times it (1/n).

    Bias: none for independent rows `u_i` of one distribution and weights that do not depend on them.

    Cost: as `moments`; without entries norms and one sum.

    Args:
        of: per-sample gradients, or moments.
        per: "entry" `{name: tensor}`, "parameter" `{name: []}`, "layer" `{module: []}` (a name without its last part),
            "total" `[]`; float64.

    Raises:
        TypeError: `of` is something else.
        ValueError: fewer than two samples of weight above 0; entries asked of moments that have none.

    Example:
        >>> import torch, gradfunc as gf
        >>> f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())
        >>> g = f({"w": torch.zeros(2)}, torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 3.0]]))
        >>> gf.quantities.variance(g)["w"], round(float(gf.quantities.variance(g, per="total")), 6)
        (tensor([1., 3.], dtype=torch.float64), 4.0)
    """
    call = "gf.quantities.variance(of)"
    found = _read(call, of, per)
    if found.count < 2:
        got = f"{found.count} samples of weight above 0"
        raise ValueError(message(call, got=got, expected="at least two, to see how they differ"))
    divisor = found.weight * (1 - found.concentration)
    return gathered(call, {name: v / divisor.to(v.device) for name, v in found.spread.items()}, per)


def second_moment(of: PerSampleGrads | Moments, *, per: str = "entry") -> Tensors | Tensor:
    """The mean square of one sample's gradient: `sum w_i u_i^2 / sum w_i`, `u_i = g_i / w_i`.

    Entry by entry it is the diagonal of the empirical Fisher matrix. Bias: none, as for `variance`.

    Cost: a layer used once a sample has `(c g^2)^T x^2`, one product, an embedding the rows in use; other rows are
    formed about 2^20 entries at a time; coarser than entries it is norms. Of moments it is `spread / W + m^2`.

    Args:
        of: per-sample gradients, or moments.
        per: as in `variance`.

    Raises:
        TypeError, ValueError: as `variance`; one sample is enough.

    Example:
        >>> import torch, gradfunc as gf
        >>> f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())
        >>> g = f({"w": torch.zeros(2)}, torch.tensor([[1.0, 0.0], [3.0, 2.0]]))
        >>> gf.quantities.second_moment(g)["w"]
        tensor([5., 2.], dtype=torch.float64)
    """
    call = "gf.quantities.second_moment(of)"
    one_of(call, "per", per, PER)
    if isinstance(of, Moments):
        found = _read(call, of, per)
        mean = found.mean if found.entries else {name: square_of({name: v}) for name, v in found.mean.items()}
        squared = {name: v.square() if found.entries else v for name, v in mean.items()}
        return gathered(call, {k: v / found.weight.to(v.device) + squared[k] for k, v in found.spread.items()}, per)
    check_samples(call, check_value(call, of), 1)
    total = of.weights.double().sum()
    sums = squares(of) if per == "entry" else squares_by_norms(of)
    return gathered(call, {name: value / total.to(value.device) for name, value in sums.items()}, per)


def signal_to_noise(of: PerSampleGrads | Moments, *, per: str = "entry", corrected: bool = False) -> Tensors | Tensor:
    """The squared mean of the gradient over its variance, `m^2 / variance`, entry by entry or summed first.

    The gradient signal-to-noise ratio of Liu et al. 2020, "Understanding why neural networks generalize well through
    GSNR of parameters" (arXiv 2001.07384), of one sample; n times it is that of the mean of n.

    Bias: `m^2` exceeds the square of the true mean by `q variance` on average (1/n of it), so the ratio is about 1/n
    too large; `corrected` subtracts that, and may give negative values. A quotient of unbiased parts is not unbiased.
    0 over 0 is NaN: an entry that is 0 in every sample has no ratio.

    Cost: as `moments`.

    Args:
        of: per-sample gradients, or moments.
        per: as in `variance`; sums of squared means over sums of variances.
        corrected: whether the noise in the mean is subtracted from the signal.

    Raises:
        TypeError, ValueError: as `variance`.

    Example:
        >>> import torch, gradfunc as gf
        >>> f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())
        >>> g = f({"w": torch.zeros(1)}, torch.tensor([[1.0], [3.0]]))
        >>> gf.quantities.signal_to_noise(g)["w"], gf.quantities.signal_to_noise(g, corrected=True)["w"]
        (tensor([2.], dtype=torch.float64), tensor([1.5000], dtype=torch.float64))
    """
    call = "gf.quantities.signal_to_noise(of)"
    found = _read(call, of, per)
    signal = gathered(call, {name: value.square() for name, value in found.mean.items()}, per)
    noise = variance(found, per=per)
    q = found.concentration

    def ratio(s: Tensor, v: Tensor) -> Tensor:
        return (s - q.to(v.device) * v) / v if corrected else s / v

    if isinstance(signal, Tensor) or isinstance(noise, Tensor):
        assert isinstance(signal, Tensor)
        assert isinstance(noise, Tensor)
        return ratio(signal, noise)
    return {name: ratio(value, noise[name]) for name, value in signal.items()}


def _read(call: str, of: PerSampleGrads | Moments, per: str) -> Moments:
    one_of(call, "per", per, PER)
    if isinstance(of, Moments):
        if per == "entry" and not of.entries:
            do = "Make them by moments(g, entries=True)."
            raise ValueError(message(call, got="moments of parameters", expected="moments of entries", do=do))
        return of
    check_samples(call, check_value(call, of), 1)
    return moments(of, entries=per == "entry")
