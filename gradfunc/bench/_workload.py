"""A workload: a model, a batch and its losses as a value. Made on a device, it is a case."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._random import forked
from .._stateless import Stateless, stateless
from .._tree import cast
from .._weights import Weighted


@dataclass(frozen=True)
class Workload:
    """What is computed, whoever computes it.

    Attributes:
        name: by which it is asked for.
        about: its sizes, in words.
        module: makes the model, a plain `nn.Module`, with global draws; they are seeded around it.
        batch: makes `(*inputs, target)`, likewise; samples in dimension 0.
        criterion: torch's own, `criterion(output, target, reduction="mean" | "sum")`.
        loss: gradfunc's, `loss(output, target, batched=) -> Weighted`, with the numerators of the criterion's "sum".
        seed: of the model and the batch.

    Example:
        >>> import gradfunc as gf
        >>> workload = gf.bench.Workload(
        ...     "line", "a line, B=4", lambda: nn.Linear(3, 1), lambda: (torch.randn(4, 3), torch.randn(4, 1)),
        ...     nn.functional.mse_loss, gf.losses.mse)
        >>> workload.case().size
        4
    """

    name: str
    about: str
    module: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, ...]]
    criterion: Callable[..., Tensor]
    loss: Callable[..., Weighted]
    seed: int = 0

    def case(self, device: torch.device | str = "cpu") -> Case:
        """The model and the batch on a device; the same for the same seed, whatever was drawn before."""
        with forked(self.seed, 0, devices=()):
            module = self.module()
        with forked(self.seed, 1, devices=()):
            batch = self.batch()
        module = module.to(device)
        return Case(self, module, stateless(module), tuple(tensor.to(device) for tensor in batch))


@dataclass(frozen=True)
class Case:
    """A workload with its tensors. Made by `Workload.case`.

    Attributes:
        workload: what it was made from.
        module: the model.
        model: the same, stateless.
        batch: `(*inputs, target)`.
        max_norm: the norm to which samples are clipped.
    """

    workload: Workload
    module: nn.Module
    model: Stateless
    batch: tuple[Tensor, ...]
    max_norm: float = math.inf

    @property
    def size(self) -> int:
        """Number of samples, B."""
        return len(self.batch[0])

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.batch[0].device

    def loss(self, params: Any, *sample: Tensor) -> Weighted:
        """The loss of one sample."""
        *inputs, target = sample
        return self.workload.loss(self.model.sample(params, *inputs), target)

    def losses(self, params: Any, *batch: Tensor) -> Weighted:
        """The losses of a batch that runs natively."""
        *inputs, target = batch
        return self.workload.loss(self.model(params, *inputs), target, batched=True)

    def first(self, size: int) -> Case:
        """The same with the first samples only."""
        return dataclasses.replace(self, batch=tuple(tensor[:size] for tensor in self.batch))

    def in_float64(self) -> Case:
        """A copy with the same values in float64."""
        module = copy.deepcopy(self.module).double()
        return dataclasses.replace(self, module=module, model=stateless(module), batch=cast(self.batch, torch.float64))
