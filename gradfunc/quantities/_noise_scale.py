"""How much of a batch's gradient is noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, overload

import torch
from torch import Tensor

from .._errors import one_of
from .._per_sample import PerSampleGrads
from .._tree import layer_of, row_norms
from ._read import COARSE, check_samples, check_value


@dataclass(frozen=True)
class NoiseScale:
    """What a batch tells of the gradient's noise; float64 tensors of shape `[]`.

    Attributes:
        trace: tr(Sigma), the summed variance of one sample's gradient.
        squared_norm: |G|^2 of the true gradient; the estimate may be negative where noise prevails.
        scale: their quotient, B_simple: the batch size at which noise and gradient are equally large.
    """

    trace: Tensor
    squared_norm: Tensor
    scale: Tensor


@overload
def gradient_noise_scale(g: PerSampleGrads, *, per: Literal["total"] = "total") -> NoiseScale: ...
@overload
def gradient_noise_scale(g: PerSampleGrads, *, per: str) -> NoiseScale | dict[str, NoiseScale]: ...
def gradient_noise_scale(g: PerSampleGrads, *, per: str = "total") -> NoiseScale | dict[str, NoiseScale]:
    """The simple noise scale `B = tr(Sigma) / |G|^2` of a batch (McCandlish et al. 2018, arXiv 1812.06162, eq. 2.9).

    Of rows `u_i = g_i / w_i` with shares `p_i = w_i / sum w`, mean m, and `q = sum p_i^2` (1/n for equal weights):

        trace        = (sum p_i |u_i|^2 - |m|^2) / (1 - q)
        squared_norm = |m|^2 - q trace

    Bias: both are unbiased if the u_i are independent draws of one distribution, whatever the weights, as long as these
    do not depend on them; `scale`, a quotient, is not. Its parts averaged over batches, each, before dividing have a
    bias that vanishes (as in the paper's appendix A.1). At `squared_norm` 0 it is inf or NaN, below 0 negative.

    That of a parameter or of a layer is of its part of the rows alone; traces and squared norms add up to the total's,
    scales do not.

    Cost: the rows' norms and one sum; nothing is materialised. The differences are taken in float64; rows of lower
    precision leave `trace` an error of their unit roundoff times `|m|^2`.

    Args:
        g: per-sample gradients.
        per: "total", or `{name: NoiseScale}` for each "parameter", or "layer" (a name without its last part).

    Raises:
        TypeError: `g` is something else.
        ValueError: fewer than two samples of weight above 0; another `per`.

    Example:
        >>> import torch, gradfunc as gf
        >>> f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())
        >>> g = f({"w": torch.zeros(1)}, torch.tensor([[1.0], [3.0]]))
        >>> found = gf.quantities.gradient_noise_scale(g)
        >>> found.trace, found.squared_norm      # a variance of 2; a mean of 2, whose square is 1 too large
        (tensor(2., dtype=torch.float64), tensor(3., dtype=torch.float64))
    """
    call = "gf.quantities.gradient_noise_scale(g)"
    one_of(call, "per", per, COARSE)
    check_samples(call, check_value(call, g), 2)
    if per == "total":
        return noise_scale_of(g.norms(), g.weights, g.mean())
    groups: dict[str, list[str]] = {}
    for name in g.names:
        groups.setdefault(layer_of(name) if per == "layer" else name, []).append(name)
    norms, mean = g.norms(per_parameter=True), g.mean()
    return {
        key: noise_scale_of(
            row_norms({name: norms[name][:, None] for name in names}), g.weights, {name: mean[name] for name in names}
        )
        for key, names in groups.items()
    }


def noise_scale_of(norms: Tensor, weights: Tensor, mean: Mapping[str, Tensor]) -> NoiseScale:
    """The same from norms of the rows `[B]`, their weights `[B]`, and their weighted mean; asks nothing of the host."""
    norms = norms.double()
    weights = weights.to(norms.device, torch.float64)
    used = weights > 0
    shares = weights / weights.sum()
    unit = torch.where(used, norms / torch.where(used, weights, 1.0), 0.0)
    square = torch.stack([value.double().square().sum().to(norms.device) for value in mean.values()]).sum()
    q = shares.square().sum()
    trace = ((shares * unit.square()).sum() - square) / (1 - q)
    norm = square - q * trace
    return NoiseScale(trace, norm, trace / norm)
