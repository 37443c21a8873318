"""What `gf.bench.zoo` reports: a model a row, a contender a column; exact, wrong or refused."""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._report import Report, Table, jsonable

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
        dtype: "float64", or the model's own for a peer that refused float64.

    Example:
        >>> import gradfunc as gf
        >>> gf.bench.zoo(["gradfunc"], ["einsum"]).rows[0].verdict
        'exact'
    """

    model: str
    contender: str
    quantity: str
    verdict: str
    error: float | None = None
    failure: str | None = None
    peer: bool = False
    dtype: str = "float64"


@dataclass(frozen=True)
class ZooReport(Report):
    """Which contenders are right on which models.

    Attributes:
        rows: every model, contender and quantity.
        models: `{name: hazard}`.
        contenders: `{name: (versions, settings)}`, in the order of the columns.
        documented: `{(model, contender): what the contender's library documents as unsupported}`.
        environment: where it ran.
        notes: peers that are not in the table.
        warnings: those that were raised.
    """

    rows: tuple[ZooRow, ...]
    models: dict[str, str]
    contenders: dict[str, tuple[str, str]]
    documented: dict[tuple[str, str], tuple[str, ...]]
    environment: dict[str, Any]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every contender that is no peer was exact on every model, as far as can be told."""
        return not any(row.verdict in ("wrong", "failed") and not row.peer for row in self.rows)

    def cell(self, model: str, contender: str) -> ZooRow:
        """The worst of a contender's quantities on a model.

        Raises:
            KeyError: no such model or contender.

        Example:
            >>> import gradfunc as gf
            >>> report = gf.bench.zoo(["vmap(grad)", "expanded-weights"], ["embedding, padding_idx"])
            >>> report.cell("embedding, padding_idx", "expanded-weights").verdict
            'wrong'
            >>> report.totals("vmap(grad)"), report.ok
            ({'exact': 1}, True)
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
        limits = dict.fromkeys(text for texts in self.documented.values() for text in texts)
        marks = dict(zip(limits, _letters(), strict=False))
        rows = [
            [str(i + 1), f"{model}\n{hazard}", *[self._cell(model, name, marks) for name in self.contenders]]
            for i, (model, hazard) in enumerate(self.models.items())
        ]
        counts = [self.totals(name) for name in self.contenders]
        totals = [
            ["", f"models: {verdict}", *[str(count.get(verdict, 0)) for count in counts]]
            for verdict in reversed(_WORST_FIRST)
            if any(verdict in count for count in counts)
        ]
        heads = ["", "model, and what goes wrong with it", *[_broken(name) for name in self.contenders]]
        title = f"Per-sample gradients of {len(rows)} model{'s' * (len(rows) != 1)} in float64"
        table = Table(title, heads, [*rows, *totals], _LEGEND)
        documented = [f"({mark}) {text}." for text, mark in marks.items()]
        texts = ["\n".join(["Documented as unsupported:", *documented])] if documented else []
        notes = ["\n".join(f"Note: {text}" for text in self.notes)] if self.notes else []
        where = where_in_words(self.environment) + "."
        return [table, *texts, *self._raised(), *peers_table(self.contenders), where, *notes]

    def _cell(self, model: str, contender: str, marks: Mapping[str, str]) -> str:
        row = self.cell(model, contender)
        lines = [{"refused": "-", "cannot tell": "?"}.get(row.verdict, row.verdict)]
        lines = [*lines, f"{row.error:.0e}"] if row.verdict == "wrong" else lines
        lines = lines if row.dtype == "float64" else [*lines, row.dtype.replace("float", "f")]
        said = "".join(marks[text] for text in self.documented.get((model, contender), ()))
        return "\n".join([*lines, f"({said})"] if said else lines)

    def _raised(self) -> list[Table]:
        """What was raised most often, by contender."""
        found: dict[str, dict[str, list[str]]] = {}
        for row in self.rows:
            if row.failure is not None:
                models = found.setdefault(row.contender, {}).setdefault(row.failure, [])
                models += [row.model] if row.model not in models else []
        rows = []
        for name, texts in found.items():
            often = sorted(texts.items(), key=lambda item: -len(item[1]))
            rows += [[name, str(len(models)), text] for text, models in often[:_MOST]]
            if len(often) > _MOST:
                rows.append([name, "", f"and {len(often) - _MOST} other messages (to_dict() has them all)"])
        return [Table("What was raised, most often first", ["contender", "models", "message"], rows)] if rows else []

    def _to_dict(self, model: str, contender: str) -> dict[str, Any]:
        worst = self.cell(model, contender)
        rows = [row for row in self.rows if (row.model, row.contender) == (model, contender)]
        verdicts = {row.quantity: row.verdict for row in rows}
        found = {
            "verdict": worst.verdict,
            "error": worst.error,
            "failure": worst.failure,
            "dtype": None if worst.dtype == "float64" else worst.dtype,
            "documented": self.documented.get((model, contender)),
            "quantities": verdicts if len(set(verdicts.values())) > 1 else None,
        }
        return {key: value for key, value in found.items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: a cell a model and contender, totals, versions and settings.

        A cell has the worst verdict of the contender's quantities and what belongs to it: the error or what was raised,
        the precision where it is not float64, what is documented, and every quantity's verdict where they differ.
        """
        out: dict[str, Any] = jsonable(
            {
                "environment": self.environment,
                "models": self.models,
                "contenders": peers_to_dict(self.contenders),
                "totals": {name: self.totals(name) for name in self.contenders},
                "cells": {
                    model: {name: self._to_dict(model, name) for name in self.contenders} for model in self.models
                },
                "notes": self.notes,
                "warnings": self.warnings,
                "ok": self.ok,
            }
        )
        return out


_MOST = 5  # messages shown a contender
_LEGEND = (
    "exact: all that the contender computes, up to rounding, against one backward pass a sample. wrong: its largest "
    "error, on the scale of the quantity. -: refused, it raised. ?: cannot tell. f32: it refused float64 and was asked "
    "in float32, where exact means half of the digits. (a): documented as unsupported, see below."
)


def _letters() -> Iterator[str]:
    """a to z, aa, ab, ..."""
    for length in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_lowercase, repeat=length))


def _broken(name: str) -> str:
    """A narrow head: parts of at most six letters, a line each."""
    parts = [part for word in name.split("-") for part in _halves(word)]
    return "\n".join(parts)


def _halves(word: str) -> list[str]:
    middle = (len(word) + 1) // 2
    return [word] if len(word) <= 6 else [f"{word[:middle]}-", word[middle:]]


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
