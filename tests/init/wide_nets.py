"""Random nets in plain torch, and how far their variances may lie from those of infinite width."""

from __future__ import annotations

import math

import torch
from scipy import stats
from torch.nn import functional as F

ACTIVATIONS = {
    "identity": lambda x: x,
    "relu": F.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "silu": F.silu,
}
FALSE_ALARMS = 1e-7  # of all comparisons of the file together, each of which gets an equal share
COMPARISONS = 200  # no fewer than are made


def logs(layers, cases, *, width, samples=1, variance=1.0, nets=24):
    """For each case (activation, gain, norm) and net the logs of two ratios of variances: `[cases, nets, 2]`.

    Forward, of the last pre-activation over the first; backward, of the gradient by the first over that by the last.
    All cases share weights, as `Var W = gain^2 / width` is a scale; each is compared by itself.
    """
    out = torch.empty(len(cases), nets, 2, dtype=torch.float64)
    for seed in range(nets):
        gen = torch.Generator().manual_seed(1000 + seed)
        weights = [_normal(gen, width, width) / math.sqrt(width) for _ in range(layers)]
        first, last = _normal(gen, samples, width), _normal(gen, samples, width)
        for k, (activation, gain, norm) in enumerate(cases):
            start = _standard(first, norm) * math.sqrt(variance)
            out[k, seed] = _ratios(start.requires_grad_(), last, weights, ACTIVATIONS[activation], gain, norm)
    return out


def _ratios(start, cotangent, weights, phi, gain, norm):
    x = start
    for weight in weights:
        x = gain * phi(x) @ weight.T
        if norm == "layer":
            x = F.layer_norm(x, x.shape[1:], eps=0.0)
        elif norm == "rms":
            x = x / x.square().mean(1, keepdim=True).sqrt()
        elif norm == "batch":
            x = F.batch_norm(x, None, None, training=True, eps=1e-30)
    (back,) = torch.autograd.grad(x, start, cotangent)
    pairs = ((x.detach(), start.detach()), (back, cotangent))
    return torch.stack([(a.square().sum() / b.square().sum()).log() for a, b in pairs])


def _standard(x, norm):
    if norm == "batch":
        return (x - x.mean(0)) / x.std(0, unbiased=False)
    return x / x.square().mean(1, keepdim=True).sqrt()


def _normal(gen, *shape):
    return torch.randn(*shape, generator=gen, dtype=torch.float64)


def half_width(spread, nets):
    """Of Student's interval for the mean over independent nets of a log that has this standard deviation."""
    return float(stats.t.isf(FALSE_ALARMS / COMPARISONS / 2, nets - 1)) * spread / math.sqrt(nets)
