"""Verdicts: a difference measured at one precision or at two is rounding, wrong, or cannot be told."""

from __future__ import annotations

import math
from typing import NamedTuple

from .._certificate import Difference, verdict
from ._report import CheckRow

CANNOT_REPEAT = "it cannot be repeated at another precision, and at least half of the digits agree"


class Judge(NamedTuple):
    """What a difference is judged by: the coarsest unit roundoffs met at the two precisions.

    Attributes:
        u: at the precision asked for.
        u_other: at the other; None where the computation does not run there.
        why_not: why it does not.
    """

    u: float
    u_other: float | None
    why_not: str = ""

    def row(self, check: str, compares: str, asked: Difference, other: Difference | None, cause: str = "") -> CheckRow:
        """The row of one check; `cause` is what is said if it is wrong."""
        told = verdict(asked, self.u, other, self.u_other)
        finer = other if other is not None and self.u_other is not None and self.u_other < self.u else asked
        place = finer if told == "wrong" and finer.size else asked
        return CheckRow(
            check,
            compares,
            asked.size,
            asked.scale,
            None if other is None else other.relative,
            told,
            place.parameter if told == "wrong" else None,
            place.sample if told == "wrong" else None,
            cause if told == "wrong" else self._why(asked, other) if told == "cannot tell" else "",
        )

    def _why(self, asked: Difference, other: Difference | None) -> str:
        if not math.isfinite(asked.scale) or (other is not None and not math.isfinite(other.scale)):
            return "the gradient is not finite"
        if self.u_other == self.u:
            return f"part of the computation has one precision, whatever is asked for; {CANNOT_REPEAT}"
        return f"{CANNOT_REPEAT} ({self.why_not})" if self.why_not else CANNOT_REPEAT
