"""A parameter that reaches the data only through a function of parameters alone."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from ._case import Draw, add, add_module, inputs, weights

X = inputs(("T", 6))
plain = weights(w=(6, 6))


def through(name, change, params=plain, args=X, **known):
    """`x @ change(p)^T`."""
    add(name, params, args, lambda p, x: F.linear(x, change(p)), "alike", **known)


through("weight * 2", lambda p: p["w"] * 2)
through("weight * row", lambda p: p["w"] * p["v"], weights(w=(6, 6), v=(6,)))
through("weight * column", lambda p: p["w"] * p["v"], weights(w=(6, 6), v=(6, 1)))
through("weight * scalar parameter", lambda p: p["w"] * p["v"], weights(w=(6, 6), v=()))
through("weight / its norm", lambda p: p["w"] / p["w"].norm(dim=1, keepdim=True))
through("exp of the weight", lambda p: p["w"].exp())
through("softmax of the weight", lambda p: p["w"].softmax(-1))
through("lower triangle", lambda p: p["w"].tril())
through("symmetrised", lambda p: p["w"] + p["w"].T)
through("sum of two weights", lambda p: p["w"] + p["v"], weights(w=(6, 6), v=(6, 6)))
through("product of two weights", lambda p: p["w"] @ p["v"], weights(w=(6, 3), v=(3, 6)))
through("weight masked by data-free mask", lambda p: p["w"].masked_fill(torch.eye(6) > 0, 0.5))
through("cat of two weights", lambda p: torch.cat([p["w"], p["v"]]), weights(w=(2, 6), v=(4, 6)))
through("cat along inputs", lambda p: torch.cat([p["w"], p["v"]], 1), weights(w=(6, 2), v=(6, 4)))
through("stack of vectors", lambda p: torch.stack([p["w"], p["v"]]), weights(w=(6,), v=(6,)))
through("cat of a weight with itself", lambda p: torch.cat([p["w"], p["w"] * 3]))
through("a view of a vector", lambda p: p["w"].view(6, 6), weights(w=(36,)))
through("permuted and reshaped", lambda p: p["w"].permute(2, 0, 1).reshape(6, 6), weights(w=(3, 6, 2)))
through("every other row", lambda p: p["w"][::2])
through("rows by a list", lambda p: p["w"][[5, 0, 0, 3]])
through("rows flipped and rolled", lambda p: p["w"].flip(0).roll(1, 1))
through("repeated", lambda p: p["w"].repeat(2, 3), weights(w=(3, 2)))
through("padded", lambda p: F.pad(p["w"], (1, 1, 0, 2)), weights(w=(4, 4)))
through("cumulative", lambda p: p["w"].cumsum(0))
through("kronecker", lambda p: torch.kron(p["w"], p["v"]), weights(w=(2, 3), v=(3, 2)))
through("matrix exponential", lambda p: torch.linalg.matrix_exp(p["w"] - p["w"].T))
through("straight through", lambda p: p["w"] + (p["w"].round() - p["w"]).detach())
through("clamped", lambda p: p["w"].clamp(-0.4, 0.4))
through("largest entries only", lambda p: p["w"] * (p["w"].abs() >= p["w"].abs().flatten().topk(9).values[-1]))
through("sorted rows", lambda p: p["w"].sort(1).values)
through("choice of two weights", lambda p: torch.where(torch.eye(6) > 0, p["w"], p["v"]), weights(w=(6, 6), v=(6, 6)))
through("partly detached", lambda p: torch.cat([p["w"][:3].detach(), p["w"][3:]]))
through("used under detach only", lambda p: p["v"] * p["w"].detach(), weights(w=(6, 6), v=(6,)), unused=("w",))
through("cast there and back", lambda p: p["w"].float().double(), lowest=torch.float32)
through("a hundred halves", lambda p: sum((p["w"] * 0.5**k for k in range(100)), torch.zeros(6, 6)))
through("LoRA merged", lambda p: p["w"] + p["b"] @ p["a"] * 2, weights(w=(6, 6), a=(2, 6), b=(6, 2)))
through("low rank and diagonal", lambda p: torch.diag_embed(p["v"]) + p["w"], weights(w=(6, 6), v=(6,)))


def without_b(params, batch):
    return {**params, "b": torch.zeros_like(params["b"])}, batch


through(
    "LoRA merged, b = 0 at first",
    lambda p: p["w"] + p["b"] @ p["a"],
    weights(w=(6, 6), a=(2, 6), b=(6, 2)),
    degenerate=without_b,
)
add(
    "LoRA beside, b = 0 at first",
    weights(w=(6, 6), a=(2, 6), b=(6, 2)),
    X,
    lambda p, x: F.linear(x, p["w"]) + F.linear(F.linear(x, p["a"]), p["b"]),
    "alike",
    {"w": "outer", "a": "outer", "b": "outer"},
    degenerate=without_b,
)


def chunked(p, x):
    """The three projections of one weight, each on an input of its own."""
    q, k, v = p["w"].chunk(3)
    c, d, e = p["b"].split(6)
    return torch.cat([F.linear(x, q, c), F.linear(x.sin(), k, d), F.linear(x.flip(-1), v, e)], -1)


add("in-projection in chunks", weights(w=(18, 6), b=(18,)), X, chunked, "alike")
add(
    "slices that overlap",
    weights(w=(6, 6)),
    X,
    lambda p, x: F.linear(x, p["w"][:4]) + F.linear(x.cos(), p["w"][2:]),
    "alike",
)
add(
    "slices, one of them unused",
    weights(w=(6, 6)),
    X,
    lambda p, x: F.linear(x[..., :3], p["w"][2:4, 3:]),
    "alike",
)
add(
    "one flat vector for all layers",
    weights(w=(60,)),
    X,
    lambda p, x: F.linear(F.linear(x, p["w"][:36].view(6, 6), p["w"][36:42]).tanh(), p["w"][42:].view(3, 6)),
    "alike",
)
add(
    "unbound layers",
    weights(w=(3, 6, 6)),
    X,
    lambda p, x: layered(p["w"].unbind(0), x),
    "alike",
)
add(
    "a weight made by a network",
    weights(w=(36, 4), v=(4,)),
    X,
    lambda p, x: F.linear(x, F.linear(p["v"].tanh(), p["w"]).view(6, 6)),
    "alike",
)
add(
    "a derived weight used twice",
    plain,
    X,
    lambda p, x: layered([p["w"] / p["w"].norm()] * 2, x),
    "alike",
)
add("fourier filter", weights(w=(6,)), inputs((6,)), lambda p, x: filtered(p, x), "alike")


def layered(layers, x):
    for w in layers:
        x = F.linear(x, w).tanh()
    return x


def filtered(p, x):
    return torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(p["w"]), 6)


def spectral():
    module = nn.Linear(6, 6)
    module.weight.data = Draw(5)(6, 6).float()
    return parametrizations.spectral_norm(module).eval()


add_module("weight norm", lambda: parametrizations.weight_norm(nn.Linear(6, 4)), X, {"bias": "dense"})
add_module("spectral norm", spectral, X, {"bias": "dense"})
