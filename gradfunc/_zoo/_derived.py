"""A parameter that reaches the data only through a function of parameters alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from ._model import Net, add, floats, net

X = floats((3, 12), (3, 10))
BIAS = {"bias": "dense"}
LAYER = "the layer's weight is no parameter: what a hook on the layer computes belongs to another tensor"


def _through(change: Callable[[Any], Tensor], **parts: tuple[int, ...]) -> Callable[[], nn.Module]:
    """`x @ change(m)^T`."""
    return net(lambda m, x: F.linear(x, change(m)), **parts)


add("weight scaled before use", "the factor is missing from the gradient", _through(lambda m: m.w * 2, w=(10, 12)), X,
    {"w": "outer"})  # fmt: skip
add(
    "weight scaled by a learned number",
    "two parameters meet before the data; one of them has no dimensions",
    _through(lambda m: m.w * m.scale, w=(10, 12), scale=()),
    X,
    {"w": "dense", "scale": "dense"},
)
add(
    "weight cast to another precision",
    "the product is in another dtype than the parameter",
    net(lambda m, x: F.linear(x.double(), m.w.double(), m.b.double()).to(x.dtype), w=(10, 12), b=(10,)),
    X,
    {"w": "outer", "b": "dense"},
)
add(
    "transposed weight",
    "the gradient comes back in the other order",
    _through(lambda m: m.w.T, w=(12, 10)),
    X,
    {"w": "outer"},
)
add(
    "masked weight",
    "entries that no loss depends on get a gradient",
    lambda: Net(lambda m, x: F.linear(x, m.w * m.mask), w=(10, 12), mask=torch.ones(10, 12).tril()),
    X,
    {"w": "dense"},
)
add("exp of the weight", "a function entry by entry between parameter and product",
    _through(lambda m: (m.w - 1).exp(), w=(10, 12)), X, {"w": "dense"})  # fmt: skip
add(
    "low-rank update merged, W + BA",
    "three parameters in one matrix, which is the only one that a layer would show",
    _through(lambda m: m.w + 2 * m.b @ m.a, w=(20, 24), b=(20, 8), a=(8, 24)),
    floats((2, 24), (2, 20)),
    {"w": "outer", "b": "outer", "a": "outer"},
)
add(
    "rows normalised, learned temperature",
    "a cosine classifier: the gradient loses its part along the weight",
    lambda: Net(
        lambda m, x: F.linear(F.normalize(x, dim=-1), F.normalize(m.w, dim=-1)) * m.scale.exp(), w=(10, 12), scale=()
    ),
    X,
    {"w": "dense", "scale": "dense"},
)
add("weight norm", LAYER, lambda: parametrizations.weight_norm(nn.Linear(12, 10)), X,
    {**BIAS, "parametrizations.weight.original0": "dense", "parametrizations.weight.original1": "dense"})  # fmt: skip
add(
    "spectral norm, eval mode",
    LAYER + "; in train mode each call moves its buffers",
    lambda: parametrizations.spectral_norm(nn.Linear(12, 10)).eval(),
    X,
    {**BIAS, "parametrizations.weight.original": "dense"},
)
add(
    "orthogonal weight",
    LAYER,
    lambda: Net(
        lambda m, x: m.head(m.layer(x).tanh()),
        layer=parametrizations.orthogonal(nn.Linear(6, 6), orthogonal_map="matrix_exp"),
        head=nn.Linear(6, 5),
    ),
    floats((6,), (5,)),
    {
        "layer.bias": "dense",
        "layer.parametrizations.weight.original": "dense",
        "head.weight": "outer",
        "head.bias": "dense",
    },
)


add(
    "standardised kernel",
    "the kernel of a convolution is centred and scaled before use",
    lambda: Net(
        lambda m, x: F.conv1d(x, F.layer_norm(m.w, m.w.shape[1:]) * m.gain, m.b), w=(6, 4, 3), gain=(6, 1, 1), b=(6,)
    ),
    floats((4, 7), (6, 5)),
    {"w": "dense", "gain": "dense", "b": "dense"},
)
add(
    "chunks of one projection, an input each",
    "three products whose gradients are parts of one parameter",
    lambda: Net(_chunks, w=(36, 12), b=(36,)),
    floats((12,), (36,)),
    {"w": "outer", "b": "dense"},
)
add(
    "one flat vector for all layers",
    "parameters are views of one tensor",
    lambda: Net(_flat, theta=nn.Parameter(0.3 * torch.randn(24 * 24 + 24 + 5 * 24))),
    floats((24,), (5,)),
    {"theta": "dense"},
)
add(
    "weight made by a network from a learned code",
    "layers that no sample passes through: their per-sample gradients come from one row",
    lambda: Net(lambda m, x: F.linear(x, m.maker(m.code).view(6, 8)), maker=nn.Linear(4, 48), code=(4,)),
    floats((8,), (6,)),
    {"maker.weight": "dense", "maker.bias": "dense", "code": "dense"},
    vmapped={"maker.bias": "outer"},
)
add(
    "weights joined from two parameters",
    "one product for two parameters, of which each gets a part",
    _through(lambda m: torch.cat([m.a, m.b * 3]), a=(12, 16), b=(10, 16)),
    floats((2, 16), (2, 22)),
    {"a": "outer", "b": "outer"},
)


def _chunks(m: Any, x: Tensor) -> Any:
    weights, biases = m.w.chunk(3), m.b.split(12)
    inputs = (x, x.sin(), x.flip(-1))
    return torch.cat([F.linear(i, w, b) for i, w, b in zip(inputs, weights, biases, strict=True)], -1)


def _flat(m: Any, x: Tensor) -> Any:
    w, b, v = m.theta.split([24 * 24, 24, 5 * 24])
    return F.linear(F.linear(x, w.view(24, 24), b).tanh(), v.view(5, 24))
