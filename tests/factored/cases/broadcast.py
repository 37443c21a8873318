"""A parameter that meets the data entry by entry, broadcast over samples and positions; T = B is its trap."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ._case import add, add_module, inputs, weights

X = inputs(("T", 6))
scale = weights(w=(6,))
position = weights(w=("T", 6))


def simple(name, out, params=scale, args=X, kinds=None, form="alike", **known):
    add(name, params, args, out, form, kinds, **known)


simple("position embedding", lambda p, x: x + p["w"], position, kinds={"w": "rows|dense"})
simple("position embedding, times", lambda p, x: x * p["w"], position, kinds={"w": "rows|dense"})
simple("first positions of a table", lambda p, x: x + p["w"][: x.shape[-2]], weights(w=(9, 6)))
simple(
    "positions embedded",
    lambda p, x: x + F.embedding(torch.arange(x.shape[-2]), p["w"]),
    weights(w=(9, 6)),
    kinds={"w": "rows|dense"},
)
simple(
    "positions embedded, expanded",
    lambda p, x: x.sin() + F.embedding(torch.arange(x.shape[1]).expand(len(x), -1), p["w"]),
    weights(w=(9, 6)),
    form="stacked",
)
simple(
    "positions through a layer of their own",
    lambda p, x: x + F.linear(p["w"], p["v"]).tanh(),
    weights(w=("T", 6), v=(6, 6)),
)
simple("a bias a position", lambda p, x: x.sin() + p["w"], weights(w=("T", 1)))
simple("a bias [1, 1, 6]", lambda p, x: x.sin() + p["w"], weights(w=(1, 1, 6)), form="stacked")
simple(
    "class token", lambda p, x: with_token(p, x), weights(w=(1, 1, 6), v=(6, 6)), form="stacked", kinds={"v": "outer"}
)
simple("learned queries", lambda p, x: queried(p, x), weights(w=(4, 6), v=(6, 6)), form="stacked")
simple("layer scale", lambda p, x: x + x.sin() * p["w"], kinds={"w": "dense"})
simple("layer scale of one entry", lambda p, x: x.sin() * p["w"], weights(w=(1,)))
simple("temperature", lambda p, x: (x * p["w"]).softmax(-1), weights(w=()))
simple("residual gate, 0-dim", lambda p, x: x + p["w"].tanh() * x.sin(), weights(w=()))
simple("divided by", lambda p, x: x / (p["w"] + 3))
simple("exp of a scale", lambda p, x: x * p["w"].exp())
simple("gate between two", lambda p, x: p["w"].sigmoid() * x + (1 - p["w"].sigmoid()) * x.cos())
simple("gate of data and parameter", lambda p, x: (x + p["w"]).sigmoid() * x)
simple("power", lambda p, x: (x.abs() + 1) ** p["w"])
simple("lerp", lambda p, x: torch.lerp(x, x.cos(), p["w"]))
simple("addcmul", lambda p, x: torch.addcmul(p["v"], x, p["w"], value=2), weights(w=(6,), v=()))
simple("maximum", lambda p, x: torch.maximum(x, p["w"]))
simple("clamped by parameters", lambda p, x: torch.clamp(x, p["w"] - 1, p["w"] + 0.5))
simple("where", lambda p, x: torch.where(x > 0, x * p["w"], x * p["v"]), weights(w=(6,), v=(6,)))
simple("where, the parameter itself", lambda p, x: torch.where(x > 0, p["w"], x))
simple("mask token", lambda p, x: torch.where(x[..., :1] > 0, p["w"], x))
simple("prelu, one slope", lambda p, x: F.prelu(x, p["w"]), weights(w=(1,)), form="stacked")
simple("prelu, a slope a channel", lambda p, x: F.prelu(x, p["w"]), weights(w=("T",)), form="stacked")
simple("snake", lambda p, x: x + (p["w"] * x).sin().square() / (p["w"].abs() + 1))
simple("cumsum of a product", lambda p, x: (x * p["w"]).cumsum(-2))
simple("cumprod of gates", lambda p, x: (x.sigmoid() * p["w"].exp()).cumprod(-2))
simple("logsumexp with a parameter", lambda p, x: torch.logsumexp(x + p["w"], -1))
simple("expanded to the batch", lambda p, x: p["w"].expand_as(x) * x)
simple("repeated to the batch", lambda p, x: p["w"].repeat(len(x), x.shape[1], 1) * x, form="stacked")
simple("no entries", lambda p, x: x * p["v"] + p["w"].sum(), weights(w=(0,), v=(6,)), unused=("w",))
simple("no rows", lambda p, x: x * p["v"] + p["w"].sum(), weights(w=(0, 6), v=(6,)), unused=("w",))
simple("one parameter in no loss", lambda p, x: x * p["w"], weights(w=(6,), v=(6, 6)), unused=("v",))
simple("used under no_grad only", lambda p, x: x * p["w"] + without(p), weights(w=(6,), v=(6,)), unused=("v",))
simple("detached once, used once", lambda p, x: (x * p["w"]).sin() + p["w"].detach() * x)
simple("a constant beside the data", lambda p, x: x.sum((-1, -2)).unsqueeze(-1) + p["w"])
simple("nothing but parameters", lambda p, x: x * 0 + p["w"], kinds={"w": "rows|dense"}, equal=True)
simple("biased scores, T x T", lambda p, x: (x @ x.transpose(-1, -2) + p["w"]).softmax(-1), weights(w=("T", "T")))
simple("in place: add and multiply", lambda p, x: x.sin().add_(p["w"]).mul_(p["v"]), weights(w=(6,), v=(6,)))
simple("interleaved over features", lambda p, x: (x.unflatten(-1, (2, 3)) * p["w"]).flatten(-2), weights(w=(2, 1)))


def without(p):
    with torch.no_grad():
        return p["v"] * 2


def with_token(p, x):
    """The parameter is the first row of each sample's sequence."""
    x = torch.cat([p["w"].expand(len(x), 1, 6), x], 1)
    return ((x @ x.transpose(1, 2)).softmax(-1) @ x @ p["v"])[:, 0]


def queried(p, x):
    q = p["w"].unsqueeze(0).expand(len(x), -1, -1)
    return (q @ x.transpose(1, 2)).softmax(-1) @ x @ p["v"]


def written(p, x):
    """The parameter is written into a column of a buffer, then multiplied."""
    buffer = torch.zeros_like(x)
    buffer[:, 0] = p["w"]
    buffer[:, 1:] += x[:, 1:].sin()
    return buffer * x


def row_written(p, x):
    buffer = x.clone()
    buffer[..., 0] = p["v"]
    buffer[..., 1:3].mul_(p["w"][1:3])
    return buffer.exp()


simple("in place: a parameter into a buffer", lambda p, x: written(p, x), form="native")
simple("in place: columns of a clone", lambda p, x: row_written(p, x), weights(w=(6,), v=()), form="native")
simple(
    "in place: index_put",
    lambda p, x: x.clone().index_put((torch.arange(len(x)), torch.zeros(len(x), dtype=torch.long)), p["w"]),
    form="native",
    equal=True,
)


class Rezero(nn.Module):
    """Scales as parameters beside layers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(2)])
        self.scales = nn.ParameterList([nn.Parameter(torch.zeros(())) for _ in range(2)])

    def forward(self, x):
        for layer, scale in zip(self.layers, self.scales, strict=True):
            x = x + scale * layer(x).tanh()
        return x


add_module("rezero", Rezero, X, {"layers.0.weight": "outer", "layers.1.bias": "dense"})
