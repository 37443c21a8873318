"""Scale and shift of layer, group and RMS norms: `Dense` rows, summed at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..._factors import Dense
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
    out = torch.empty(size, features, dtype=torch.promote_types(x.dtype, mean.dtype), device=g.device)
    step = max(1, _IN_CACHE // max(1, x[:1].numel()))
    for start in range(0, size, step):
        at = slice(start, start + step)
        product = (x[at] - mean[at]).mul_(g[at])
        rows = rstd[at].flatten(1)[:, None]
        torch.bmm(rows, product.reshape(len(rows), rows.shape[2], features), out=out[at, None])
    return Dense(out.reshape(size, *shape))


def group_norm(site: Site) -> Maker | None:
    """Inputs: the data `[N, C, ...]`, the scale, the shift."""
    if site.layout.dim != 0 or site.input not in (1, 2):
        return None

    def channels(product: Tensor) -> Dense:
        each = product.reshape(*product.shape[:2], -1).sum(2) if product.dim() > 2 else product
        return Dense(site.split(each).sum(1))

    if site.input == 2:
        return channels
    x, mean, rstd = (site.saved(name) for name in ("input", "result1", "result2"))
    if x is None or mean is None or rstd is None:
        return None
    grouped = (len(x), int(site.node._saved_group), max(1, math.prod(x.shape[1:]) // int(site.node._saved_group)))

    def scale(g: Tensor) -> Dense:
        unit = (x.reshape(grouped) - mean.reshape(*grouped[:2], 1)) * rstd.reshape(*grouped[:2], 1)
        return channels(unit.reshape(x.shape) * g)

    return scale


RULES = {
    "NativeLayerNormBackward0": layer_norm,
    "NativeGroupNormBackward0": group_norm,
}
