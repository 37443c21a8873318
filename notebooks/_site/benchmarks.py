"""Recorded results as tables, made when the site is built, so that a page cannot disagree with its file."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from .docstrings import parse

FOLDER = Path(__file__).parents[2] / "benchmarks"


def ratios(file: str, quantity: str) -> str:
    """One row a contender, one column a workload: the median ratio to a plain backward pass, and the peak in MiB."""
    found = json.loads((FOLDER / file).read_text())
    rows = [row for row in found["rows"] if row["quantity"] == quantity]
    contenders = list(dict.fromkeys(row["contender"] for row in rows))
    cells = {(row["contender"], row["workload"]): _cell(row) for row in rows}
    lines = [[name, *(cells.get((name, work), "") for work in found["workloads"])] for name in contenders]
    return "\n\n".join([_table([f"{quantity}, x one plain backward", *found["workloads"]], lines), _where(found)])


def verdicts(file: str) -> str:
    """How many models of the zoo each library gets right, wrong, or refuses."""
    found = json.loads((FOLDER / file).read_text())
    kinds = ("exact", "wrong", "refused")
    lines = []
    for library in found["contenders"]:
        said = [model[library]["verdict"] for model in found["cells"].values()]
        lines.append([library, *(str(said.count(kind)) for kind in kinds)])
    head = [f"of {len(found['cells'])} models", *kinds]
    return "\n\n".join([_table(head, lines), _where(found)])


def store(file: str) -> str:
    """What a store of rows takes: seconds, rates and memory, step by step."""
    found = json.loads((FOLDER / file).read_text())
    head = ["step", "seconds", "MB/s", "rows/s", "peak MiB, of that before"]
    lines = []
    for name, step in found["steps"].items():
        memory = f"{step['peak_bytes'] / 2**20:,.0f}, {step['of_that_before'] / 2**20:,.0f}"
        rates = f"{step['bytes_a_second'] / 1e6:,.0f}", f"{step['rows_a_second']:,}"
        lines.append([name, f"{step['seconds']:.1f}", *rates, memory])
    about = f"{found['rows']:,} rows of {found['size']:,} {found['dtype']}. "
    return "\n\n".join([_table(head, lines), about + _where(found)])


KINDS = {"ratios": ratios, "verdicts": verdicts, "store": store}


class Benchmarks(SphinxDirective):
    """`benchmarks:: ratios peers-cpu.json clip-and-sum`: a table of a file of `benchmarks/`."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """The table, and where and when it was recorded."""
        kind, file, *more = self.arguments[0].split(maxsplit=2)
        self.env.note_dependency(str(FOLDER / file))
        return parse(self, KINDS[kind](file, *more))


def _cell(row: dict[str, Any]) -> str:
    if not row["ratios"]:
        return row["verdict"] or "-"
    ratio = f"{statistics.median(row['ratios']):#.3g}".rstrip(".")
    wrong = " wrong" if row["verdict"] == "wrong" else ""
    return ratio + wrong + (f" ({row['peak'] / 2**20:,.0f})" if row["peak"] is not None else "")


def _table(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _where(found: dict[str, Any]) -> str:
    made = found["environment"]
    peers = ", ".join(f"{name} {version}" for name, version in made.get("peers", {}).items() if version)
    rounds = f", {found['rounds']} rounds" if "rounds" in found else ""
    beside = f"; {peers}" if peers else ""
    return f"Recorded {made['date']}: {made['cpu']}, {made['cores']} cores, torch {made['torch']}{rounds}{beside}."
