"""What no table of layers can know: a module's own functions, checkpoints, tensors changed in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ._model import Net, add, floats

ENDS = {"first.weight": "outer", "first.bias": "dense", "last.weight": "outer", "last.bias": "dense"}


class Product(torch.autograd.Function):
    """A linear layer for vmap."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return grad @ weight, grad.mT @ x


class _OldProduct(torch.autograd.Function):
    """The same as most were written."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.mT

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return grad @ weight, grad.mT @ x


class _Round(torch.autograd.Function):
    """Rounds, and pretends that it did not."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return (x * 4).round() / 4

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


rounded: Callable[[Tensor], Tensor] = _Round.apply


def _own(product: Callable[..., Any]) -> Callable[[], nn.Module]:
    """The function between two ordinary layers."""
    return lambda: Net(
        lambda m, x: m.last(product(m.first(x).tanh(), m.own).tanh()),
        first=nn.Linear(12, 12),
        own=(8, 12),
        last=nn.Linear(8, 5),
    )


add(
    "own autograd function with a weight",
    "a backward that sums over the batch, in one piece with the layers around it",
    _own(Product.apply),
    floats((12,), (5,)),
    {**ENDS, "own": "dense"},
)
add(
    "own autograd function of the old form",
    "no setup_context, so that vmap refuses it",
    _own(_OldProduct.apply),
    floats((12,), (5,)),
    {**ENDS, "own": "dense"},
    vmap=False,
)
add(
    "rounded weight, straight-through",
    "the gradient is not the derivative, and is meant not to be",
    lambda: Net(lambda m, x: F.linear(x, rounded(m.w)), w=(10, 12)),
    floats((12,), (10,)),
    {"w": "dense"},
    reported=dict.fromkeys(("slope", "layer"), "the backward pass takes the rounding for the identity"),
)
add(
    "checkpointed block",
    "runs again in the backward pass, where hooks fire twice; vmap cannot save for it",
    lambda: Net(
        lambda m, x: m.last(checkpoint(m.block, m.first(x), use_reentrant=False)),
        first=nn.Linear(12, 12),
        block=nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 12)),
        last=nn.Linear(12, 5),
    ),
    floats((12,), (5,)),
    {**ENDS, "block.0.weight": "outer", "block.0.bias": "dense", "block.2.weight": "outer", "block.2.bias": "dense"},
    vmap=False,
)
add(
    "parameter written into a buffer",
    "in place, into a part of a tensor that did not require gradients",
    lambda: Net(_written, first=(6,), layer=nn.Linear(12, 10)),
    floats((2, 12), (2, 10)),
    {"first": "dense", "layer.weight": "outer", "layer.bias": "dense"},
)
add(
    "in-place activations and residual",
    "the layer's output is gone when its hook looks at it",
    lambda: Net(_in_place, first=nn.Linear(12, 12), scale=(12,), last=nn.Linear(12, 5)),
    floats((12,), (5,)),
    {**ENDS, "scale": "dense"},
)
add(
    "linear system of data and parameters",
    "a solver between two linear layers",
    lambda: Net(_solved, first=nn.Linear(12, 6), w=(6, 6), last=nn.Linear(6, 5)),
    floats((12,), (5,)),
    {**ENDS, "w": "dense"},
)
add(
    "complex weights",
    "rotations of pairs of features: another dtype inside, and a conjugate in the gradient",
    lambda: Net(_turned, w=(6, 2), layer=nn.Linear(12, 10)),
    floats((2, 12), (2, 10)),
    {"w": "dense", "layer.weight": "outer", "layer.bias": "dense"},
)


def _written(m: Any, x: Tensor) -> Any:
    buffer = torch.zeros_like(x)
    buffer[..., :6] = m.first
    buffer[..., 6:] += x[..., 6:].sin()
    return m.layer(buffer * x)


def _in_place(m: Any, x: Tensor) -> Any:
    return m.last(m.first(x).add_(x).mul_(m.scale).relu_())


def _solved(m: Any, x: Tensor) -> Any:
    matrix = m.w @ m.w.mT + 3 * torch.eye(6, dtype=x.dtype, device=x.device) + torch.diag_embed(x[:, :6].square())
    return m.last(torch.linalg.solve(matrix, m.first(x).unsqueeze(-1)).squeeze(-1))


def _turned(m: Any, x: Tensor) -> Any:
    turned = torch.view_as_complex(x.unflatten(-1, (6, 2))) * torch.view_as_complex(m.w)
    return m.layer(torch.view_as_real(turned).flatten(-2))
