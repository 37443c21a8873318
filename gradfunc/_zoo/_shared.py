"""One parameter in several places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._model import Net, add, floats, net, tokens

SQUARE = {"layer.weight": "outer", "layer.bias": "dense"}


def _tied(padding: int | None = None) -> nn.Module:
    table, head = nn.Embedding(24, 16, padding_idx=padding), nn.Linear(16, 24, bias=False)
    head.weight = table.weight
    return Net(_language, table=table, mix=nn.Linear(16, 16), norm=nn.LayerNorm(16), head=head)


def _language(m: Any, i: Tensor) -> Any:
    """Scores `[B, V, T]`."""
    h = m.table(i)
    return m.head(m.norm(h + m.mix(h).tanh())).transpose(1, 2)


def _next_tokens(size: int, length: int = 2) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randint(24, (size, length)), torch.randint(24, (size, length)))


TIED = {
    "table.weight": "outer+rows",
    "mix.weight": "outer",
    "mix.bias": "dense",
    "norm.weight": "dense",
    "norm.bias": "dense",
}

add(
    "layer used twice",
    "the second call overwrites what the first has saved, or only one of them counts",
    lambda: Net(lambda m, x: m.layer(m.layer(x).tanh()), layer=nn.Linear(12, 12)),
    floats((12,), (12,)),
    SQUARE,
)
add(
    "layer used on a sequence and on its mean",
    "uses with different numbers of positions",
    lambda: Net(lambda m, x: m.layer(x).tanh() * m.layer(x.mean(1, keepdim=True)), layer=nn.Linear(14, 14)),
    floats((3, 14), (3, 14)),
    SQUARE,
)
add(
    "layer used on one of two inputs only by some samples",
    "uses that some samples have and others do not",
    lambda: Net(lambda m, x, y: m.layer(x) + m.layer(y).relu() * (y.sum(1) > 0)[:, None], layer=nn.Linear(12, 12)),
    floats((12,), (12,), (12,)),
    SQUARE,
)
add(
    "weight shared by two modules",
    "one tensor under two names: two gradients that must be one before its norm is taken",
    lambda: _two("weight"),
    floats((12,), (12,)),
    {"a.weight": "outer", "a.bias": "dense", "b.bias": "dense"},
)
add(
    "bias shared by two layers",
    "a bias belongs to more than one product",
    lambda: _two("bias"),
    floats((12,), (12,)),
    {"a.weight": "outer", "a.bias": "dense", "b.weight": "outer"},
)
add(
    "autoencoder with a transposed weight",
    "one use gives the other's gradient transposed",
    net(lambda m, x: (x @ m.w).tanh() @ m.w.T, w=(12, 10)),
    floats((12,), (12,)),
    {"w": "outer"},
)
add(
    "weight in a product and in a gate",
    "one use is a matrix product, the other is not",
    net(lambda m, x: (x @ m.w) * m.w.mean(0).sigmoid(), w=(12, 12)),
    floats((12,), (12,)),
    {"w": "dense"},
)
add(
    "weight and a penalty on it",
    "a part of every sample's loss that no sample has touched",
    net(lambda m, x: torch.cat([x @ m.w, m.w.square().mean().expand(len(x), 1)], 1), w=(12, 10)),
    floats((12,), (11,)),
    {"w": "dense"},
)
add(
    "one kernel at two resolutions",
    "a convolution called on images of two sizes",
    lambda: Net(lambda m, x: torch.cat([m.layer(x), m.layer(F.avg_pool1d(x, 2))], -1), layer=nn.Conv1d(4, 6, 3)),
    floats((4, 8), (6, 8)),
    {"layer.weight": "unfolded", "layer.bias": "dense"},
)
add(
    "one norm for two places",
    "scale and shift are used twice",
    lambda: Net(lambda m, x: m.norm(m.layer(m.norm(x)).tanh()), norm=nn.LayerNorm(12), layer=nn.Linear(12, 12)),
    floats((3, 12), (3, 12)),
    {"norm.weight": "dense", "norm.bias": "dense", **SQUARE},
)
add(
    "tied embedding and head",
    "rows of a table and a product in one gradient: the cross term is missing from its norm",
    _tied,
    _next_tokens(4),
    TIED,
    F.cross_entropy,
)
add(
    "tied embedding and head, padding_idx",
    "the padding row gets nothing as an embedding and something as a head",
    lambda: _tied(padding=0),
    lambda: (torch.randint(3, (4, 2)), torch.randint(24, (4, 2))),
    TIED,
    F.cross_entropy,
)
add(
    "tied by indexing and by einsum",
    "no layer on either side, and the embedding is scaled",
    net(lambda m, i: torch.einsum("btd,vd->bvt", m.e[i].tanh() * 16**0.5, m.e), e=(24, 16)),
    _next_tokens(4),
    {"e": "outer+rows"},
    F.cross_entropy,
)
add(
    "embedding used for tokens and for context",
    "two look-ups in one table with different tokens",
    lambda: Net(lambda m, i: (m.table(i) * m.table(i.flip(1)).tanh()).sum(1), table=nn.Embedding(13, 8)),
    tokens(13, (3,), (8,)),
    {"table.weight": "rows"},
)


def _two(shared: str) -> nn.Module:
    a, b = nn.Linear(12, 12), nn.Linear(12, 12)
    setattr(b, shared, getattr(a, shared))
    return Net(lambda m, x: m.b(m.a(x).tanh()), a=a, b=b)
