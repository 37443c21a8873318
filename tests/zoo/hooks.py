"""A careless tool: rows of linear layers by hooks, the first dimension taken for the samples. And worse ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .problems import made

Use = tuple[Tensor, Tensor]


def uses(name: str) -> dict[str, list[Use]]:
    """Inputs and cotangents of every call of a linear layer, by the name of its weight, in the order of the calls."""
    _, module, (*inputs, target), criterion = made(name)
    weights = {id(p): key for key, p in module.named_parameters()}
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def seen(layer: nn.Linear, args: tuple[Tensor, ...], out: Tensor) -> None:
        found.setdefault(weights[id(layer.weight)], []).append((args[0].detach(), out))

    layers = [layer for layer in module.modules() if type(layer) is nn.Linear and id(layer.weight) in weights]
    handles = [layer.register_forward_hook(seen) for layer in layers]
    loss = criterion(module(*inputs), target, reduction="sum")
    for handle in handles:
        handle.remove()
    flat = [out for calls in found.values() for _, out in calls]
    grads = iter(torch.autograd.grad(loss, flat))
    return {key: [(x, next(grads)) for x, _ in calls] for key, calls in found.items()}


def _row(x: Tensor, g: Tensor) -> Tensor:
    """`[n, O, I]`, n being the size of the first dimension."""
    x, g = (t.reshape(len(t), -1, t.shape[-1]) for t in (x, g))
    return g.mT @ x


def every_use(calls: list[Use]) -> Tensor:
    """Right, where samples come first."""
    return torch.stack([_row(x, g) for x, g in calls]).sum(0)


def last_use(calls: list[Use]) -> Tensor:
    """What a layer saves is overwritten by its next call."""
    return _row(*calls[-1])


def mean_loss(calls: list[Use]) -> Tensor:
    """The rows of a mean, taken for those of the losses."""
    return every_use(calls) / len(calls[0][0])


def norms_of_positions(calls: list[Use]) -> Tensor:
    """`[n]`: the norm of a product as the product of norms, position by position."""
    parts = [(x.norm(dim=-1) * g.norm(dim=-1)).reshape(len(x), -1).square().sum(1) for x, g in calls]
    return torch.stack(parts).sum(0).sqrt()
