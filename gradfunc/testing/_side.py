"""A problem at one precision as the checks see it: its losses as functions, and its rows by every engine."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._errors import message
from .._per_sample import per_sample_grads
from .._per_sample._function import PerSampleGradsFunction
from .._problem import Problem
from .._tree import Tensors
from .._weights import Weighted
from ..audit._case import Case, run
from ..audit._graph import coarsest_roundoff

# name -> (natively batched, engine)
ENGINES = {
    "loop": (False, "loop"),
    "factored": (False, "factored"),
    "vmap": (False, "vmap"),
    "batched, rows looped": (True, "loop"),
    "batched, factored": (True, "factored"),
    "batched, rows vmapped": (True, "vmap"),
}


@dataclass(frozen=True, eq=False)
class Side:
    """One precision.

    Attributes:
        case: the problem with its forward pass.
        u: the coarsest unit roundoff in it.
    """

    case: Case
    u: float

    @classmethod
    def of(cls, problem: Problem, seed: int) -> Side:
        """Run the forward pass."""
        case = Case.of(problem, seed)
        return cls(case, coarsest_roundoff(case))

    @property
    def problem(self) -> Problem:
        """Model, criterion and batch."""
        return self.case.problem

    @property
    def draws(self) -> bool:
        """Whether the forward pass draws random numbers."""
        return self.case.draws is None or bool(self.case.draws.draws)

    @functools.cached_property
    def coupled_by(self) -> str | None:
        """Why a sample has no loss of its own, None if it has."""
        if layers := self.problem.model.batch_stat_layers():
            return f"layer {layers[0]} normalises by the statistics of the batch"
        return None

    def function(self, engine: str) -> PerSampleGradsFunction:
        """Per-sample gradients by one engine, every sample under the same draws, so that any two can be compared."""
        return self._functions[engine]

    @functools.cached_property
    def _functions(self) -> dict[str, PerSampleGradsFunction]:
        """One of each, so that what an engine learns of a graph is learnt once."""
        made = {}
        for engine, (batched, name) in ENGINES.items():
            options: dict[str, Any] = {"engine": name, "batched": batched, "randomness": "same", "seed": self.case.seed}
            loss = self._losses if batched else self._loss
            made[engine] = per_sample_grads(loss, chunk_size=None, verify=False, **options)
        return made

    def rows(self, engine: str, order: Tensor | None = None) -> Tensors:
        """Every row, by one engine; with `order`, of the batch in that order.

        Raises:
            ValueError: a sample has no loss of its own.
        """
        tensors = self.tensors if order is None else [tensor[order.to(tensor.device)] for tensor in self.tensors]
        return self.function(engine)(self.problem.model.params, *tensors).materialize()

    @functools.cached_property
    def tensors(self) -> list[Tensor]:
        """The tensors of the batch that carry samples, with these in dimension 0."""
        found: list[Tensor] = []

        def note(tensor: Tensor, dim: int) -> Tensor:
            found.append(tensor.detach().movedim(dim, 0))
            return tensor

        self.problem.rearranged(note)
        return found

    def _loss(self, params: Tensors, *sample: Tensor) -> Weighted:
        """The loss of one sample: the problem on a batch of one."""
        if self.coupled_by is not None:
            expected = "samples that have a loss of their own"
            raise ValueError(message("check", got=self.coupled_by, expected=expected))
        return _summed(self._with(sample, lambda tensor, dim: tensor.unsqueeze(dim)), params, single=True)

    def _losses(self, params: Tensors, *tensors: Tensor) -> Weighted:
        """The losses of the batch, natively."""
        out = _summed(self._with(tensors, lambda tensor, dim: tensor.movedim(0, dim)), params, single=False)
        if out.numerator.dim() == 0:
            got = "one scalar for the whole batch"
            raise ValueError(message("criterion", got=got, expected="one loss a sample"))
        return out

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


@dataclass(frozen=True, eq=False)
class Sides:
    """The precision asked for, and another one, or why there is none."""

    asked: Side
    other: Side | None
    why_not: str

    @property
    def finest(self) -> Side:
        """The side with the smaller unit roundoff."""
        return self.asked if self.other is None or self.asked.u <= self.other.u else self.other
