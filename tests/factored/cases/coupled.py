"""Losses of one sample that depend on others: rows of the batch as it stands."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ._case import add, add_module, inputs, weights

X = inputs((6,))
layer = weights(w=(6, 4), b=(4,))


def out(p, x):
    return x @ p["w"] + p["b"]


def native(name, function, params=layer, args=X, **known):
    add(name, params, args, function, "native", **known)


# Over one sample the gradients of these two are sums that cancel: zero in the oracle by luck of the order of adding.
native("centred over the batch", lambda p, x: out(p, x).exp() - out(p, x).exp().mean(0), smallest=2)
native("softmax over the batch", lambda p, x: out(p, x).softmax(0), smallest=2)
native("running sum over the batch", lambda p, x: out(p, x).tanh().cumsum(0))
native("the neighbour's loss too", lambda p, x: out(p, x).sin() * out(p, x).cos().roll(1, 0))
native("pairwise distances", lambda p, x: torch.cdist(out(p, x), out(p, x).detach() + 1).exp())
native("sorted over the batch", lambda p, x: out(p, x).sort(0).values.exp())
native("largest of the batch in every loss", lambda p, x: out(p, x).exp() * out(p, x).amax())
native("samples attend to samples", lambda p, x: (out(p, x) @ out(p, x).T).softmax(-1) @ out(p, x))
native("one loss from one sample only", lambda p, x: out(p, x)[:1].exp().expand(len(x), 4) * x[:, :4])
native("statistics detached", lambda p, x: out(p, x).exp() / out(p, x).exp().mean(0).detach())


def contrastive(p, x):
    """Each sample against all others of the batch, two views of one encoder."""
    a, b = F.normalize(out(p, x), dim=1), F.normalize(out(p, x.flip(1)), dim=1)
    return F.cross_entropy(a @ b.T / 0.5, torch.arange(len(x)), reduction="none")


native("contrastive", contrastive, scored=False, smallest=2)


def normalised(*layers):
    return lambda: nn.Sequential(*(make() for make in layers))


add_module(
    "batch norm",
    normalised(lambda: nn.Linear(6, 4), lambda: nn.BatchNorm1d(4), nn.Tanh, lambda: nn.Linear(4, 3)),
    X,
    {"3.weight": "outer", "3.bias": "dense"},
    options={"batch_stats": "batch"},
    native=True,
    smallest=2,
)
add_module(
    "batch norm of images",
    normalised(lambda: nn.Conv2d(2, 4, 2), lambda: nn.BatchNorm2d(4), nn.ReLU, nn.Flatten, lambda: nn.Linear(24, 3)),
    inputs((2, 3, 4)),
    {"4.weight": "outer", "4.bias": "dense"},
    options={"batch_stats": "batch"},
    native=True,
)
