"""Rows of a table, chosen by the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._model import B, Net, add, tokens

I = tokens(13, (3,), (3, 8))  # noqa: E741

add("embedding", "a gradient of the whole table a sample, of which a few rows are not 0",
    lambda: Net(lambda m, i: m.table(i).exp(), table=nn.Embedding(13, 8)), I, {"table.weight": "rows"})  # fmt: skip
add(
    "embedding, padding_idx",
    "the padding row gets a gradient that it must not have",
    lambda: Net(lambda m, i: m.table(i).exp(), table=nn.Embedding(13, 8, padding_idx=2)),
    lambda: (torch.randint(13, (B, 4)) * torch.tensor([1, 1, 0, 1]) + torch.tensor([0, 0, 2, 0]), torch.randn(B, 4, 8)),
    {"table.weight": "rows"},
)
add(
    "embedding, padding_idx from the end, B = V",
    "a negative index, and a table as long as the batch",
    lambda: Net(lambda m, i: m.table(i).exp(), table=nn.Embedding(6, 8, padding_idx=-1)),
    tokens(6, (2,), (2, 8), size=6),
    {"table.weight": "rows"},
)
add(
    "embedding, one token over and over",
    "positions with the same token add up before a norm is taken, not after",
    lambda: Net(lambda m, i: m.table(i % 2).exp() * (1 + i[..., None]), table=nn.Embedding(13, 8)),
    I,
    {"table.weight": "rows"},
)
add(
    "table indexed by tokens",
    "an embedding without the layer",
    lambda: Net(lambda m, i: m.w[i].exp(), w=(13, 8)),
    I,
    {"w": "rows"},
)
add(
    "two tables multiplied",
    "each table's gradient needs the other's rows",
    lambda: Net(lambda m, i: (m.a(i) * m.b(i)).sum(1), a=nn.Embedding(13, 8), b=nn.Embedding(13, 8)),
    tokens(13, (3,), (8,)),
    {"a.weight": "rows", "b.weight": "rows"},
)


def _bag(mode: str) -> Callable[[], nn.Module]:
    """A bag and a head."""
    return lambda: Net(
        lambda m, i: m.head(m.bag(i).tanh()), bag=nn.EmbeddingBag(13, 8, mode=mode), head=nn.Linear(8, 6)
    )


for mode in ("sum", "mean", "max"):
    add(
        f"embedding bag, {mode}",
        {
            "sum": "positions are added before anything can be hooked",
            "mean": "divided by the length of the bag, which is not the batch",
            "max": "each feature comes from a token of its own",
        }[mode],
        _bag(mode),
        tokens(13, (3,), (6,)),
        {"bag.weight": "rows", "head.weight": "outer", "head.bias": "dense"},
    )
add(
    "embedding bag, weights a token, padding_idx",
    "the weights are a parameter too, and one token counts for nothing",
    lambda: Net(_weighted_bag, table=nn.Parameter(torch.randn(13, 8)), weights=nn.Parameter(torch.randn(13))),
    tokens(13, (3,), (8,)),
    {"table": "rows", "weights": "rows"},
)
add(
    "tokens, segments and positions, one position read",
    "three tables of other lengths; what lies behind the norm has a gradient at one position only",
    lambda: Net(
        _bert,
        token=nn.Embedding(13, 8, padding_idx=0),
        segment=nn.Embedding(4, 8),
        position=nn.Embedding(9, 8),
        norm=nn.LayerNorm(8),
        mix=nn.Linear(8, 8),
        head=nn.Linear(8, 6),
    ),
    tokens(13, (3,), (6,), size=5),
    {
        "token.weight": "rows",
        "segment.weight": "rows",
        "position.weight": "rows",
        "norm.weight": "dense",
        "norm.bias": "dense",
        "mix.weight": "outer",
        "mix.bias": "dense",
        "head.weight": "outer",
        "head.bias": "dense",
    },
)


def _weighted_bag(m: Any, i: Tensor) -> Any:
    return F.embedding_bag(i, m.table, mode="sum", per_sample_weights=m.weights[i], padding_idx=0)


def _bert(m: Any, i: Tensor) -> Any:
    h = m.token(i) + m.segment(i % 4) + m.position(torch.arange(i.shape[1], device=i.device))
    h = m.norm(h)
    return m.head((h + m.mix(h).tanh().mean(1, keepdim=True))[:, 0])
