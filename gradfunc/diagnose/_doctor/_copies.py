"""Passes and steps as values, and copies of a model and its optimiser to run them on."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ..._tree import Tensors
from ...audit._case import attempt
from ._finding import NotRun


@dataclass
class Count:
    """Passes of the model so far."""

    forward: int = 0
    backward: int = 0


@dataclass(frozen=True)
class Pass:
    """One pass: the output with its graph, the loss, and gradients (None where none comes)."""

    output: Any
    loss: Tensor
    gradients: dict[str, Tensor | None]


@dataclass(frozen=True)
class Descent:
    """Some steps of the user's optimiser on copies, with the criterion's own gradient.

    Attributes:
        losses: before the first step, and after each.
        moved: what the first step added to each parameter.
        reached: names of the parameters whose gradient is not 0 after the first step.
    """

    losses: tuple[float, ...]
    moved: Tensors
    reached: tuple[str, ...]


def copies(module: nn.Module | None, optimizer: Optimizer | None) -> tuple[nn.Module, Optimizer]:
    """A module and the optimiser of its parameters, copied together.

    Raises:
        NotRun: one is missing, or they cannot be copied.
    """
    if module is None:
        raise NotRun("the model is no nn.Module")
    if optimizer is None:
        raise NotRun("no optimizer was given")
    found, failed = attempt(lambda: _copied(module, optimizer))
    if found is None:
        raise NotRun(f"model and optimizer cannot be copied: {failed}")
    return found  # type: ignore[no-any-return]


def _copied(module: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
    memo: dict[int, Any] = {}
    twin, other = copy.deepcopy(module, memo), copy.deepcopy(optimizer, memo)
    for name, value in vars(optimizer).items():  # what its pickling leaves out: LBFGS's list of parameters
        # and nothing else: the `step` that a scheduler puts there is bound to the user's own optimiser
        own = value is None or (isinstance(value, list) and all(isinstance(one, nn.Parameter) for one in value))
        if own and name not in vars(other):
            setattr(other, name, copy.deepcopy(value, memo))
    return twin, other
