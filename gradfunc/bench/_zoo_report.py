"""What `gf.bench.zoo` reports: a model a row, a contender a column; exact, wrong or refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._report import Report, Table, jsonable, number

_WORST_FIRST = ("wrong", "failed", "refused", "cannot tell", "exact")


@dataclass(frozen=True)
class ZooRow:
    """One contender, computing one quantity of one model.

    Attributes:
        model: its name.
        contender: its name.
        quantity: what it computed.
        verdict: "exact" (up to rounding in float64), "wrong", "failed" ("refused" for a peer) where it raised, or
            "cannot tell" where there is nothing to compare with.
        error: against one backward pass a sample, on the scale of the quantity.
        failure: what was raised, or why it cannot be told.
        peer: whether the contender is somebody else's.
    """

    model: str
    contender: str
    quantity: str
    verdict: str
    error: float | None = None
    failure: str | None = None
    peer: bool = False


@dataclass(frozen=True)
class ZooReport(Report):
    """Which contenders are right on which models.

    Attributes:
        rows: every model, contender and quantity.
        models: `{name: hazard}`.
        contenders: `{name: (versions, settings)}`, in the order of the columns.
        documented: `{(model, contender): what the contender documents as unsupported}`.
        environment: where it ran.
        notes: peers that are not installed, and warnings that were raised.
    """

    rows: tuple[ZooRow, ...]
    models: dict[str, str]
    contenders: dict[str, tuple[str, str]]
    documented: dict[tuple[str, str], tuple[str, ...]]
    environment: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every contender that is no peer was exact on every model, as far as can be told."""
        return not any(row.verdict in ("wrong", "failed") and not row.peer for row in self.rows)

    def cell(self, model: str, contender: str) -> ZooRow:
        """The worst of a contender's quantities on a model.

        Raises:
            KeyError: no such model or contender.
        """
        rows = [row for row in self.rows if (row.model, row.contender) == (model, contender)]
        if not rows:
            raise KeyError(f"no cell {(model, contender)}; columns: {[*self.contenders]}; rows: {[*self.models]}")
        return min(rows, key=lambda row: (_WORST_FIRST.index(row.verdict), -(row.error or 0)))

    def totals(self, contender: str) -> dict[str, int]:
        """`{verdict: number of models}`."""
        verdicts = [self.cell(model, contender).verdict for model in self.models]
        return {verdict: verdicts.count(verdict) for verdict in reversed(_WORST_FIRST) if verdict in verdicts}

    def parts(self) -> Sequence[Table | str]:
        """Tables in reading order."""
        marks = {text: str(i + 1) for i, text in enumerate(dict.fromkeys(self._limits()))}
        rows = [
            [model, hazard, *[self._cell(model, name, marks) for name in self.contenders]]
            for model, hazard in self.models.items()
        ]
        totals = [" ".join(f"{count} {verdict}" for verdict, count in self.totals(name).items()) for name in self.contenders]
        heads = ["model", "hazard", *[name.replace("-", "- ") for name in self.contenders]]
        title = f"Per-sample gradients of {len(self.models)} models, against one backward pass a sample, in float64"
        table = Table(title, heads, [*rows, ["all", "", *totals]], _LEGEND)
        return [table, *peers_table(self.contenders), where_in_words(self.environment) + ".", *self._findings(marks)]

    def _cell(self, model: str, contender: str, marks: Mapping[str, str]) -> str:
        row = self.cell(model, contender)
        beside = [marks[text] for text in self._said(model, contender)]
        error = f" {number(row.error)}" if row.verdict == "wrong" else ""
        return row.verdict + error + (f" [{','.join(beside)}]" if beside else "")

    def _said(self, model: str, contender: str) -> list[str]:
        return [f"{contender}: {text}" for text in self.documented.get((model, contender), ())]

    def _limits(self) -> list[str]:
        return [text for model in self.models for name in self.contenders for text in self._said(model, name)]

    def _findings(self, marks: Mapping[str, str]) -> list[str]:
        raised: dict[tuple[str, str, str], list[str]] = {}
        for row in self.rows:
            if row.failure is not None:
                models = raised.setdefault((row.contender, row.verdict, row.failure), [])
                models += [row.model] if row.model not in models else []
        lines = [f"{name} {verdict} {', '.join(of)}: {text}" for (name, verdict, text), of in raised.items()]
        documented = [f"[{mark}] {text}" for text, mark in marks.items()]
        blocks = ["\n".join(["Documented as unsupported:", *documented])] if documented else []
        blocks += ["\n".join(lines)] if lines else []
        return [*blocks, "\n".join(f"Note: {text}" for text in self.notes)] if self.notes else blocks

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: every row, totals, versions and settings."""
        limits = [
            {"model": model, "contender": name, "says": list(texts)} for (model, name), texts in self.documented.items()
        ]
        out: dict[str, Any] = jsonable(
            {
                "environment": self.environment,
                "models": self.models,
                "contenders": peers_to_dict(self.contenders),
                "totals": {name: self.totals(name) for name in self.contenders},
                "rows": [dataclasses.asdict(row) for row in self.rows],
                "documented": limits,
                "notes": self.notes,
                "ok": self.ok,
            }
        )
        return out


_LEGEND = (
    "exact: every quantity that the contender offers, up to rounding in float64. wrong: the largest error, on the scale "
    "of its quantity. refused: it raised. [n]: documented as unsupported, see below."
)


def peers_table(peers: Mapping[str, tuple[str, str]]) -> list[Table]:
    """Versions and settings; nothing for no peers."""
    rows = [[name, versions, settings] for name, (versions, settings) in peers.items()]
    return [Table("Versions and settings", ["contender", "made of", "used as"], rows)] if rows else []


def peers_to_dict(peers: Mapping[str, tuple[str, str]]) -> dict[str, dict[str, str]]:
    """The same, JSON-ready."""
    return {name: {"versions": versions, "settings": settings} for name, (versions, settings) in peers.items()}


def where_in_words(environment: Mapping[str, Any]) -> str:
    """torch, the device, threads and load."""
    place = environment["cpu"] if environment["device"] == "cpu" else environment["device"]
    load = "" if environment.get("load") is None else f", load {environment['load']} at the start"
    return f"torch {environment['torch']} on {place}, threads: {environment['threads']}{load}"
