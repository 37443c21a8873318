"""Normalisation within a sample, with learned scales and shifts."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ._case import add, add_module, inputs, weights

X, IMAGE = inputs(("T", 6)), inputs((6, "T", 3))
AFFINE = {"weight": "dense", "bias": "dense"}

add_module("layer norm", lambda: nn.LayerNorm(6), X, AFFINE)
add_module("layer norm of one vector", lambda: nn.LayerNorm(6), inputs((6,)), AFFINE)
add_module("layer norm, scale only", lambda: nn.LayerNorm(6, bias=False), X, {"weight": "dense"})
add_module("layer norm over two dimensions", lambda: nn.LayerNorm((2, 6)), inputs(("T", 2, 6)), AFFINE)
add_module("layer norm, time first", lambda: nn.LayerNorm(6), X, AFFINE, options={"in_dims": 1, "out_dims": 1})
add_module("rms norm", lambda: nn.RMSNorm(6), X, {"weight": "dense"})
add_module("group norm", lambda: nn.GroupNorm(3, 6), IMAGE, AFFINE)
add_module("group norm of vectors", lambda: nn.GroupNorm(2, 6), inputs((6,)), AFFINE)
add_module("group norm, a group a channel", lambda: nn.GroupNorm(6, 6), inputs((6, 3)), AFFINE)
add_module("instance norm", lambda: nn.InstanceNorm2d(6, affine=True), inputs((6, 2, 3)), AFFINE)
add_module("batch norm, its running statistics", lambda: nn.BatchNorm2d(6).eval(), IMAGE, AFFINE)
add_module(
    "layer norm between layers",
    lambda: nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 4)),
    X,
    {"0.weight": "outer", "1.weight": "dense", "3.bias": "dense"},
)
add(
    "one scale for two norms",
    weights(w=(6,), b=(6,)),
    X,
    lambda p, x: F.layer_norm(F.layer_norm(x, (6,), p["w"], p["b"]).sin(), (6,), p["w"]),
    "alike",
)
add(
    "layer norm over the whole sample, T = B",
    weights(w=("T", 6), b=("T", 6)),
    X,
    lambda p, x: F.layer_norm(x, x.shape[-2:], p["w"], p["b"]),
    "alike",
)
add("rms norm by hand", weights(w=(6,)), X, lambda p, x: x * x.square().mean(-1, True).rsqrt() * (1 + p["w"]), "alike")
add("a norm whose scale is exp", weights(w=(6,)), X, lambda p, x: F.rms_norm(x, (6,), p["w"].exp()), "alike")
add(
    "standardised weight",
    weights(w=(4, 6), g=(4, 1)),
    X,
    lambda p, x: F.linear(x, p["g"] * (p["w"] - p["w"].mean(1, True)) / p["w"].std(1, keepdim=True)),
    "alike",
)
add(
    "cosine similarity to rows",
    weights(w=(4, 6), g=()),
    X,
    lambda p, x: F.linear(F.normalize(x, dim=-1), F.normalize(p["w"], dim=-1)) * p["g"].exp(),
    "alike",
)
add(
    "adaptive layer norm",
    weights(w=(12, 6), b=(12,)),
    X,
    lambda p, x: adaptive(p, x),
    "alike",
    {"w": "outer", "b": "dense"},
)


def adaptive(p, x):
    """Scale and shift come from the sample's own mean."""
    scale, shift = F.linear(x.mean(-2, keepdim=True), p["w"], p["b"]).chunk(2, -1)
    return F.layer_norm(x, (6,)) * (1 + scale) + torch.tanh(shift)
