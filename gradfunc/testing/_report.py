"""What `certify` and `check_gradients` report: one row a check."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .._report import Report, Table, jsonable, number


@dataclass(frozen=True)
class CheckRow:
    """One check.

    Attributes:
        check: its name.
        compares: the two routes that were compared, or what was looked at.
        measured: the largest difference, where the check has a number.
        scale: the error scale on which it is judged.
        other: the same difference at the other precision, relative to its scale there.
        verdict: "exact", "rounding", "holds", "wrong", "cannot tell" or "not run".
        parameter: the parameter, layer or criterion at fault.
        sample: the sample at fault.
        cause: what is known of the cause, what to do, or why the check did not run.
    """

    check: str
    compares: str
    measured: float | None = None
    scale: float | None = None
    other: float | None = None
    verdict: str = "holds"
    parameter: str | None = None
    sample: int | None = None
    cause: str = ""


@dataclass(frozen=True)
class CheckReport(Report):
    """What `gf.testing.certify` or `gf.testing.check_gradients` found.

    Attributes:
        title: what was checked.
        batch_size: B.
        dtype: the precision asked for.
        other_dtype: the one it was repeated in; None where that was not possible.
        rows: every check, also those that did not run.
        notes: what to know besides.
    """

    title: str
    batch_size: int
    dtype: str
    other_dtype: str | None
    rows: tuple[CheckRow, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no check is wrong. What cannot be told, or did not run, is no fault and no pass: it is counted."""
        return not self.faults

    @property
    def faults(self) -> tuple[CheckRow, ...]:
        """The checks that are wrong."""
        return tuple(row for row in self.rows if row.verdict == "wrong")

    def row(self, check: str) -> CheckRow:
        """The first row of a check, the worst if one is wrong.

        Raises:
            KeyError: no such check.
        """
        rows = [row for row in self.rows if row.check == check]
        if not rows:
            raise KeyError(f"no check {check!r}; checks: {list(dict.fromkeys(row.check for row in self.rows))}")
        return next((row for row in rows if row.verdict == "wrong"), rows[0])

    def parts(self) -> Sequence[Table | str]:
        """Tables in reading order."""
        other = f"in {self.other_dtype}" if self.other_dtype else "elsewhere"
        table = Table(
            f"{self.title} ({self.batch_size} samples, {self.dtype})",
            ["check", "what is compared", "difference", "scale", other, "verdict"],
            [
                [row.check, row.compares, number(row.measured), number(row.scale), number(row.other), row.verdict]
                for row in self.rows
            ],
            "difference: the largest one, on the error scale beside it; the next column is their ratio at the other "
            "precision. exact: equal to the last bit. rounding: it shrinks with the unit roundoff. wrong: it stays.",
        )
        return [table, *self._findings(), self._verdict()]

    def _findings(self) -> list[Table]:
        tables = []
        if self.faults:
            rows = [[row.check, _place(row), f"{row.compares}. {row.cause}".strip()] for row in self.faults]
            tables.append(Table("Faults", ["check", "where", "what"], rows))
        told = [row for row in self.rows if row.verdict in ("not run", "cannot tell")]
        if told:
            rows = [[row.check, row.verdict, f"{row.compares}: {row.cause}"] for row in told]
            tables.append(Table("Checks that say nothing", ["check", "verdict", "why"], rows))
        return tables

    def _verdict(self) -> str:
        lines = [f"Note: {note}" for note in self.notes]
        counts = [
            f"{sum(row.verdict == verdict for row in self.rows)} {words}"
            for verdict, words in (("cannot tell", "could not be told"), ("not run", "did not run"))
            if any(row.verdict == verdict for row in self.rows)
        ]
        besides = f" ({', '.join(counts)})" if counts else ""
        ran = sum(row.verdict not in ("cannot tell", "not run") for row in self.rows)
        if self.faults:
            where = dict.fromkeys(_place(row) or row.check for row in self.faults)
            told = f"{len(self.faults)} of {len(self.rows)} checks found a fault: {', '.join(where)}"
        else:
            told = f"{ran} of {len(self.rows)} checks hold" + besides
        return "\n".join([*lines, f"Verdict: {told}."])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the fields, and `ok`."""
        out: dict[str, Any] = jsonable({**dataclasses.asdict(self), "ok": self.ok})
        return out


def _place(row: CheckRow) -> str:
    return ", ".join(
        [*([row.parameter] if row.parameter else []), *([] if row.sample is None else [f"sample {row.sample}"])]
    )
