"""Attention by torch's modules and by hand."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._model import B, Net, add, floats

X = floats((3, 12), (3, 12))
MHA = {
    "inner.in_proj_weight": "outer",
    "inner.in_proj_bias": "dense",
    "inner.out_proj.weight": "outer",
    "inner.out_proj.bias": "dense",
}


def _to_itself(m: Any, x: Tensor) -> Any:
    return m.inner(x, x, x, need_weights=False)[0]


add(
    "multi-head attention",
    "the projection of queries, keys and values belongs to no layer that a hook could see",
    lambda: Net(_to_itself, inner=nn.MultiheadAttention(12, 3, batch_first=True)),
    X,
    MHA,
)
add(
    "multi-head attention, time first, T = B",
    "samples are in dimension 1, and nothing in the shapes says so",
    lambda: Net(lambda m, x: _to_itself(m, x).tanh().sum(0), inner=nn.MultiheadAttention(16, 2)),
    lambda: (torch.randn(B, B, 16), torch.randn(B, 16)),
    MHA,
    in_dims=1,
)
add(
    "multi-head attention, kdim and vdim",
    "three projections of their own, transposed inside although batch_first",
    lambda: Net(
        lambda m, x, k, v: m.inner(x, k, v, need_weights=False)[0],
        inner=nn.MultiheadAttention(12, 2, kdim=8, vdim=10, batch_first=True),
    ),
    floats((2, 12), (2, 8), (2, 10), (2, 12)),
    {
        "inner.q_proj_weight": "outer",
        "inner.k_proj_weight": "outer",
        "inner.v_proj_weight": "outer",
        "inner.in_proj_bias": "dense",
        "inner.out_proj.weight": "outer",
        "inner.out_proj.bias": "dense",
    },
)
add(
    "multi-head attention, bias_kv and a zero position",
    "parameters that are repeated for every sample inside the layer",
    lambda: Net(_to_itself, inner=nn.MultiheadAttention(12, 2, add_bias_kv=True, add_zero_attn=True, batch_first=True)),
    X,
    {**MHA, "inner.bias_k": "dense", "inner.bias_v": "dense"},
)
add(
    "multi-head attention, padding, weights asked for",
    "another path inside, and keys that count in some samples only",
    lambda: Net(_padded, inner=nn.MultiheadAttention(12, 2, batch_first=True)),
    lambda: (torch.randn(B, 3, 12), _seen(B, 3), torch.randn(B, 3, 15)),
    MHA,
)


def _seen(size: int, length: int) -> Tensor:
    """1 up to a length of each sample's own."""
    return (torch.arange(length) <= torch.arange(size)[:, None] % length).float()


def _padded(m: Any, x: Tensor, seen: Tensor) -> Any:
    return torch.cat(m.inner(x, x, x, key_padding_mask=seen < 0.5), -1)


LAYER = {
    "linear1.weight": "outer",
    "linear1.bias": "dense",
    "linear2.weight": "outer",
    "linear2.bias": "dense",
    "norm1.weight": "dense",
    "norm1.bias": "dense",
    "norm2.weight": "dense",
    "norm2.bias": "dense",
}


def _attention(name: str) -> dict[str, str]:
    return {key.replace("inner", name): kind for key, kind in MHA.items()}


add(
    "transformer encoder layer",
    "a layer of layers with a fast path of its own, transposed inside although batch_first",
    lambda: nn.TransformerEncoderLayer(12, 2, 16, dropout=0.0, batch_first=True),
    X,
    {**LAYER, **_attention("self_attn")},
)
add(
    "transformer encoder layer, time first, norm first",
    "samples are in dimension 1 throughout",
    lambda: Net(
        lambda m, x: m.inner(x).tanh().sum(0),
        inner=nn.TransformerEncoderLayer(16, 2, 18, dropout=0.0, norm_first=True, activation="gelu"),
    ),
    lambda: (torch.randn(B, B, 16), torch.randn(B, 16)),
    {f"inner.{name}": kind for name, kind in {**LAYER, **_attention("self_attn")}.items()},
    in_dims=1,
)
add(
    "transformer decoder layer",
    "one projection is cut in two, for queries and for the memory's keys and values",
    lambda: nn.TransformerDecoderLayer(12, 2, 16, dropout=0.0, batch_first=True),
    floats((3, 12), (2, 12), (3, 12)),
    {
        **LAYER,
        "norm3.weight": "dense",
        "norm3.bias": "dense",
        **_attention("self_attn"),
        **_attention("multihead_attn"),
    },
)
add(
    "causal attention by hand",
    "one product for queries, keys and values, of which later positions see earlier ones",
    lambda: Net(_causal, qkv=nn.Linear(12, 36), out=nn.Linear(12, 12)),
    X,
    {"qkv.weight": "outer", "qkv.bias": "dense", "out.weight": "outer", "out.bias": "dense"},
)
add(
    "fused attention, one key for all heads",
    "keys and values are repeated over the heads, and their cotangents add up",
    lambda: Net(_one_key, q=nn.Linear(12, 12), kv=nn.Linear(12, 8, bias=False)),
    floats((2, 12), (2, 12)),
    {"q.weight": "outer", "q.bias": "dense", "kv.weight": "outer"},
)


def _causal(m: Any, x: Tensor) -> Any:
    q, k, v = (t.unflatten(-1, (3, 4)).transpose(1, 2) for t in m.qkv(x).chunk(3, -1))
    hidden = torch.ones(x.shape[1], x.shape[1], device=x.device).triu(1) > 0
    scores = (q @ k.mT / 2).masked_fill(hidden, -math.inf)
    return m.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def _one_key(m: Any, x: Tensor) -> Any:
    q = m.q(x).unflatten(-1, (3, 4)).transpose(1, 2)
    k, v = (t.unsqueeze(1).expand(-1, 3, -1, -1) for t in m.kv(x).chunk(2, -1))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
