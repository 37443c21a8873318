"""Attention by hand, by torch's function, and by torch's modules."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from ._case import add, add_module, inputs, weights

X = inputs(("T", 6))
heads = weights(w=(18, 6), b=(18,), o=(6, 6))
KINDS = {"w": "outer", "b": "dense", "o": "outer"}


def split(p, x, heads=2):
    """Queries, keys, values `[..., heads, T, 6 / heads]`."""
    return [t.unflatten(-1, (heads, -1)).transpose(-2, -3) for t in F.linear(x, p["w"], p["b"]).chunk(3, -1)]


def causal(p, x):
    q, k, v = split(p, x)
    scores = q @ k.transpose(-1, -2) / math.sqrt(3)
    hidden = torch.ones(x.shape[-2], x.shape[-2]).triu(1) > 0
    out = scores.masked_fill(hidden, -math.inf).softmax(-1) @ v
    return out.transpose(-2, -3).flatten(-2) @ p["o"]


def fused(p, x, **options):
    out = F.scaled_dot_product_attention(*split(p, x), **options)
    return out.transpose(-2, -3).flatten(-2) @ p["o"]


def one_key_for_all_heads(p, x):
    q = (x @ p["q"]).unflatten(-1, (2, 3)).transpose(-2, -3)
    k = (x @ p["k"]).unsqueeze(-3)
    return ((q @ k.transpose(-1, -2)).softmax(-1) @ k).flatten(-3)


def rotary(p, x):
    angle = torch.arange(x.shape[-2])[:, None] * torch.tensor([1.0, 0.1, 0.01])
    q, k = ((t * angle.cos().repeat(1, 2) + t.roll(3, -1) * angle.sin().repeat(1, 2)) for t in (x @ p["q"], x @ p["k"]))
    return (q @ k.transpose(-1, -2)).softmax(-1) @ x


def linear_attention(p, x):
    q, k = F.elu(x @ p["q"]) + 1, F.elu(x @ p["k"]) + 1
    return q @ (k.transpose(-1, -2) @ x) / (q @ k.sum(-2, keepdim=True).transpose(-1, -2)) + x @ p["q"]


def slot(p, x):
    """Learned slots that look at the sample twice."""
    s = p["s"]
    for _ in range(2):
        s = s + (s @ p["q"] @ x.transpose(-1, -2)).softmax(-2) @ x
    return s


add("attention by hand, causal", heads, X, causal, "alike", KINDS)
add("fused attention", heads, X, fused, "alike", KINDS)
add("fused attention, causal", heads, X, lambda p, x: fused(p, x, is_causal=True), "stacked", KINDS)
add(
    "fused attention, learned bias",
    weights(w=(18, 6), b=(18,), o=(6, 6), m=(2, "T", "T")),
    X,
    lambda p, x: fused(p, x, attn_mask=p["m"]),
    "stacked",
    KINDS,
)
add(
    "one key for all heads",
    weights(q=(6, 6), k=(6, 3)),
    X,
    one_key_for_all_heads,
    "alike",
    {"q": "outer", "k": "outer"},
)
add("rotary positions", weights(q=(6, 6), k=(6, 6)), X, rotary, "alike", {"q": "outer", "k": "outer"})
add("linear attention", weights(q=(6, 6), k=(6, 6)), X, linear_attention, "alike", {"q": "outer", "k": "outer"})
add("slots", weights(q=(6, 6), s=(4, 6)), X, slot, "alike")


class Attention(nn.Module):
    """`nn.MultiheadAttention` of a sequence to itself."""

    def __init__(self, **options):
        super().__init__()
        self.inner = nn.MultiheadAttention(6, 2, **options)

    def forward(self, x, hidden=None):
        return self.inner(x, x, x, key_padding_mask=hidden, need_weights=hidden is not None)[0]


class Cross(nn.Module):
    """From one sequence to another of other widths."""

    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(6, 2, kdim=3, vdim=4, batch_first=True)

    def forward(self, x, k, v):
        return self.inner(x, k, v, need_weights=False)[0]


def padded(draw, size, length):
    """At least the first position is seen."""
    hidden = draw.flags(size, length)
    hidden[:, 0] = False
    return draw(size, length, 6), hidden


def other_padding(params, batch):
    """Padding at one sample only: all others look alike."""
    x, hidden = batch
    hidden = torch.zeros_like(hidden)
    hidden[0, 1:] = True
    return params, (x, hidden)


TIME_FIRST = {"in_dims": 1, "out_dims": 1}
OUT = {"inner.out_proj.weight": "outer", "inner.out_proj.bias": "dense"}
add_module("multi-head attention", lambda: Attention(batch_first=True), X, OUT)
add_module("multi-head attention, time first", lambda: Attention(), X, OUT, options=TIME_FIRST)
add_module("multi-head attention, padding", lambda: Attention(batch_first=True), padded, degenerate=other_padding)
add_module("multi-head attention, extra keys", lambda: Attention(batch_first=True, add_bias_kv=True), X)
add_module(
    "multi-head attention, other widths",
    Cross,
    lambda d, size, length: (d(size, length, 6), d(size, 2, 3), d(size, 2, 4)),
)


def layer(kind, **options):
    return lambda: kind(6, 2, 8, dropout=0.0, **options)


LAYER = {"linear1.weight": "outer", "linear2.bias": "dense"}
add_module("encoder layer", layer(nn.TransformerEncoderLayer, batch_first=True), X, LAYER)
add_module("encoder layer, time first", layer(nn.TransformerEncoderLayer), X, LAYER, options=TIME_FIRST)
add_module(
    "encoder layer, norm first, gelu",
    layer(nn.TransformerEncoderLayer, batch_first=True, norm_first=True, activation="gelu"),
    X,
    LAYER,
)
add_module(
    "decoder layer",
    layer(nn.TransformerDecoderLayer, batch_first=True),
    inputs(("T", 6), (3, 6)),
    LAYER,
)
