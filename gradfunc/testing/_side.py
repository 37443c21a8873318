"""A problem at one precision as the checks see it: its losses as functions, and its rows by every engine."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .._per_sample import per_sample_grads
from .._per_sample._function import PerSampleGradsFunction
from .._problem import Problem
from .._tree import Tensors
from ..audit._case import Case
from ..audit._graph import coarsest_roundoff
from ..audit._losses import Losses

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
    def losses(self) -> Losses:
        """The problem's losses as functions."""
        return Losses(self.problem)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors of the batch that carry samples, with these in dimension 0."""
        return self.losses.tensors

    def function(self, engine: str) -> PerSampleGradsFunction:
        """Per-sample gradients by one engine, every sample under the same draws, so that any two can be compared."""
        return self._functions[engine]

    @functools.cached_property
    def _functions(self) -> dict[str, PerSampleGradsFunction]:
        """One of each, so that what an engine learns of a graph is learnt once."""
        made = {}
        for engine, (batched, name) in ENGINES.items():
            options: dict[str, Any] = {"engine": name, "batched": batched, "randomness": "same", "seed": self.case.seed}
            loss = self.losses.rows if batched else self.losses.one
            made[engine] = per_sample_grads(loss, chunk_size=None, verify=False, **options)
        return made

    def rows(self, engine: str, order: Tensor | None = None) -> Tensors:
        """Every row, by one engine; with `order`, of the batch in that order.

        Raises:
            ValueError: a sample has no loss of its own.
        """
        tensors = self.tensors if order is None else [tensor[order.to(tensor.device)] for tensor in self.tensors]
        return self.function(engine)(self.problem.model.params, *tensors).materialize()


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
