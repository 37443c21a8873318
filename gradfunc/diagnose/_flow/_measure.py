"""One forward and one backward pass of a problem, described while they run: no tensor of them is kept."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..._errors import message
from ..._layers import Use, Walk
from ..._problem import Problem
from ..._random import forked
from ..._tree import Tensors
from ...audit._case import devices_of, mean_loss
from .._distribution import Distribution

CALL = "gf.diagnose.gradient_flow(model, criterion, batch)"
# An entry is saturated where the slope of its activation is below this share of the largest one.
FLAT = 0.05
_BEYOND: dict[str, Callable[[Tensor], Tensor]] = {  # the slope, read from the activation's output
    "tanh": lambda a: a.abs() > (1 - FLAT) ** 0.5,  # 1 - a^2, at most 1
    "sigmoid": lambda a: (a - 0.5).abs() > 0.5 * (1 - FLAT) ** 0.5,  # a (1 - a), at most 1/4
    "softsign": lambda a: a.abs() > 1 - FLAT**0.5,  # (1 - |a|)^2, at most 1
    "hardsigmoid": lambda a: (a <= 0) | (a >= 1),
    "relu6": lambda a: a >= 6,  # below 0 it is off, as relu is
}
_CHANNELS_FIRST = ("conv", "batch_norm", "instance_norm", "group_norm")

Describe = Callable[[Any], Distribution]


@dataclass(frozen=True)
class Activation:
    """What a use's last tensor shows in the forward pass.

    Attributes:
        values: how its entries are distributed.
        units: features or channels.
        dead: share of units that are 0 for every sample and position.
        saturated: share of entries where the activation is flat; None for one that does not saturate on both sides.
    """

    values: Distribution
    units: int
    dead: float
    saturated: float | None


@dataclass(frozen=True)
class Measured:
    """A use with what both passes show of it.

    Attributes:
        use: its place in the model.
        weights: names of its parameters with two dimensions or more; of all where none has.
        activation: of its last tensor.
        gradient: of the loss with respect to that tensor; None where no gradient comes there.
        gain: `sqrt(fan_in mean(w^2))` of a linear or convolutional layer with one such parameter, else None.
    """

    use: Use
    weights: tuple[str, ...]
    activation: Activation
    gradient: Distribution | None
    gain: float | None


@dataclass(frozen=True)
class Passes:
    """What `measure` gives: the mean loss, the uses in forward order, and the gradients of the parameters."""

    loss: float
    uses: tuple[Measured, ...]
    gradients: Tensors


@dataclass
class _Gradients:
    """Gradients at the uses, described as the backward pass brings them."""

    describe: Describe
    found: dict[int, Distribution] = field(default_factory=dict)

    def watch(self, index: int, use: Use) -> Any:
        """A pre-hook on a node of this pass's own graph, which goes with it."""
        at = use.last.output_nr

        def read(cotangents: tuple[Tensor | None, ...]) -> None:
            if (value := cotangents[at]) is not None:
                self.found[index] = self.describe(value)

        return use.last.node.register_prehook(read)


def measure(problem: Problem, describe: Describe, seed: int) -> Passes:
    """Run the model on the batch and differentiate the criterion's mean.

    Raises:
        ValueError: no parameter meets data, or the loss depends on none.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in problem.model.params.items()}
    walk = Walk(leaves, functools.partial(_activation, describe))
    gradients = _Gradients(describe)
    devices = devices_of(problem)
    with torch.enable_grad(), forked(seed, 0, devices=devices):
        loss = mean_loss(problem, walk.around(functools.partial(problem.model, leaves)))
        uses = walk.uses()
        if not uses or not loss.requires_grad:
            got = "a model without layers: no parameter meets the data" if not uses else "a loss without a gradient"
            expected = "a loss that depends on parameters of the model"
            raise ValueError(message(CALL, got=got, expected=expected))
        handles = [gradients.watch(index, use) for index, use in enumerate(uses)]
        try:
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        finally:
            for handle in handles:
                handle.remove()
    grads = {
        name: torch.zeros_like(leaf) if grad is None else grad.detach()
        for (name, leaf), grad in zip(leaves.items(), found, strict=True)
    }
    return Passes(loss.item(), tuple(_measured(i, use, leaves, gradients) for i, use in enumerate(uses)), grads)


def _measured(index: int, use: Use, params: Tensors, gradients: _Gradients) -> Measured:
    weights = tuple(name for name in use.names if params[name].dim() >= 2)
    gain = _gain(use, weights, params)
    return Measured(use.without_graph(), weights or use.names, use.value, gradients.found.get(index), gain)


def _gain(use: Use, weights: tuple[str, ...], params: Tensors) -> float | None:
    plain = use.function == "linear" or use.function in ("conv1d", "conv2d", "conv3d")
    if len(weights) != 1 or not plain or not use.direct:
        return None
    weight = params[weights[0]].detach()
    fan_in = weight.numel() / weight.shape[0]
    return float((fan_in * weight.double().square().mean()).sqrt())


def _activation(describe: Describe, tensor: Tensor, use: Use) -> Activation:
    values = describe(tensor)
    dim = 1 if use.function.startswith(_CHANNELS_FIRST) and tensor.dim() > 1 else tensor.dim() - 1
    units = tensor.shape[dim] if tensor.dim() else 1
    dead = 0.0
    if units and values.count and values.zero >= 1 / units:  # fewer zeros than one unit has entries
        alive = tensor.ne(0).movedim(dim, 0).reshape(units, -1).any(1)
        dead = 1 - int(alive.sum()) / units
    beyond = _BEYOND.get(use.activation or "")
    flat = None if beyond is None or not values.count else int(beyond(tensor).sum()) / values.count
    return Activation(values, units, dead, flat)
