"""What `g.explain()` says: the engine and why, and for every parameter its uses, kind, method, cost and why."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._capture import Used
from .._factors import Gradient, Gradients, method, scratch_of
from .._report import Report, Table, jsonable


@dataclass(frozen=True)
class Line:
    """One factor of one parameter.

    Attributes:
        parameter: its name.
        uses: how many operations read it, and which; "generic" where no rule knows one, "through" for those by which
            rows came back to the parameter from a value made of it.
        kind: of the factor.
        method: how squared norms are computed; "?" where the rows are not held.
        flops: of that, for all samples.
        held: bytes of the factor.
        why: the choice of method.
    """

    parameter: str
    uses: str
    kind: str
    method: str
    flops: int
    held: int
    why: str


@dataclass(frozen=True)
class Explanation(Report):
    """The choices made for one value."""

    engine: str
    summary: str
    lines: tuple[Line, ...]

    @property
    def ok(self) -> bool:
        """Always: there is nothing to find fault with."""
        return True

    def parts(self) -> Sequence[Table | str]:
        """What was chosen, and the table of parameters."""
        if not self.lines:
            return [self.summary]
        rows = [
            [line.parameter, line.uses, line.kind, line.method, f"{_short(line.flops)} {_short(line.held)}B", line.why]
            for line in self.lines
        ]
        note = "cost: floating-point operations of the squared norms of all samples, and bytes that the factor holds"
        columns = ["parameter", "uses", "kind", "method", "cost", "why"]
        return [self.summary, Table("How the rows of each parameter are held", columns, rows, note)]

    def to_dict(self) -> dict[str, Any]:
        """Engine, summary, and a dictionary a line."""
        given = {"engine": self.engine, "summary": self.summary, "parameters": [vars(line) for line in self.lines]}
        found: dict[str, Any] = jsonable(given)
        return found


def lines(rows: Gradients, uses: Mapping[str, Sequence[Used]]) -> tuple[Line, ...]:
    """One line a factor, in the order of the parameters; what uses tell where the rows are not there."""
    scratch = scratch_of(rows)
    return tuple(line for name, used in uses.items() for line in _of(name, rows.get(name), used, scratch))


def _of(name: str, gradient: Gradient | None, uses: Sequence[Used], scratch: int) -> list[Line]:
    if not uses:
        return [Line(name, "0", "none", "zero", 0, 0, "no loss depends on it")]
    if gradient is not None and not gradient.factors:
        return [Line(name, _spelt(uses), "none", "zero", 0, 0, "it has no entries")]
    if gradient is None:
        kinds = dict.fromkeys(used.kind for used in uses)
        return [Line(name, _spelt(uses, kind), kind, "?", 0, 0, "rows are computed at each query") for kind in kinds]
    out = []
    for factor in gradient.factors:
        own = [used for used in uses if used.kind == factor.kind] if len(gradient.factors) > 1 else uses
        how = method(factor, scratch)
        held = sum(tensor.numel() * tensor.element_size() for tensor in factor.tensors)
        kind, why = factor.kind, how.why
        came = dict.fromkeys(used.kind for used in own)
        if kind == "dense" and kind not in came:
            kind, why = f"dense, of {' and '.join(came)}", "rows are formed: one product serves all"
        out.append(Line(name, _spelt(own), kind, _way(how.name, own), how.flops, held, why))
    return out


def _way(method: str, uses: Sequence[Used]) -> str:
    generic = ["generic"] if any("generic" in used.rule for used in uses) else []
    back = ["pulled back"] if any(used.stopped for used in uses) else []
    return ", ".join([method, *generic, *back])


def _spelt(uses: Sequence[Used], kind: str | None = None) -> str:
    """How many uses, and of which operations."""
    own = [used for used in uses if kind is None or used.kind == kind]
    names = dict.fromkeys(
        _name(used.operation) + (f" through {_name(used.through)}" if used.through else "") for used in own
    )
    return f"{len(own)} ({', '.join(names)})"


def _name(operations: str) -> str:
    """`AddmmBackward0, MmBackward0` as `Addmm, Mm`."""
    return re.sub(r"Backward\d*", "", operations)


def _short(number: int) -> str:
    """Such as 1.2k, 3.4M."""
    value = float(number)
    for suffix in ("", "k", "M", "G"):
        if value < 1000:
            return f"{value:.3g}{suffix}"
        value /= 1000
    return f"{value:.3g}T"
