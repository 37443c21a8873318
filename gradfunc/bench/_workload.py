"""A workload: a model, a batch and its losses as a value. Made on a device, it is a case."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .._errors import message, one_of
from .._problem import Problem, read
from .._random import forked
from .._stateless import Stateless, stateless
from .._weights import Weighted
from ..audit._case import forward_of, mean_loss, value_of
from ..audit._losses import Losses


@dataclass(frozen=True)
class Workload:
    """What is computed, whoever computes it.

    Attributes:
        name: by which it is asked for.
        about: its sizes, in words.
        module: makes the model, a plain `nn.Module` or `gf.stateless` of one, with global draws; they are seeded
            around it.
        batch: makes `(*inputs, target)` (or a mapping with a "target"), likewise.
        criterion: as tools on a model take it, such as torch's own: `criterion(output, target, reduction="mean" |
            "none")`, with the samples in dimension 0 under "none".
        loss: gradfunc's, `loss(output, target, batched=) -> Weighted`, with the numerators of the criterion, where the
            batch is `(*inputs, target)` with samples in dimension 0; None for the losses of the criterion itself.
        seed: of the model and the batch.
        device: where it is made unless another one is asked for.

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
    module: Callable[[], nn.Module | Stateless]
    batch: Callable[[], Any]
    criterion: Any
    loss: Callable[..., Weighted] | None = None
    seed: int = 0
    device: torch.device | str = "cpu"

    def case(self, device: torch.device | str | None = None) -> Case:
        """The model and the batch on a device; the same for the same seed, whatever was drawn before."""
        place = self.device if device is None else device
        with forked(self.seed, 0, devices=()):
            made = stateless(self.module())
        with forked(self.seed, 1, devices=()):
            batch = self.batch()
        assert made.module is not None
        call = f"the workload {self.name!r}"
        problem = read(call, _of(made.module.to(place), made), self.criterion, batch).cast(None, place)
        if (coupled := Losses(problem).coupled_by) is not None:
            do = "Use .eval(), GroupNorm or LayerNorm."
            raise ValueError(message(call, got=coupled, expected="samples that have a gradient of their own", do=do))
        return Case(self, problem.uncopied())


def given(call: str, what: str, item: Any, named: Mapping[str, Any]) -> Any:
    """A workload as it is, or what is known by a name.

    Raises:
        TypeError: neither.
        ValueError: an unknown name.
    """
    if isinstance(item, Workload):
        return item
    if not isinstance(item, str):
        raise TypeError(message(call, got=f"{item!r} as {what}", expected="a name or a Workload"))
    one_of(call, what, item, named)
    return named[item]


@dataclass(frozen=True)
class Case:
    """A workload with its tensors. Made by `Workload.case`.

    Attributes:
        workload: what it was made from.
        problem: its model, criterion and batch.
        max_norm: the norm to which samples are clipped.
    """

    workload: Workload
    problem: Problem
    max_norm: float = math.inf

    @property
    def model(self) -> Stateless:
        """The model as a function of its parameters."""
        return self.problem.model

    @property
    def module(self) -> nn.Module:
        """The same as a module."""
        assert self.model.module is not None
        return self.model.module

    @property
    def batch(self) -> tuple[Tensor, ...]:
        """`(*inputs, target)`: the tensors that carry samples, with these in dimension 0."""
        return tuple(self._losses.tensors)

    @property
    def size(self) -> int:
        """Number of samples, B."""
        return self.problem.size

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(iter(self.model.params.values())).device

    @property
    def dtype(self) -> torch.dtype:
        """Of its parameters."""
        return next(iter(self.model.params.values())).dtype

    def loss(self, params: Any, *sample: Tensor) -> Weighted:
        """The loss of one sample."""
        if self.workload.loss is None:
            return self._losses.one(params, *sample)
        *inputs, target = sample
        return self.workload.loss(self.model.sample(params, *inputs), target)

    def losses(self, params: Any, *batch: Tensor) -> Weighted:
        """The losses of a batch that runs natively."""
        if self.workload.loss is None:
            return self._losses.rows(params, *batch)
        *inputs, target = batch
        return self.workload.loss(self.model(params, *inputs), target, batched=True)

    def mean_loss(self) -> Tensor:
        """The criterion's mean over the batch, on the module's own parameters: what a training loop computes."""
        return mean_loss(self.problem, self.module)

    def plain_loss(self, params: Any, *sample: Tensor) -> Tensor:
        """The loss of one sample by torch alone: the module on a batch of one."""

        def model(*args: Any, **kwargs: Any) -> Any:
            return functional_call(self.module, params, args, kwargs)

        return value_of(forward_of(self._losses.single(*sample), model)).sum()

    def first(self, size: int) -> Case:
        """The same with the first samples only."""
        return dataclasses.replace(self, problem=self.problem.rows(0, min(size, self.size)))

    def cast(self, dtype: torch.dtype) -> Case:
        """A copy with the same values in another floating type."""
        module = copy.deepcopy(self.module).to(dtype)
        problem = dataclasses.replace(self.problem.cast(dtype), model=_of(module, self.model))
        return dataclasses.replace(self, problem=problem)

    @functools.cached_property
    def _losses(self) -> Losses:
        return Losses(self.problem)


def _of(module: nn.Module, like: Stateless) -> Stateless:
    """The module with what was said of another one."""
    return stateless(module, in_dims=like.in_dims, out_dims=like.out_dims, batch_stats=like.batch_stats)
