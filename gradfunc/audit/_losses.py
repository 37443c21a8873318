"""The losses of a problem as functions of its parameters and of the tensors that carry samples."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .._errors import message
from .._problem import Problem
from .._tree import Tensors
from .._weights import Weighted
from ._case import run


@dataclass(frozen=True, eq=False)
class Losses:
    """What `gf.per_sample_grads` takes, made of a model, a criterion and a batch."""

    problem: Problem

    @functools.cached_property
    def coupled_by(self) -> str | None:
        """Why a sample has no loss of its own, None if it has."""
        if layers := self.problem.model.batch_stat_layers():
            return f"layer {layers[0]} normalises by the statistics of the batch"
        return None

    @functools.cached_property
    def tensors(self) -> list[Tensor]:
        """The tensors of the batch that carry samples, with these in dimension 0."""
        found: list[Tensor] = []

        def note(tensor: Tensor, dim: int) -> Tensor:
            found.append(tensor.detach().movedim(dim, 0))
            return tensor

        self.problem.rearranged(note)
        return found

    def one(self, params: Tensors, *sample: Tensor) -> Weighted:
        """The loss of one sample: the problem on a batch of one."""
        if self.coupled_by is not None:
            expected = "samples that have a loss of their own"
            raise ValueError(message("loss of one sample", got=self.coupled_by, expected=expected))
        return _summed(self.single(*sample), params, single=True)

    def rows(self, params: Tensors, *tensors: Tensor) -> Weighted:
        """The losses of the batch, natively."""
        out = _summed(self._with(tensors, lambda tensor, dim: tensor.movedim(0, dim)), params, single=False)
        if out.numerator.dim() == 0:
            got = "one scalar for the whole batch"
            raise ValueError(message("criterion", got=got, expected="one loss a sample"))
        return out

    def single(self, *sample: Tensor) -> Problem:
        """The problem on a batch of one."""
        return self._with(sample, lambda tensor, dim: tensor.unsqueeze(dim))

    def _with(self, tensors: tuple[Tensor, ...], place: Callable[[Tensor, int], Tensor]) -> Problem:
        left = iter(tensors)
        return self.problem.rearranged(lambda _, dim: place(next(left), dim))


def _summed(problem: Problem, params: Tensors, *, single: bool) -> Weighted:
    """Numerators and weights: elements summed within a sample; the scalar of a whole criterion for what it is."""
    forward = run(problem, {name: params[name] for name in problem.model.params})
    if forward.scalar is not None:
        return Weighted(forward.scalar, torch.ones_like(forward.scalar, dtype=torch.float64))
    assert forward.elements is not None
    numerator = forward.elements.flatten(1).sum(1) if forward.elements.dim() > 1 else forward.elements
    weight = forward.weights if forward.weights is not None else torch.ones_like(numerator, dtype=torch.float64)
    return Weighted(numerator[0], weight[0]) if single else Weighted(numerator, weight)
