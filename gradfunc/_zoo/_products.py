"""A weight in a matrix product, in every way to write one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._model import B, Net, add, floats, labels, net

AFFINE = {"weight": "outer", "bias": "dense"}
OWN = {"w": "outer", "b": "dense"}

add("linear", "nothing: the base line", lambda: nn.Linear(12, 10), floats((12,), (10,)), AFFINE)
add(
    "MLP",
    "the sum of losses for their mean: every row n times too large or too small",
    lambda: nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 5)),
    labels((12,), classes=5),
    {"0.weight": "outer", "0.bias": "dense", "2.weight": "outer", "2.bias": "dense"},
    F.cross_entropy,
)
add(
    "linear, every width is the batch size",
    "any dimension of any tensor may be taken for that of the samples",
    lambda: nn.Sequential(nn.Linear(B, B), nn.Tanh(), nn.Linear(B, B)),
    floats((B,), (B,)),
    {"0.weight": "outer", "0.bias": "dense", "2.weight": "outer", "2.bias": "dense"},
)
add(
    "linear on a sequence",
    "a norm of the product is not the product of norms as soon as positions share the weight",
    lambda: nn.Linear(12, 10),
    floats((3, 12), (3, 10)),
    AFFINE,
)
add(
    "linear on a sequence, time first, T = B",
    "rows of positions are taken for those of samples, and nothing in the shapes says so",
    lambda: Net(lambda m, x: m.layer(x).tanh().sum(0), layer=nn.Linear(16, 14)),
    lambda: (torch.randn(B, B, 16), torch.randn(B, 14)),
    {"layer.weight": "outer", "layer.bias": "dense"},
    in_dims=1,
)
add(
    "linear on a grid, transposed inside",
    "inputs and cotangents in an order of dimensions that is not the layer's own",
    lambda: Net(lambda m, x: m.layer(x.transpose(0, 1)).transpose(0, 1), layer=nn.Linear(16, 14)),
    floats((B, 16), (B, 14)),
    {"layer.weight": "outer", "layer.bias": "dense"},
)
add(
    "F.linear of the module's own parameters",
    "no layer to register a rule or a hook for",
    net(lambda m, x: F.linear(x, m.w, m.b), w=(10, 12), b=(10,)),
    floats((12,), (10,)),
    OWN,
)
add(
    "matmul from the left",
    "the weight multiplies columns: inputs and outputs change places",
    net(lambda m, x: m.w @ x, w=(10, 12)),
    floats((12, 3), (10, 3)),
    {"w": "outer"},
)
add(
    "addmm of merged rows",
    "the batch is gone before the product: samples and positions are one dimension",
    net(lambda m, x: torch.addmm(m.b, x.reshape(-1, 12), m.w).view(*x.shape[:-1], 10), w=(12, 10), b=(10,)),
    floats((3, 12), (3, 10)),
    OWN,
)
add(
    "addmm, alpha and beta",
    "factors on the product and on the bias that a rule for a linear layer does not know",
    net(lambda m, x: torch.addmm(m.b, x, m.w, alpha=2, beta=0.5), w=(12, 10), b=(10,)),
    floats((12,), (10,)),
    OWN,
)
add(
    "bmm with an expanded weight",
    "the copies of the weight get a gradient each, B x T of them",
    net(lambda m, x: torch.bmm(x, m.w.expand(len(x), 12, 10)), w=(12, 10)),
    floats((3, 12), (3, 10)),
    {"w": "outer"},
)
add(
    "einsum",
    "a product written in letters",
    net(lambda m, x: torch.einsum("bti,oi->bto", x, m.w).tanh(), w=(10, 12)),
    floats((3, 12), (3, 10)),
    {"w": "outer"},
)
add(
    "einsum, batch last",
    "the dimension of the samples is the last one of inputs and outputs",
    net(lambda m, x: torch.einsum("ib,oi->ob", x.T, m.w).T, w=(10, 12)),
    floats((12,), (10,)),
    {"w": "outer"},
)
add(
    "einsum, a matrix a head",
    "a weight of three dimensions, one of which is summed with the features",
    net(lambda m, x: torch.einsum("bthd,hdo->bto", x, m.w), w=(3, 6, 8)),
    floats((2, 3, 6), (2, 8)),
    {"w": "dense"},
)
add(
    "bilinear",
    "two inputs and a weight of three dimensions",
    lambda: nn.Bilinear(5, 6, 4),
    floats((5,), (6,), (4,)),
    {"weight": "outer", "bias": "dense"},
)
add(
    "quadratic form",
    "the weight is multiplied by data on both sides",
    net(lambda m, x: torch.einsum("bi,ij,bj->b", x, m.w, x), w=(12, 12)),
    floats((12,), ()),
    {"w": "outer"},
)
add(
    "parameter list",
    "parameters with numbers for names and no layer around them",
    lambda: Net(_stack, layers=nn.ParameterList([0.4 * torch.randn(12, 12) for _ in range(3)])),
    floats((12,), (12,)),
    {"layers.0": "outer", "layers.1": "outer", "layers.2": "outer"},
)
add(
    "distances to learned centres",
    "an operation that no table of layers has, between two linear ones",
    lambda: Net(
        lambda m, x: m.head(torch.cdist(m.body(x), m.centres)),
        body=nn.Linear(12, 6),
        head=nn.Linear(8, 5),
        centres=nn.Parameter(torch.randn(8, 6)),
    ),
    floats((12,), (5,)),
    {
        "centres": "dense",
        "body.weight": "outer",
        "body.bias": "dense",
        "head.weight": "outer",
        "head.bias": "dense",
    },
)


def _stack(m: Any, x: torch.Tensor) -> torch.Tensor:
    for weight in m.layers:
        x = F.linear(x, weight).tanh()
    return x
