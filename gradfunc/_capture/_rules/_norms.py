"""Scale and shift of layer, group and RMS norms: `Dense` rows, summed at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..._factors import Dense
from ..._tree import wide
from ._site import Maker, Site

_IN_CACHE = 2**17  # entries


def layer_norm(site: Site) -> Maker | None:
    """Inputs: the data, the scale, the shift."""
    if site.layout.dim >= len(site.out) - len(site.shape):
        return None
    if site.input == 2:
        return lambda g: site.summed(g)
    if site.input != 1:
        return None
    kept = [site.saved(name) for name in ("input", "result1", "result2")]
    x, mean, rstd = (None if tensor is None else site.split(tensor) for tensor in kept)
    if x is None or mean is None or rstd is None:
        return None
    return lambda g: _scale(x, mean, rstd, site.split(g), site.shape)


def _scale(x: Tensor, mean: Tensor, rstd: Tensor, g: Tensor, shape: tuple[int, ...]) -> Dense:
    """Sums of `g (x - mean) rstd`, all `[B, T, ...]`, a few samples at a time: so few that they stay in the cache."""
    size, features = len(g), math.prod(shape)
    dtype = wide(torch.promote_types(x.dtype, mean.dtype))
    out = torch.empty(size, features, dtype=dtype, device=g.device)
    step = max(1, _IN_CACHE // max(1, x[:1].numel()))
    for start in range(0, size, step):
        at = slice(start, start + step)
        product = (x[at].to(dtype) - mean[at]).mul_(g[at])
        rows = rstd[at].to(dtype).flatten(1)[:, None]
        torch.bmm(rows, product.reshape(len(rows), rows.shape[2], features), out=out[at, None])
    return Dense(out.reshape(size, *shape))


def group_norm(site: Site) -> Maker | None:
    """Inputs: the data `[N, C, ...]`, the scale, the shift."""
    if site.layout.dim != 0 or site.input not in (1, 2):
        return None

    if site.input == 2:
        return site.channels
    x, mean, rstd = (site.saved(name) for name in ("input", "result1", "result2"))
    if x is None or mean is None or rstd is None:
        return None
    groups, channels = int(site.node._saved_group), x.shape[1]
    pixels = (len(x), groups, channels // groups, math.prod(x.shape[2:]))

    def scale(g: Tensor) -> Dense:
        """Sums of `g (x - mean) rstd`, a few images at a time, as above."""
        xs, gs = x.reshape(pixels), g.reshape(pixels)
        dtype = wide(torch.promote_types(x.dtype, mean.dtype))
        out = torch.empty(pixels[:3], dtype=dtype, device=g.device)
        step = max(1, 2 * _IN_CACHE // max(1, math.prod(pixels[1:])))
        for start in range(0, len(x), step):
            at = slice(start, start + step)
            out[at] = (xs[at].to(dtype) - mean.view(len(x), groups, 1, 1)[at]).mul_(gs[at]).sum(3)
        return site.channels((out * rstd.view(len(x), groups, 1)).reshape(len(x), channels))

    return scale


def batch_norm(site: Site) -> Maker | None:
    """With running statistics, which are constants. Inputs: the data `[N, C, ...]`, the scale, the shift."""
    if site.node._saved_training or site.layout.dim != 0 or site.input not in (1, 2):
        return None
    if site.input == 2:
        return site.channels
    x, mean, variance = (site.saved(name) for name in ("input", "running_mean", "running_var"))
    if x is None or mean is None or variance is None:
        return None
    across = (1, -1, *[1] * (x.dim() - 2))
    rstd = (variance.to(wide(torch.promote_types(x.dtype, variance.dtype))) + float(site.node._saved_eps)).rsqrt()
    return lambda g: site.channels((x.to(rstd.dtype) - mean.view(across)).mul_(rstd.view(across)).mul_(g))


RULES = {
    "NativeBatchNormBackward0": batch_norm,
    "NativeLayerNormBackward0": layer_norm,
    "NativeGroupNormBackward0": group_norm,
}
