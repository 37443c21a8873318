"""Faults planted in one sample of 64: a line each of what the layer "inner" computes of its input u, which is x."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

SIZE, BAD = 64, 41
PRECISION, ALSO = "float64 is finite: it is precision", "also in float64"


class WrongSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return u.abs()

    @staticmethod
    def backward(ctx, g):
        (u,) = ctx.saved_tensors
        return g * u / u.abs()


class Logarithm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u + 1e-3).log()

    @staticmethod
    def backward(ctx, g):
        (u,) = ctx.saved_tensors
        return g * u.reciprocal()


def picked(u, x):
    out, rows = torch.zeros_like(u), x[:, 0] > 0
    return out.index_put((rows,), u.sqrt()[rows])


def in_place(u, x):
    out = u.clone()
    out[x[:, 0] <= 0] /= 0
    return out


@dataclass(frozen=True)
class Case:
    fn: Any
    bad: Any  # the sample: four numbers, or one for all
    operation: str
    direction: str
    pattern: str
    precision: str = ALSO
    at: Any = None  # whose line is named, if not fn's

    @property
    def lines(self) -> set[int]:
        code = (self.at or self.fn).__code__
        return {line for _, _, line in code.co_lines() if line is not None}


FORWARD, BACKWARD = "forward", "backward"
CASES = {
    "log": Case(lambda u, x: u.log(), 0.0, "aten.log", FORWARD, "log of 0"),
    "log2": Case(lambda u, x: u.log2(), 0.0, "aten.log2", FORWARD, "log of 0"),
    "log1p": Case(lambda u, x: u.log1p(), -1.0, "aten.log1p", FORWARD, "log of 0"),
    "log below": Case(lambda u, x: u.log(), -1.0, "aten.log", FORWARD, "log of a negative"),
    "log times 0": Case(lambda u, x: u.log() * x, 0.0, "aten.log", FORWARD, "log of 0"),
    "log softmax": Case(
        lambda u, x: (60 * u).softmax(-1).log(), [3.0, 0, 0, 0], "aten.log", FORWARD, "log of a softmax", PRECISION
    ),
    "log sigmoid": Case(
        lambda u, x: (60 * u).sigmoid().log(), -3.0, "aten.log", FORWARD, "log of a sigmoid", PRECISION
    ),
    "sqrt below": Case(lambda u, x: u.sqrt(), -1.0, "aten.sqrt", FORWARD, "sqrt of a negative"),
    "reciprocal": Case(lambda u, x: 1 / u, 0.0, "aten.reciprocal", FORWARD, "division by 0"),
    "division": Case(lambda u, x: x / (2 * u), 0.0, "aten.div.Tensor", FORWARD, "division by 0"),
    "division in place": Case(in_place, -1.0, "aten.div_.Tensor", FORWARD, "division by 0"),
    "weight norm": Case(
        lambda u, x: torch._weight_norm(u, x[:, :1], 0), 0.0, "aten._weight_norm_interface", FORWARD, "division by 0"
    ),
    "determinant": Case(
        lambda u, x: torch.linalg.slogdet(torch.diag_embed(u))[1][:, None],
        0.0,
        "aten._linalg_slogdet",
        FORWARD,
        "singular matrix",
    ),
    "rsqrt": Case(lambda u, x: u.rsqrt(), 0.0, "aten.rsqrt", FORWARD, "division by 0"),
    "exp": Case(lambda u, x: (100 * u).exp(), 1.0, "aten.exp", FORWARD, "exp overflow", PRECISION),
    "exp by hand": Case(
        lambda u, x: (e := (100 * u).exp()) / e.sum(-1, keepdim=True),
        1.0,
        "aten.exp",
        FORWARD,
        "exp overflow",
        PRECISION,
    ),
    "cosh": Case(lambda u, x: (100 * u).cosh(), -1.0, "aten.cosh", FORWARD, "exp overflow", PRECISION),
    "power below": Case(lambda u, x: u**1.5, -1.0, "aten.pow.Tensor_Scalar", FORWARD, "power of a negative"),
    "negative power": Case(lambda u, x: u**-1.5, 0.0, "aten.pow.Tensor_Scalar", FORWARD, "power at 0"),
    "acos outside": Case(lambda u, x: u.acos(), 1.5, "aten.acos", FORWARD, "end of [-1, 1]"),
    "atanh": Case(lambda u, x: u.atanh(), 1.0, "aten.atanh", FORWARD, "end of [-1, 1]"),
    "erfinv": Case(lambda u, x: u.erfinv(), 1.0, "aten.erfinv", FORWARD, "end of [-1, 1]"),
    "logit": Case(lambda u, x: u.logit(), 0.0, "aten.logit", FORWARD, "end of [0, 1]"),
    "mean of none": Case(
        lambda u, x: torch.stack([r[r > 0].mean() for r in u])[:, None], -1.0, "aten.mean", FORWARD, "empty mask"
    ),
    "masked mean": Case(
        lambda u, x: ((u * (x > 0)).sum(-1) / (x > 0).sum(-1))[:, None], -1.0, "aten.div.Tensor", FORWARD, "empty mask"
    ),
    "attention": Case(
        lambda u, x: u.masked_fill(x <= 0, -torch.inf).softmax(-1),
        -1.0,
        "aten._softmax",
        FORWARD,
        "empty attention mask",
    ),
    "added mask": Case(
        lambda u, x: (u + (x > 0).float().log()).softmax(-1), -1.0, "aten._softmax", FORWARD, "empty attention mask"
    ),
    "product": Case(lambda u, x: u * u, 1e30, "aten.mul.Tensor", FORWARD, "overflow", PRECISION),
    "matmul": Case(lambda u, x: u @ torch.full((4, 4), 1e10), 1e30, "aten.mm", FORWARD, "overflow", PRECISION),
    "prod": Case(lambda u, x: u.prod(-1, keepdim=True), 1e30, "aten.prod.dim_int", FORWARD, "overflow", PRECISION),
    "pole": Case(lambda u, x: u.lgamma(), 0.0, "aten.lgamma", FORWARD, "pole"),
    "pole below": Case(lambda u, x: u.digamma(), 0.0, "aten.digamma", FORWARD, "pole"),
    "layer norm": Case(
        lambda u, x: F.layer_norm(u, (4,)),
        [1e25, 0, 0, 0],
        "aten.native_layer_norm",
        FORWARD,
        "overflow",
        PRECISION,
    ),
    "length": Case(
        lambda u, x: torch.linalg.vector_norm(u, dim=-1, keepdim=True),
        1e30,
        "aten.linalg_vector_norm",
        FORWARD,
        "overflow",
        PRECISION,
    ),
    "infinity": Case(
        lambda u, x: u.masked_fill(x <= 0, torch.inf) - u.masked_fill(x <= 0, torch.inf),
        -1.0,
        "aten.sub.Tensor",
        FORWARD,
        "infinity as a constant",
    ),
    "sqrt": Case(lambda u, x: u.sqrt(), 0.0, "aten.sqrt", BACKWARD, "sqrt at 0"),
    "norm": Case(lambda u, x: u.square().sum(-1, keepdim=True).sqrt(), 0.0, "aten.sqrt", BACKWARD, "norm at 0"),
    "distance": Case(
        lambda u, x: (u * u).sum(-1, keepdim=True) ** 0.5, 0.0, "aten.pow.Tensor_Scalar", BACKWARD, "norm at 0"
    ),
    "where sqrt": Case(lambda u, x: torch.where(u > 0, u.sqrt(), 0.0), 0.0, "aten.sqrt", BACKWARD, "where"),
    "where sqrt below": Case(lambda u, x: torch.where(u > 0, u.sqrt(), 0.0), -1.0, "aten.sqrt", BACKWARD, "where"),
    "where log": Case(lambda u, x: torch.where(u > 0, u.log(), 0.0), 0.0, "aten.log", BACKWARD, "where"),
    "where division": Case(lambda u, x: torch.where(u != 0, x / u, 0.0), 0.0, "aten.div.Tensor", BACKWARD, "where"),
    "where exp": Case(
        lambda u, x: torch.where(u < 1, (100 * u).exp(), 0.0), 1.0, "aten.exp", BACKWARD, "where", PRECISION
    ),
    "where power": Case(lambda u, x: torch.where(u > 0, u**0.3, 0.0), 0.0, "aten.pow.Tensor_Scalar", BACKWARD, "where"),
    "masked sqrt": Case(lambda u, x: u.sqrt().masked_fill(x <= 0, 0.0), 0.0, "aten.sqrt", BACKWARD, "where"),
    "picked sqrt": Case(picked, 0.0, "aten.sqrt", BACKWARD, "where"),
    "power": Case(lambda u, x: u**0.3, 0.0, "aten.pow.Tensor_Scalar", BACKWARD, "power at 0"),
    "acos": Case(lambda u, x: u.acos(), 1.0, "aten.acos", BACKWARD, "end of [-1, 1]"),
    "acosh": Case(lambda u, x: (1 + u).acosh(), 0.0, "aten.acosh", BACKWARD, "end of [1, inf)"),
    "eigenvectors": Case(
        lambda u, x: torch.linalg.eigh(torch.diag_embed(u) + 1e-3).eigenvectors[:, 0],
        1.0,
        "aten._linalg_eigh",
        BACKWARD,
        "equal eigenvalues",
    ),
    "slope": Case(
        lambda u, x: WrongSlope.apply(u), 0.0, "WrongSlope", BACKWARD, "custom backward", at=WrongSlope.backward
    ),
    "slope of a log": Case(
        lambda u, x: Logarithm.apply(u), 0.0, "Logarithm", BACKWARD, "custom backward", at=Logarithm.backward
    ),
    "steep": Case(lambda u, x: (u - x) * x * x, 1e30, "aten.mul.Tensor", BACKWARD, "overflow", PRECISION),
}


class Inner(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, u, x):
        return self.fn(u, x)


class Net(nn.Module):
    """`head(inner(embed(x)))`, where `embed` is the identity."""

    def __init__(self, fn, width=4):
        super().__init__()
        self.embed, self.inner = nn.Linear(4, 4, bias=False), Inner(fn)
        self.head = nn.Linear(width, 1)
        with torch.no_grad():
            self.embed.weight.copy_(torch.eye(4))
            self.head.weight.fill_(0.5)

    def forward(self, x):
        return self.head(self.inner(self.embed(x), x))


def planted(case, bad=BAD):
    generator = torch.Generator().manual_seed(0)
    x = 0.2 + 0.6 * torch.rand(SIZE, 4, generator=generator)
    if bad is not None:
        x[bad] = torch.tensor(case.bad)
    with torch.no_grad():
        width = case.fn(x[:1].abs().clamp(0.3, 0.6), x[:1]).shape[-1]
    return Net(case.fn, width), x
