"""Rows of a table, chosen by the data."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ._case import add, add_module, inputs, tokens, weights

ROWS = {"w": "rows"}
table = weights(w=(5, 6))
I = tokens(5, ("T",))  # noqa: E741


def looked_up(name, out, params=table, args=I, kinds=None, form="alike", **known):
    """A non-linear function of what comes out, so that cotangents depend on the row."""
    add(name, params, args, lambda p, *batch: out(p, *batch).exp(), form, kinds, **known)


looked_up("embedding", lambda p, i: F.embedding(i, p["w"]), kinds=ROWS)
looked_up("embedding, one token a sample", lambda p, i: F.embedding(i, p["w"]), args=tokens(5, ()), kinds=ROWS)
looked_up("embedding, two dimensions of tokens", lambda p, i: F.embedding(i, p["w"]), args=tokens(5, ("T", 2)))
looked_up("embedding, padding", lambda p, i: F.embedding(i, p["w"], padding_idx=0), kinds=ROWS)
looked_up("embedding, padding counted from the end", lambda p, i: F.embedding(i, p["w"], padding_idx=-1))
looked_up("embedding, B rows", lambda p, i: F.embedding(i % len(p["w"]), p["w"]), weights(w=("B", "B")), kinds=ROWS)
looked_up(
    "embedding, one row over and over", lambda p, i: F.embedding(i * 0 + 2, p["w"]) * (i + 1).unsqueeze(-1), kinds=ROWS
)
looked_up("embedding, scaled by frequency", lambda p, i: F.embedding(i, p["w"], scale_grad_by_freq=True), form="native")
looked_up("embedding of an embedding", lambda p, i: F.embedding(i, p["w"] @ p["v"]), weights(w=(5, 3), v=(3, 6)))
looked_up("embedding twice from one table", lambda p, i: F.embedding(i, p["w"]) * F.embedding(i.flip(-1), p["w"]))
looked_up("w[tokens]", lambda p, i: p["w"][i])
looked_up("w[tokens, some columns]", lambda p, i: p["w"][i, 1:4])
looked_up("w[:, tokens]", lambda p, i: p["w"][:, i].movedim(0, -1), weights(w=(2, 5)))
looked_up("w[rows, columns]", lambda p, i, j: p["w"][i, j], args=tokens(5, ("T",), ("T",)))
looked_up("index_select", lambda p, i: p["w"].index_select(0, i.flatten()).view(*i.shape, 6), form="stacked")
looked_up("gather", lambda p, i: torch.gather(p["w"].expand(len(i), 5), 1, i), weights(w=(5,)), form="stacked")
looked_up("take", lambda p, i: torch.take(p["w"], i))
looked_up("one-hot product", lambda p, i: (i.unsqueeze(-1) == torch.arange(5)).double() @ p["w"], kinds={"w": "outer"})
looked_up("bag, mean", lambda p, i: F.embedding_bag(i, p["w"], mode="mean"), form="stacked")
looked_up("bag, sum", lambda p, i: F.embedding_bag(i, p["w"], mode="sum"), form="stacked")
looked_up("bag, max", lambda p, i: F.embedding_bag(i, p["w"], mode="max"), form="stacked")
looked_up("bag, padding", lambda p, i: F.embedding_bag(i, p["w"], mode="sum", padding_idx=0), form="stacked")
looked_up(
    "bag, weights of its own",
    lambda p, i: F.embedding_bag(i, p["w"], mode="sum", per_sample_weights=p["v"][i]),
    weights(w=(5, 6), v=(5,)),
    form="stacked",
)
looked_up(
    "a matrix a sample",
    lambda p, i, x: torch.einsum("...i,...io->...o", x, p["w"][i]),
    weights(w=(5, 6, 4)),
    lambda d, size, length: (d.ints(5, size), d(size, 6)),
    form="stacked",
)
looked_up(
    "a bias a class",
    lambda p, i, x: x + p["w"][i],
    args=lambda d, size, length: (d.ints(5, size), d(size, 6)),
    form="stacked",
)
looked_up(
    "relative positions",
    lambda p, x: 0.1 * x @ x.mT + p["w"][lags(x.shape[1])],
    weights(w=(16,)),
    inputs(("T", 6)),
    form="stacked",
)


def lags(length):
    return torch.arange(length)[:, None] - torch.arange(length) + 7


class Bert(nn.Module):
    """Tokens, positions and segments, of which the first sample may use one only."""

    def __init__(self):
        super().__init__()
        self.token, self.segment = nn.Embedding(5, 6, padding_idx=0), nn.Embedding(2, 6)
        self.position, self.norm, self.head = nn.Embedding(9, 6), nn.LayerNorm(6), nn.Linear(6, 4)

    def forward(self, i):
        h = self.token(i) + self.segment(i % 2) + self.position.weight[: i.shape[1]]
        return self.head(self.norm(h)[:, 0])


add_module(
    "tokens, segments, positions; one position is read",
    Bert,
    I,
    {"token.weight": "rows", "segment.weight": "rows", "head.weight": "outer", "norm.bias": "dense"},
)


class Multiplied(nn.Module):
    """Two tables looked up by the same tokens and multiplied."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Embedding(5, 6), nn.Embedding(5, 6)

    def forward(self, i):
        return (self.a(i) * self.b(i)).sum(1)


add_module("two tables multiplied", Multiplied, I, {"a.weight": "rows", "b.weight": "rows"})
