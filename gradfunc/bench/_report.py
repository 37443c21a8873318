"""What `gf.bench.run` reports: one row a workload, contender and quantity."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .._report import Report, Table, jsonable, number
from ._zoo_report import ZooReport, peers_table, peers_to_dict, where_in_words


def quartiles(values: Sequence[float]) -> tuple[float, float, float] | None:
    """First quartile, median and third quartile, by linear interpolation; None for no values."""
    if len(values) < 2:
        return (values[0],) * 3 if values else None
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


@dataclass(frozen=True)
class BenchRow:
    """One contender, computing one quantity of one workload.

    Attributes:
        workload: its name.
        contender: its name.
        quantity: what it computed.
        verdict: "rounding" (right, up to that), "wrong", "failed" ("refused" for a peer), "cannot tell" (the notes
            say why), or "" for a base line.
        error: of the result, against `vmap(grad)` in float64, on the scale of the quantity.
        error64: the same in float64, of the first samples of the batch.
        first: seconds of the first call, with whatever is done once.
        times: seconds of each round.
        ratios: each of these over the plain backward pass of the same round.
        peak: bytes, at most, above those before the call; None where it was not measured.
        failure: what was raised.
        peer: whether the contender is somebody else's.
    """

    workload: str
    contender: str
    quantity: str
    verdict: str = ""
    error: float | None = None
    error64: float | None = None
    first: float | None = None
    times: tuple[float, ...] = ()
    ratios: tuple[float, ...] = ()
    peak: int | None = None
    failure: str | None = None
    peer: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The fields, and quartiles of times and ratios."""
        out = dataclasses.asdict(self)
        return {**out, "time_quartiles": quartiles(self.times), "ratio_quartiles": quartiles(self.ratios)}


@dataclass(frozen=True)
class BenchReport(Report):
    """What contenders cost, and whether they were right.

    Attributes:
        rows: in the order in which they were asked for, the plain backward pass first.
        workloads: `{name: sizes in words}`.
        rounds: timed calls of each.
        warmups: calls before these.
        environment: where it ran.
        notes: why results could not be compared, warnings that were raised, and peers that are not installed.
        peers: `{name: (versions, settings)}` of the peers among the contenders.
        exactness: the same contenders in float64, where that was asked for too.
    """

    rows: tuple[BenchRow, ...]
    workloads: dict[str, str]
    rounds: int
    warmups: int
    environment: dict[str, Any]
    notes: tuple[str, ...] = ()
    peers: dict[str, tuple[str, str]] = field(default_factory=dict)
    exactness: ZooReport | None = None

    @property
    def ok(self) -> bool:
        """Whether every contender that is no peer ran and was right, as far as can be told."""
        fine = not any(row.verdict in ("wrong", "failed") and not row.peer for row in self.rows)
        return fine and (self.exactness is None or self.exactness.ok)

    def row(self, workload: str, contender: str, quantity: str | None = None) -> BenchRow:
        """The first row of a workload, contender and, if given, quantity.

        Raises:
            KeyError: no such row.
        """
        for row in self.rows:
            if (row.workload, row.contender) == (workload, contender) and quantity in (None, row.quantity):
                return row
        asked = (workload, contender, quantity)
        raise KeyError(f"no row {asked}; rows: {[(row.workload, row.contender, row.quantity) for row in self.rows]}")

    def parts(self) -> Sequence[Table | str]:
        """Tables in reading order."""
        tables: list[Table | str] = []
        for name, about in self.workloads.items():
            rows = [row for row in self.rows if row.workload == name]
            tables.append(Table(f"{name}: {about}", _COLUMNS, [_cells(row) for row in rows]))
        used = peers_table(self.peers)
        beside = [] if self.exactness is None else [*self.exactness.parts()]
        return [*tables, _LEGEND, self._where(), *used, *self._findings(), *beside]

    def _where(self) -> str:
        return f"{where_in_words(self.environment)}; {self.rounds} rounds, {self.environment['date']}."

    def _findings(self) -> list[str]:
        failed = [
            f"{row.verdict.capitalize()}: {row.workload}, {row.contender}, {row.quantity}: {row.failure}"
            for row in self.rows
            if row.failure
        ]
        lines = [*failed, *[f"Note: {text}" for text in self.notes]]
        return ["\n".join(lines)] if lines else []

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: seconds, bytes and ratios of every round."""
        out: dict[str, Any] = jsonable(
            {
                "environment": self.environment,
                "workloads": self.workloads,
                "rounds": self.rounds,
                "warmups": self.warmups,
                "rows": [row.to_dict() for row in self.rows],
                "notes": self.notes,
                "peers": peers_to_dict(self.peers),
                "exactness": None if self.exactness is None else self.exactness.to_dict(),
                "ok": self.ok,
            }
        )
        return out


_COLUMNS = ("contender", "computes", "x plain", "quartiles", "ms", "first ms", "peak MiB", "error", "verdict")
_LEGEND = (
    "x plain: median over the rounds of its time over that of one plain backward pass of the mean loss in the same "
    "round. peak: extra memory during one call. error: of the result against vmap(grad) in float64. rounding: it "
    "vanishes in float64."
)


def _short(value: float | None) -> str:
    """Three digits or all before the point: `1.08`, `18.7`, `23,770`; a dash for none."""
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"


def _cells(row: BenchRow) -> list[str]:
    ratios, times = quartiles(row.ratios), quartiles(row.times)
    return [
        row.contender,
        row.quantity,
        _short(ratios and ratios[1]),
        f"{_short(ratios and ratios[0])} .. {_short(ratios and ratios[2])}",
        _short(times and times[1] * 1e3),
        _short(None if row.first is None else row.first * 1e3),
        _short(None if row.peak is None else row.peak / 2**20),
        number(row.error),
        row.verdict or "-",
    ]
