"""Every kind of fault that `check_gradients` names, planted once in a small model on the digits data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._random import forked

Batch = tuple[Tensor, Tensor]


class Planted(NamedTuple):
    """A fault.

    Attributes:
        fault: what is wrong.
        check: the check that finds it.
        names: what that check must name.
        make: gives model and criterion.
    """

    fault: str
    check: str
    names: str
    make: Callable[[], tuple[nn.Module, Any]]


class _HalfBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad / 2


class HalfBackward(nn.Module):
    """The identity, with half of its gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        half: Callable[[Tensor], Tensor] = _HalfBackward.apply
        return half(x)


class Centred(nn.Module):
    """Takes off the mean of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        return x - x.mean(0)


def divided_by_n(output: Tensor, target: Tensor) -> Tensor:
    """A loss a sample, each divided by their number."""
    return F.cross_entropy(output, target, reduction="none") / len(output)


def _net(*middle: nn.Module) -> nn.Sequential:
    with forked(0, 23, devices=[]):
        return nn.Sequential(nn.Linear(64, 16), *middle, nn.Tanh(), nn.Linear(16, 10))


def _halved(module: nn.Module, inputs: Any, outputs: Any) -> Any:
    return (inputs[0] / 2,)


def _with_module_hook() -> tuple[nn.Module, Any]:
    net = _net()
    net[1].register_full_backward_hook(_halved)
    return net, nn.CrossEntropyLoss()


def _with_parameter_hook() -> tuple[nn.Module, Any]:
    net = _net()
    weight = net[0].weight
    assert isinstance(weight, Tensor)
    weight.register_hook(lambda grad: grad * 0.1)
    return net, nn.CrossEntropyLoss()


PLANTED = (
    Planted(
        "a custom backward that returns half",
        "layer",
        "1 (HalfBackward)",
        lambda: (_net(HalfBackward()), nn.CrossEntropyLoss()),
    ),
    Planted("a layer that mixes samples", "independence", "1", lambda: (_net(Centred()), nn.CrossEntropyLoss())),
    Planted(
        "a loss that divides by n inside",
        "criterion and n",
        "criterion divided_by_n",
        lambda: (_net(), divided_by_n),
    ),
    Planted("a backward hook that scales", "hooks", "1", _with_module_hook),
    Planted("a hook on a parameter that scales", "hooks", "0.weight", _with_parameter_hook),
)
