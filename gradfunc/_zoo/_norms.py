"""Normalisation within a sample, with learned scales and shifts."""

from __future__ import annotations

import torch
from torch import nn

from ._model import B, Net, add, floats

AFFINE = {"weight": "dense", "bias": "dense"}
IMAGE = floats((6, 4, 3), (6, 4, 3))

add(
    "layer norm, pre-norm residual",
    "the scale meets the normalised input, which the layer does not give out",
    lambda: Net(lambda m, x: x + m.layer(m.norm(x)), norm=nn.LayerNorm(12), layer=nn.Linear(12, 12)),
    floats((3, 12), (3, 12)),
    {"norm.weight": "dense", "norm.bias": "dense", "layer.weight": "outer", "layer.bias": "dense"},
)
add(
    "layer norm over two dimensions, T = B",
    "a scale as large as a sample, whose first dimension is the batch size",
    lambda: nn.LayerNorm((B, 6)),
    floats((B, 6), (B, 6)),
    AFFINE,
)
add(
    "layer norm, time first, T = B",
    "the first dimension is not that of the samples",
    lambda: Net(lambda m, x: m.norm(x).tanh().sum(0), norm=nn.LayerNorm(6)),
    lambda: (torch.randn(B, B, 6), torch.randn(B, 6)),
    {"norm.weight": "dense", "norm.bias": "dense"},
    in_dims=1,
)
add("RMS norm", "a layer younger than most tables of layers", lambda: nn.RMSNorm(6), floats((3, 6), (3, 6)),
    {"weight": "dense"})  # fmt: skip
add(
    "RMS norm by hand, scale 1 + w",
    "no layer, and the scale is not the parameter",
    lambda: Net(lambda m, x: x * x.square().mean(-1, keepdim=True).rsqrt() * (1 + m.w), w=(6,)),
    floats((3, 6), (3, 6)),
    {"w": "dense"},
)
add("group norm", "channels share a mean and not a scale", lambda: nn.GroupNorm(3, 6), IMAGE, AFFINE)
add("instance norm", "samples are folded into the channels inside", lambda: nn.InstanceNorm2d(6, affine=True), IMAGE,
    AFFINE)  # fmt: skip
add(
    "batch norm, eval mode",
    "its running statistics are used and must not move; back in train mode samples would mix",
    lambda: _settled(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(54, 5))),
    floats((3, 5, 5), (5,)),
    {
        "0.weight": "unfolded",
        "0.bias": "dense",
        "1.weight": "dense",
        "1.bias": "dense",
        "4.weight": "outer",
        "4.bias": "dense",
    },
)


def _settled(module: nn.Sequential) -> nn.Sequential:
    """With statistics of some data; only the norm is in eval mode."""
    with torch.no_grad():
        module(torch.randn(8, 3, 5, 5))
    module[1].eval()
    return module
