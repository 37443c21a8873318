"""The answers for a case at two precisions, and whether a result that differs from them is rounding."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from dataclasses import dataclass
from typing import Any

import torch

from .._graph import coarsest_in
from .._rounding import is_rounding
from ._contender import Contender
from ._timing import Entry
from ._truth import Truth
from ._workload import Case

FEW = 8  # samples that are computed in float64 too
_FLIPS = 8  # others may flip elsewhere than the definition, and several at once


@dataclass(frozen=True)
class Answers:
    """What results of a case are compared with.

    Attributes:
        truth: for the whole batch.
        few: the first samples in float64.
        of_few: the answers for these.
        coarse: the first samples in float32, where the case is in float64 already.
        u: the coarsest unit roundoff in that, or in the case.
        u64: the same in `few`.
        case: what is measured.
    """

    truth: Truth
    few: Case
    of_few: Truth
    coarse: Case | None
    u: float
    u64: float
    case: Case

    @classmethod
    def of(cls, case: Case, *, gram: bool) -> Answers:
        """Compute them.

        Raises:
            ValueError: gradients that are not finite, or a layer that computes at one precision only.
        """
        exact = case.cast(torch.float64)
        truth = Truth.of(exact, gram=gram)
        if not bool(truth.norms.isfinite().all()):
            raise ValueError("there are gradients that are not finite")
        few = dataclasses.replace(exact.first(FEW), max_norm=truth.max_norm)
        coarse = few.cast(torch.float32) if case.dtype == torch.float64 else None
        u, u64 = _roundoff(coarse or case.first(FEW)), _roundoff(few)
        if u64 >= u:
            raise ValueError("part of the model computes at one precision, whatever that of its parameters")
        return cls(truth, few, Truth.of(few, gram=gram), coarse, u, u64, case)

    def compared(self, contender: Contender, quantity: str, result: Any, device: torch.device) -> dict[str, Any]:
        """Errors and verdict of a result.

        Raises:
            Failed: the contender raised at another precision.
        """
        error = low = self.truth.error(quantity, result)
        error64 = self.of_few.error(quantity, _again(contender, quantity, self.few, device))
        if self.coarse is not None:
            low = self.of_few.error(quantity, _again(contender, quantity, self.coarse, device))
        vanishes = is_rounding(low=low, high=error64, scale_low=1.0, scale_high=1.0, u_low=self.u, u_high=self.u64)
        fits = error <= math.sqrt(self.u)
        if not fits and quantity == "materialise":  # one sample may be off, which others hide in sums
            fits = error <= min(_FLIPS * self.of_definition, self.u**0.25)
        verdict = "rounding" if vanishes and fits else "wrong"
        return {"error": error, "error64": error64, "verdict": verdict}

    @functools.cached_property
    def of_definition(self) -> float:
        """How far rows by definition are off at the case's own precision: a ReLU whose input rounds across 0 flips."""
        return self.truth.error_of(self.case)


def _roundoff(case: Case) -> float:
    """The coarsest in the graph of the loss: a layer may compute at another precision than its parameters."""
    return coarsest_in(case.mean_loss(), case.model.params)


def _again(contender: Contender, quantity: str, case: Case, device: torch.device) -> Any:
    return Entry.of(functools.partial(contender.make, case, quantity)).timed(time.perf_counter, device)[0]
