"""The base of every report: `str()` is what a person reads, `to_dict()` what `--json` prints, `ok` the verdict."""

from __future__ import annotations

import io
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

WIDTH = 118
GAP = 3  # between columns
LEAST = 20  # of a column of names: other columns fold before it gets narrower


class Table(NamedTuple):
    """A titled table: column heads, rows of text, and a note below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


class Report(ABC):
    """A frozen value that prints as tables."""

    @property
    @abstractmethod
    def ok(self) -> bool:
        """Whether nothing was found wrong."""

    @abstractmethod
    def parts(self) -> Sequence[Table | str]:
        """The tables and paragraphs of the report, in reading order."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""

    def __str__(self) -> str:
        out = io.StringIO()
        # Inside of Jupyter rich would show the text and leave the file empty.
        console = Console(file=out, width=WIDTH, color_system=None, highlight=False, force_jupyter=False)
        console.print(self.__rich__())
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines())

    def __rich__(self) -> RenderableType:
        blocks: list[RenderableType] = []
        for part in self.parts():
            if blocks:
                blocks.append(Text(""))
            blocks.extend([Text(part)] if isinstance(part, str) else _rendered(part))
        return Group(*blocks)


def findings(report: Report) -> list[Table | str]:
    """The parts of a report inside of another one, whose verdict is not this one's."""
    return [part.replace("Verdict:", "Found:") if isinstance(part, str) else part for part in report.parts()]


def _rendered(table: Table) -> list[RenderableType]:
    out = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    room = _room(table)
    for i, column in enumerate(table.columns):
        width = room if i == 0 else None
        out.add_column(Text(column), overflow="fold", no_wrap=i == 0 and room is None, max_width=width)
    for row in table.rows:
        out.add_row(*[Text(cell) for cell in row])
    blocks: list[RenderableType] = [Text(table.title, style="bold"), out]
    return [*blocks, Text(table.note, style="dim")] if table.note else blocks


def _room(table: Table) -> int | None:
    """What is left for names too long to stand in one line beside the other columns; None where they need no fold.

    Prose gives way first: only a column's longest word counts against the names."""
    columns = zip(table.columns, *table.rows, strict=False)
    first, *others = [[line for cell in column for line in cell.split("\n")] for column in columns]
    words = [max(cell_len(word) for line in column for word in line.split(" ")) for column in others]
    room = WIDTH - sum(words) - GAP * len(words)
    return room if LEAST <= room < max(map(cell_len, first)) else None


def number(value: float | None) -> str:
    """A measured number in three significant digits: `0`, `3.16e-02`, `nan`, or a dash for none."""
    if value is None:
        return "-"
    return "0" if value == 0 else f"{value:.2e}"


def jsonable(value: Any) -> Any:
    """Nested values with what JSON has no number for (`nan`, `inf`) spelt as strings."""
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
