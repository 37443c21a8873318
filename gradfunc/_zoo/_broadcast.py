"""A parameter that meets the data entry by entry, broadcast over samples and positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._model import B, Net, add, floats, net

X = floats((3, 6), (3, 6))
HEAD = {"head.weight": "outer", "head.bias": "dense"}

add(
    "position embedding, T = B",
    "added to the whole batch at once: its gradient comes summed over samples, in the shape of a batch of rows",
    lambda: Net(lambda m, x: m.head(x + m.position).tanh(), position=(B, 12), head=nn.Linear(12, 16)),
    floats((B, 12), (B, 16)),
    {"position": "dense", **HEAD},
)
add(
    "position embedding looked up without a batch, T = B",
    "the layer sees no batch: its rows are positions",
    lambda: Net(_positions, position=nn.Embedding(9, 6)),
    floats((B, 6), (B, 6)),
    {"position.weight": "rows"},
)
add(
    "positions through a layer of their own",
    "a linear layer that no sample passes through",
    lambda: Net(lambda m, x: x * m.layer(m.position).tanh(), position=(3, 8), layer=nn.Linear(8, 6)),
    X,
    {"position": "dense", "layer.weight": "dense", "layer.bias": "dense"},
)
add(
    "class token",
    "a parameter is the first row of each sample's sequence",
    lambda: Net(_with_token, token=(1, 1, 12), layer=nn.Linear(12, 10)),
    floats((2, 12), (10,)),
    {"token": "dense", "layer.weight": "outer", "layer.bias": "dense"},
)
add(
    "learned queries",
    "the queries are parameters, repeated for every sample",
    lambda: Net(_queried, queries=(8, 24), key=nn.Linear(24, 24)),
    floats((2, 24), (8, 24)),
    {"queries": "dense", "key.weight": "outer", "key.bias": "dense"},
    vmapped={"queries": "outer"},
)
add(
    "queries through a layer before they meet the data",
    "a linear layer on parameters, whose output is repeated for every sample",
    lambda: Net(_projected, queries=(2, 12), q=nn.Linear(12, 12), k=nn.Linear(12, 12)),
    floats((3, 12), (2, 12)),
    {"queries": "dense", "q.weight": "dense", "q.bias": "dense", "k.weight": "outer", "k.bias": "dense"},
)
add(
    "relative position bias, used by two layers",
    "a table looked up without a batch, whose rows are added to the scores of all samples",
    lambda: Net(_relative, table=nn.Parameter(torch.randn(64))),
    X,
    {"table": "rows"},
)
add("layer scale", "a scale a feature, used at every position", net(lambda m, x: x + m.w * x.sin(), w=(6,)), X,
    {"w": "dense"})  # fmt: skip
add("PReLU, one slope", "one number for all features", lambda: nn.PReLU(), X, {"weight": "dense"})
add(
    "PReLU, a slope a channel",
    "the channels are in dimension 1, and the batch size is theirs",
    lambda: nn.PReLU(B),
    floats((B, 3), (B, 3)),
    {"weight": "dense"},
)
add("temperature, 0-dim", "a parameter without dimensions", net(lambda m, x: (x * m.t.exp()).softmax(-1), t=()), X,
    {"t": "dense"})  # fmt: skip
add(
    "mask token",
    "the parameter takes the place of some rows of some samples",
    net(lambda m, x: torch.where(x[..., :1] > 0, m.token, x).exp(), token=(6,)),
    X,
    {"token": "dense"},
)
add(
    "gate between two paths",
    "a function of the parameter is used twice",
    net(lambda m, x: m.w.sigmoid() * x + (1 - m.w.sigmoid()) * x.cos(), w=(6,)),
    X,
    {"w": "dense"},
)
add(
    "parameter repeated to the batch",
    "a copy of the parameter a sample, made by repeat",
    net(lambda m, x: m.w.repeat(len(x), x.shape[1], 1) * x, w=(6,)),
    X,
    {"w": "dense"},
)


def _positions(m: Any, x: Tensor) -> Any:
    return (x + m.position(torch.arange(x.shape[1], device=x.device))).exp()


def _with_token(m: Any, x: Tensor) -> Any:
    x = torch.cat([m.token.expand(len(x), 1, -1), x], 1)
    return m.layer((x @ x.mT).softmax(-1) @ x)[:, 0]


def _queried(m: Any, x: Tensor) -> Any:
    queries = m.queries.unsqueeze(0).expand(len(x), -1, -1)
    return (queries @ m.key(x).mT).softmax(-1) @ x


def _projected(m: Any, x: Tensor) -> Any:
    return F.scaled_dot_product_attention(m.q(m.queries).expand(len(x), -1, -1), m.k(x), x)


def _relative(m: Any, x: Tensor) -> Any:
    at = torch.arange(x.shape[1], device=x.device)
    bias = m.table[at[:, None] - at + 31]
    for _ in range(2):
        x = (x @ x.mT + bias).softmax(-1) @ x
    return x
