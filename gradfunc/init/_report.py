"""What an initialisation did to each parameter."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .._report import Report, Table, jsonable, number


@dataclass(frozen=True)
class InitRow:
    """One parameter.

    Attributes:
        name: of the parameter.
        shape: its own.
        rule: the pattern that matched, None if none did.
        scheme: what that gave, as it was made.
        aimed: the standard deviation that it aims at; None where it states none.
        measured: that of the entries, about their own mean; None of a parameter without any.
    """

    name: str
    shape: tuple[int, ...]
    rule: str | None
    scheme: str | None
    aimed: float | None
    measured: float | None


@dataclass(frozen=True)
class InitReport(Report):
    """What `gf.init.initialize_with_report` did, a row a parameter.

    Attributes:
        seed: the one given.
        rows: in the order of the parameters.
    """

    seed: int
    rows: tuple[InitRow, ...]

    @property
    def ok(self) -> bool:
        """Whether every parameter was initialised."""
        return not self.unmatched

    @property
    def unmatched(self) -> tuple[str, ...]:
        """Names of the parameters that no rule matched: they keep their value."""
        return tuple(row.name for row in self.rows if row.rule is None)

    def parts(self) -> Sequence[Table | str]:
        """The table and the verdict."""
        rows = [
            [
                row.name,
                "x".join(map(str, row.shape)) or "()",
                "-" if row.rule is None else row.rule,
                "kept its value" if row.scheme is None else row.scheme,
                number(row.aimed),
                number(row.measured),
            ]
            for row in self.rows
        ]
        head = ["parameter", "shape", "rule", "scheme", "aimed std", "measured std"]
        table = Table(f"Initialisation with seed {self.seed}", head, rows)
        if self.ok:
            return [table, f"All {len(self.rows)} parameters were initialised."]
        return [table, f"{len(self.unmatched)} of {len(self.rows)} keep their value: {', '.join(self.unmatched)}."]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the fields, `unmatched` and `ok`."""
        result: dict[str, Any] = jsonable(
            {**dataclasses.asdict(self), "unmatched": list(self.unmatched), "ok": self.ok}
        )
        return result
