"""What is said of the remedies."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..._report import Report, Table, jsonable, number


@dataclass(frozen=True)
class Remedy:
    """One row.

    Attributes:
        name: the model.
        formula: of the closed form.
        closed: its value; None where there is none.
        measured: the same by autograd through T steps.
        bound: on `|measured - closed| / closed` by rounding; None where the form is no equality.
        whole: `|dh_T / dh_0|_2` of all that is there, direct path or not.
        capacity: memory capacity, of reservoirs.
    """

    name: str
    formula: str
    closed: float | None
    measured: float
    bound: float | None
    whole: float
    capacity: float | None = None

    @property
    def error(self) -> float | None:
        """`|measured - closed| / closed`."""
        return None if self.closed is None else abs(self.measured - self.closed) / self.closed


@dataclass(frozen=True)
class RemedyReport(Report):
    """What `gf.diagnose.remedies` measured.

    Attributes:
        eigenvalue: lambda, the largest of the recurrent weight.
        steps: T.
        hidden: n.
        rows: the remedies.
    """

    eigenvalue: float
    steps: int
    hidden: int
    rows: tuple[Remedy, ...]

    @property
    def ok(self) -> bool:
        """Whether every closed form that is an equality is met, to rounding."""
        return all(row.error is not None and row.error <= row.bound for row in self.rows if row.bound is not None)

    def row(self, name: str) -> Remedy:
        """By its name.

        Raises:
            KeyError: no such row.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no remedy {name!r}; there are {[row.name for row in self.rows]}")

    def parts(self) -> Sequence[Table | str]:
        """One table."""
        rows = [
            [r.name, r.formula, number(r.closed), number(r.measured), number(r.error) if r.bound is not None else "",
             number(r.whole), number(r.capacity)]
            for r in self.rows
        ]  # fmt: skip
        head = ["model", "closed form", "value", "measured", "off by", "|dh_T/dh_0|", "memory capacity"]
        title = f"Gradient through T = {self.steps} steps (largest eigenvalue {self.eigenvalue:g}, n = {self.hidden})"
        note = (
            "measured: what the closed form is of; for gated models the direct path, gates held as they are. "
            f"|dh_T/dh_0|: of everything. A reservoir's memory capacity is at most n = {self.hidden}."
        )
        return [Table(title, head, rows, note)]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the fields, errors, and `ok`."""
        out: dict[str, Any] = dataclasses.asdict(self)
        for row, given in zip(out["rows"], self.rows, strict=True):
            row["error"] = given.error
        result: dict[str, Any] = jsonable({**out, "ok": self.ok})
        return result
