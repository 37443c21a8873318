"""A weight in a matrix product, in every way to write one."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ._case import add, inputs, weights

BOTH = {"w": "outer", "b": "dense"}
W = {"w": "outer"}
affine = weights(w=(4, 6), b=(4,))
plain = weights(w=(4, 6))

add("linear", affine, inputs((6,)), lambda p, x: F.linear(x, p["w"], p["b"]), "alike", BOTH)
add("linear without bias", plain, inputs((6,)), lambda p, x: F.linear(x, p["w"]), "alike", W)
add("linear on a sequence", affine, inputs(("T", 6)), lambda p, x: F.linear(x, p["w"], p["b"]), "alike", BOTH)
add("linear on an image", affine, inputs(("T", 2, 6)), lambda p, x: F.linear(x, p["w"], p["b"]), "stacked", BOTH)
add(
    "linear, strided input",
    affine,
    inputs((6, "T")),
    lambda p, x: F.linear(x.transpose(-1, -2), p["w"], p["b"]),
    "alike",
    BOTH,
)
add(
    "linear, every other input",
    plain,
    inputs(("T", 12)),
    lambda p, x: F.linear(x[..., ::2], p["w"]),
    "alike",
    W,
)
add(
    "linear, one input for all positions",
    affine,
    inputs((1, 6)),
    lambda p, x: F.linear(x.expand(-1, 5, 6), p["w"], p["b"]) * torch.linspace(0, 1, 5, dtype=x.dtype)[:, None],
    "stacked",
    BOTH,
)
add("x @ w", weights(w=(6, 4)), inputs(("T", 6)), lambda p, x: x @ p["w"], "alike", W)
add("w @ x", plain, inputs((6, "T")), lambda p, x: p["w"] @ x, "alike", W)
add("x @ vector", weights(w=(6,)), inputs(("T", 6)), lambda p, x: x @ p["w"], "alike")
add("w @ vector", plain, inputs((6,)), lambda p, x: (p["w"] @ x.unsqueeze(-1)).squeeze(-1), "alike", W)
add("(w @ x.T).T", plain, inputs((6,)), lambda p, x: (p["w"] @ x.T).T, "stacked", W)
add("addmm of rows", weights(w=(6, 4), b=(4,)), inputs(("T", 6)), lambda p, x: conv1d(p, x), "stacked", BOTH)
add(
    "addmm, alpha and beta",
    weights(w=(6, 4), b=(4,)),
    inputs((6,)),
    lambda p, x: torch.addmm(p["b"], x, p["w"], alpha=2, beta=0.5),
    "stacked",
    BOTH,
)
add(
    "addmm, scalar bias",
    weights(w=(6, 4), b=()),
    inputs((6,)),
    lambda p, x: torch.addmm(p["b"], x, p["w"]),
    "stacked",
    BOTH,
)
add(
    "bmm, expanded weight",
    weights(w=(6, 4)),
    inputs(("T", 6)),
    lambda p, x: torch.bmm(x, p["w"].expand(len(x), 6, 4)),
    "stacked",
    W,
)
add(
    "baddbmm",
    weights(w=(6, 4), b=(4,)),
    inputs(("T", 6)),
    lambda p, x: torch.baddbmm(p["b"], x, p["w"].expand(len(x), 6, 4), beta=3, alpha=0.5),
    "stacked",
    BOTH,
)
add("einsum bti,oi", plain, inputs(("T", 6)), lambda p, x: torch.einsum("...ti,oi->...to", x, p["w"]), "alike", W)
add("einsum oi,bti", plain, inputs(("T", 6)), lambda p, x: torch.einsum("oi,...ti->...ot", p["w"], x), "alike", W)
add("einsum, batch last", plain, inputs((6,)), lambda p, x: torch.einsum("ib,oi->bo", x.T, p["w"]), "stacked", W)
add("einsum, batch in the middle", plain, inputs((6, 2)), lambda p, x: middle(p, x), "stacked", W)
add(
    "einsum, a weight a position",
    weights(w=("T", 4, 6)),
    inputs(("T", 6)),
    lambda p, x: torch.einsum("...ti,toi->...to", x, p["w"]),
    "alike",
)
add(
    "einsum, a weight a head",
    weights(w=("B", 6, 4)),
    inputs(("T", 6)),
    lambda p, x: torch.einsum("...ti,hio->...hto", x, p["w"]),
    "alike",
)
add(
    "einsum, summed over heads",
    weights(w=(3, 2, 4)),
    inputs(("T", 3, 2)),
    lambda p, x: torch.einsum("...thd,hdo->...to", x, p["w"]),
    "alike",
)
add(
    "einsum of three",
    weights(w=(4, 6, 3)),
    inputs((6,), (3,)),
    lambda p, x, y: torch.einsum("...i,oij,...j->...o", x, p["w"], y),
    "alike",
)
add("einsum, only a diagonal", weights(w=(6, 6)), inputs((6,)), lambda p, x: x * p["w"].diagonal(), "alike")
add(
    "matmul, batch of heads",
    weights(w=("B", 6, 4)),
    inputs(("B", "T", 6)),
    lambda p, x: x @ p["w"],
    "alike",
)
add(
    "matmul, broadcast over heads",
    weights(w=(1, 6, 4)),
    inputs((3, "T", 6)),
    lambda p, x: x @ p["w"],
    "alike",
)
add("tensordot", weights(w=(2, 3, 4)), inputs(("T", 2, 3)), lambda p, x: torch.tensordot(x, p["w"], 2), "alike", W)
add("bilinear", weights(w=(4, 6, 3), b=(4,)), inputs((6,), (3,)), lambda p, x, y: bilinear(p, x, y), "stacked")
add(
    "quadratic form",
    weights(w=(6, 6)),
    inputs(("T", 6)),
    lambda p, x: torch.einsum("...i,ij,...j->...", x, p["w"], x),
    "alike",
)
add("outer product", weights(w=(4,)), inputs((6,)), lambda p, x: x.unsqueeze(-1) * p["w"], "alike")
add("distance to centres", weights(w=(4, 6)), inputs((6,)), lambda p, x: torch.cdist(x, p["w"]), "stacked")
add("square weight, T = B = I", weights(w=("B", "B")), inputs(("B", "B")), lambda p, x: x @ p["w"], "alike", W)
add(
    "mlp",
    weights(a=(12, 6), c=(12,), w=(4, 12), b=(4,)),
    inputs((6,)),
    lambda p, x: F.linear(F.linear(x, p["a"], p["c"]).relu(), p["w"], p["b"]),
    "alike",
    {**BOTH, "a": "outer", "c": "dense"},
)
add(
    "residual mlp on a sequence",
    weights(a=(12, 6), c=(12,), w=(6, 12), b=(6,)),
    inputs(("T", 6)),
    lambda p, x: x + F.linear(F.gelu(F.linear(x, p["a"], p["c"])), p["w"], p["b"]),
    "alike",
    {**BOTH, "a": "outer", "c": "dense"},
)
add(
    "squeeze and excite",
    weights(w=(6, 6), v=(6, 6)),
    inputs(("T", 6)),
    lambda p, x: (x @ p["w"]) * (x.mean(-2, keepdim=True) @ p["v"]).sigmoid(),
    "alike",
    {"w": "outer", "v": "outer"},
)


def conv1d(p, x):
    """As GPT-2 writes its layers: rows of all samples in one product."""
    return torch.addmm(p["b"], x.reshape(-1, 6), p["w"]).view(*x.shape[:-1], 4)


def middle(p, x):
    return torch.einsum("oi,ibt->obt", p["w"], x.transpose(0, 1)).transpose(0, 1)


def bilinear(p, x, y):
    return F.bilinear(x, y, p["w"], p["b"])
