"""What no rule can know: a user's own functions, checkpoints, other dtypes inside."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ._case import add, add_module, inputs, weights

X = inputs(("T", 6))
layer = weights(w=(4, 6), b=(4,))


class Known(torch.autograd.Function):
    """A linear layer that vmap can batch; not so its backward, whose einsum has no batching rule there."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, w):
        return x @ w.T

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        return grad @ w, torch.einsum("...o,...i->oi", grad, x)


class Old(torch.autograd.Function):
    """The same as most were written: without `setup_context`, and no rule for vmap; it keeps the weight to itself."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.x, ctx.w = x, w
        return x @ w.T

    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.w, grad.flatten(0, -2).T @ ctx.x.flatten(0, -2)


class Numbered(torch.autograd.Function):
    """Arguments that are no tensors come first, and one tensor of no derivative."""

    @staticmethod
    def forward(ctx, kind, number, x, mask, w):
        ctx.number = number
        ctx.save_for_backward(x * mask, w)
        return number * (x * mask) @ w.T

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        return None, None, ctx.number * grad @ w, None, ctx.number * grad.flatten(0, -2).T @ x.flatten(0, -2)


class TwoOutputs(torch.autograd.Function):
    """Two outputs from one weight, of which one may go unused."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, w):
        return x * w, x + w

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, product, total):
        x, w = ctx.saved_tensors
        return product * w + total, (product * x + total).reshape(-1, 6).sum(0)


class Reversed(torch.autograd.Function):
    """A gradient that is not the function's: gradient reversal."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return -0.5 * grad


def block(x, w, b):
    return F.linear(F.linear(x, w, b).tanh(), w.T)


add("own function with a rule for vmap", layer, X, lambda p, x: Known.apply(x, p["w"]) + p["b"], "alike", vmap=False)
add("own function of old", layer, X, lambda p, x: Old.apply(x, p["w"]) + p["b"], "native", vmap=False)
add(
    "own function of a number",
    layer,
    X,
    lambda p, x: Numbered.apply("kind", 0.5, x, torch.ones(6, dtype=x.dtype), p["w"]) + p["b"],
    "native",
    vmap=False,
)
add("own function, two outputs", weights(w=(6,)), X, lambda p, x: torch.cat(TwoOutputs.apply(x, p["w"]), -1), "alike")
add("own function, one output unused", weights(w=(6,)), X, lambda p, x: TwoOutputs.apply(x, p["w"])[0].sin(), "alike")
add(
    "gradient reversal",
    weights(w=(4, 6), v=(4, 6)),
    X,
    lambda p, x: F.linear(Reversed.apply(F.linear(x, p["w"])), p["v"].T),
    "alike",
    {"w": "outer", "v": "outer"},
)
add(
    "checkpoint", layer, X, lambda p, x: checkpoint(block, x, p["w"], p["b"], use_reentrant=False), "native", vmap=False
)
add(
    "checkpoints in a row",
    weights(w=(6, 6), b=(6,)),
    X,
    lambda p, x: twice(p, x),
    "native",
    vmap=False,
)
add(
    "single precision inside",
    layer,
    X,
    lambda p, x: F.linear(x.float(), p["w"].float(), p["b"].float()).double(),
    "alike",
    lowest=torch.float32,
)
add(
    "single precision norm inside",
    weights(w=(6,), v=(4, 6)),
    X,
    lambda p, x: F.linear(F.rms_norm(x.float(), (6,)).double() * p["w"], p["v"]),
    "alike",
    lowest=torch.float32,
)
add(
    "single precision rows of samples",
    layer,
    X,
    lambda p, x: F.linear(x, p["w"]).float().cumsum(-2).double() + p["b"],
    "alike",
    lowest=torch.float32,
)
add("complex inside", weights(w=(6, 2)), X, lambda p, x: turned(p, x), "alike")
add("inverse of a matrix of the data", weights(w=(6, 6)), X, lambda p, x: solved(p, x), "alike")
add("eigenvalues of a matrix of the data", weights(w=(6, 3)), X, lambda p, x: spectrum(p, x), "alike")
add("determinant", weights(w=(6, 6)), inputs((6,)), lambda p, x: (p["w"] + torch.diag_embed(x.exp())).det(), "alike")


def twice(p, x):
    for _ in range(2):
        x = x + checkpoint(lambda x: F.linear(x, p["w"], p["b"]).sin(), x, use_reentrant=False)
    return x


def turned(p, x):
    """Complex weights: a rotation of pairs."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (3, 2))) * torch.view_as_complex(p["w"])[:3])


def solved(p, x):
    gram = x.transpose(-1, -2) @ x + torch.eye(6, dtype=x.dtype) + p["w"] @ p["w"].T
    return torch.linalg.solve(gram, x.mean(-2).unsqueeze(-1)).squeeze(-1)


def spectrum(p, x):
    y = x @ p["w"]
    skew = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=x.dtype))
    return torch.linalg.eigvalsh(y.transpose(-1, -2) @ y + skew)


class Functions(nn.Module):
    """A function of its own between two ordinary layers."""

    def __init__(self):
        super().__init__()
        self.first, self.own, self.last = nn.Linear(6, 6), nn.Parameter(torch.zeros(4, 6)), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(Known.apply(self.first(x).tanh(), self.own))


add_module(
    "own function between layers",
    Functions,
    X,
    {"first.weight": "outer", "first.bias": "dense", "last.weight": "outer", "last.bias": "dense", "own": "dense"},
    vmap=False,
)
