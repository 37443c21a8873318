"""One parameter in several places."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ._case import add, add_module, inputs, tokens, weights

TIED = {"e": "outer+rows"}
square = weights(w=(6, 6))

add("weight used twice", square, inputs((6,)), lambda p, x: (x @ p["w"]).tanh() @ p["w"], "alike", {"w": "outer"})
add("weight and its transpose", square, inputs((6,)), lambda p, x: (x @ p["w"]).tanh() @ p["w"].T, "alike")
add(
    "weight on positions and on their mean",
    square,
    inputs(("T", 6)),
    lambda p, x: torch.cat([x @ p["w"], x.mean(-2, keepdim=True) @ p["w"]], -2),
    "alike",
    {"w": "outer"},
)
add(
    "weight on inputs of two lengths",
    square,
    inputs(("T", 6), (3, 6)),
    lambda p, x, y: torch.cat([x @ p["w"], (y @ p["w"]).exp()], -2),
    "alike",
    {"w": "outer"},
)
add(
    "weight both sides",
    square,
    inputs((6, 6)),
    lambda p, x: p["w"] @ x @ p["w"],
    "alike",
    {"w": "outer"},
)
add(
    "weight and a penalty on it",
    square,
    inputs((6,)),
    lambda p, x: score_and_penalty(p, x),
    "alike",
    scored=False,
)
add("weight in a product and in a gate", square, inputs((6,)), lambda p, x: (x @ p["w"]) * p["w"].mean(0), "alike")
add("bias added twice", weights(b=(6,)), inputs(("T", 6)), lambda p, x: (x + p["b"]).exp() + p["b"], "alike")
add("bias of two layers", weights(w=(6, 6), b=(6,)), inputs((6,)), lambda p, x: two_layers(p, x), "alike")


def score_and_penalty(p, x):
    return (x @ p["w"]).sin().sum(-1) + 0.1 * p["w"].square().sum()


def two_layers(p, x):
    return F.linear(F.linear(x, p["w"], p["b"]).tanh(), p["w"], p["b"])


class Shared(nn.Module):
    """Two layers with one weight and biases of their own."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x).tanh())


add_module("weight shared by two modules", Shared, inputs((6,)), {"a.weight": "outer", "a.bias": "dense"})


class TiedModule(nn.Module):
    """The embedding as the head, with positions."""

    def __init__(self):
        super().__init__()
        self.embedding, self.position = nn.Embedding(5, 6), nn.Embedding(8, 6)
        self.mix, self.norm = nn.Linear(6, 6), nn.LayerNorm(6)
        self.head = nn.Linear(6, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        h = self.embedding(x) + self.position(torch.arange(x.shape[1]))
        return self.head(self.norm(h + self.mix(h).tanh()))


add_module(
    "tied embedding and head, modules",
    TiedModule,
    tokens(5, ("T",)),
    {"embedding.weight": "outer+rows", "position.weight": "rows|dense", "mix.weight": "outer", "norm.weight": "dense"},
)
add(
    "tied, linear",
    weights(e=(5, 6)),
    tokens(5, ("T",)),
    lambda p, i: F.linear(F.embedding(i, p["e"]).tanh(), p["e"]),
    "alike",
    TIED,
)
add(
    "tied, matmul of the transpose",
    weights(e=(5, 6)),
    tokens(5, ("T",)),
    lambda p, i: F.embedding(i, p["e"]).tanh() @ p["e"].T,
    "alike",
    TIED,
)
add(
    "tied, indexed and scaled",
    weights(e=(5, 6)),
    tokens(5, ("T",)),
    lambda p, i: torch.einsum("...td,vd->...tv", p["e"][i] * 6**0.5, p["e"]),
    "alike",
)
add(
    "tied, head on the last position",
    weights(e=(5, 6), w=(6, 6)),
    tokens(5, ("T",)),
    lambda p, i: (F.embedding(i, p["e"]) @ p["w"])[..., -1, :] @ p["e"].T,
    "alike",
    {"e": "outer+rows", "w": "outer"},
)
add(
    "tied, padding",
    weights(e=(5, 6)),
    tokens(5, ("T",)),
    lambda p, i: F.linear(F.embedding(i, p["e"], padding_idx=0).sin(), p["e"]),
    "alike",
    TIED,
)
add(
    "tied through a projection of both",
    weights(e=(5, 6), w=(6, 6)),
    tokens(5, ("T",)),
    lambda p, i: F.embedding(i, p["e"] @ p["w"]).tanh() @ (p["e"] @ p["w"]).T,
    "alike",
)
