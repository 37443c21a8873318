"""Losses whose samples lie in known places: batch first, time first, merged with time or heads, routed, shared."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .graphs import Model, Params


def _scored(p: Params, out: Tensor) -> Tensor:
    """`[B, T, o] -> [B]`: entries count differently."""
    flat = out.flatten(1)
    return (flat * torch.linspace(0.5, 1.5, flat.shape[1], dtype=flat.dtype)).sin().sum(1) * p["s"]


def batch_first(p: Params, x: Tensor) -> Tensor:
    return _scored(p, F.linear(x, p["w"]).tanh())


def time_first(p: Params, x: Tensor) -> Tensor:
    return _scored(p, F.linear(x.transpose(0, 1), p["w"]).tanh().transpose(0, 1))


def flat(p: Params, x: Tensor) -> Tensor:
    b, t, d = x.shape
    return _scored(p, F.linear(x.reshape(b * t, d), p["w"]).tanh().view(b, t, -1))


def flat_time_first(p: Params, x: Tensor) -> Tensor:
    b, t, d = x.shape
    rows = F.linear(x.transpose(0, 1).reshape(t * b, d), p["w"]).tanh()
    return _scored(p, rows.view(t, b, -1).transpose(0, 1))


def features_first(p: Params, x: Tensor) -> Tensor:
    b, t, d = x.shape
    return _scored(p, (p["w"] @ x.reshape(b * t, d).T).tanh().T.reshape(b, t, -1))


def heads(p: Params, x: Tensor) -> Tensor:
    b, t, _ = x.shape
    h = F.linear(x, p["w"]).view(b, t, 2, -1).permute(0, 2, 1, 3).reshape(b * 2, t, -1)
    return _scored(p, torch.bmm(h, h.mT).softmax(-1).view(b, 2, t, t))


def heads_first(p: Params, x: Tensor) -> Tensor:
    b, t, _ = x.shape
    h = F.linear(x, p["w"]).view(b, t, 2, -1).permute(2, 0, 1, 3).reshape(2 * b, t, -1)
    return _scored(p, torch.bmm(h, h.mT).softmax(-1).view(2, b, t, t).transpose(0, 1))


def routed(p: Params, x: Tensor) -> Tensor:
    b, t, d = x.shape
    order = torch.randperm(b * t, generator=torch.Generator().manual_seed(b * 100 + t))
    rows = F.linear(x.reshape(b * t, d)[order], p["w"]).tanh()
    return _scored(p, torch.zeros_like(rows).index_add(0, order, rows).view(b, t, -1))


def neighbours(p: Params, x: Tensor) -> Tensor:
    """Two samples share a value: each reads that of the one before too."""
    h = F.linear(x, p["w"]).tanh()
    return _scored(p, h + 0.5 * h.roll(1, 0).cos())


def pairs(p: Params, x: Tensor) -> Tensor:
    """Every second sample reads what the one before reads."""
    h = F.linear(x, p["w"]).tanh()
    return _scored(p, h[torch.arange(len(x)) // 2 * 2])


def two_only(p: Params, x: Tensor) -> Tensor:
    """The last sample reads what the first reads, and none other's is shared."""
    index = torch.arange(len(x))
    index[-1] = 0
    return _scored(p, F.linear(x, p["w"]).tanh()[index])


def centred(p: Params, x: Tensor) -> Tensor:
    h = F.linear(x, p["w"])
    return _scored(p, (h - h.mean(0)).tanh())


def dead(p: Params, x: Tensor) -> Tensor:
    h = F.linear(x, p["w"])
    return _scored(p, h.tanh() + 0.0 * h.sin()) + 0 * p["w"].sum()


LAYOUTS = {
    f.__name__: f
    for f in (
        batch_first,
        time_first,
        flat,
        flat_time_first,
        features_first,
        heads,
        heads_first,
        routed,
        neighbours,
        pairs,
        two_only,
        centred,
        dead,
    )
}


def model(
    layout: str, samples: int, length: int, inputs: int, outputs: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Model:
    """B, T and widths as asked."""
    generator = torch.Generator().manual_seed(seed)
    w, x = (
        torch.randn(n, generator=generator, dtype=torch.float64)
        for n in ((2 * outputs, inputs), (samples, length, inputs))
    )
    s = torch.tensor(0.7, dtype=dtype)
    return Model(LAYOUTS[layout], {"w": w.to(dtype), "s": s}, (x.to(dtype),))
