"""What the doctor found, as tables and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..._report import Report, Table, jsonable
from ._causes import CAUSES
from ._finding import Finding


@dataclass(frozen=True)
class DoctorReport(Report):
    """What `gf.diagnose.doctor` found.

    Attributes:
        findings: worst first; of equals, the one upstream.
        healthy: names of the probes that found nothing.
        not_run: `(probe, reason)` of those that could not look, or were not asked to.
        forward: passes forward.
        backward: passes backward; a Hessian-vector product counts twice.
    """

    findings: tuple[Finding, ...]
    healthy: tuple[str, ...]
    not_run: tuple[tuple[str, str], ...]
    forward: int
    backward: int

    @property
    def ok(self) -> bool:
        """Whether nothing severe was found."""
        return not any(finding.severity == "severe" for finding in self.findings)

    @property
    def causes(self) -> tuple[str, ...]:
        """Of the findings, each once, in their order."""
        return tuple(dict.fromkeys(finding.cause for finding in self.findings))

    def parts(self) -> Sequence[Table | str]:
        """Tables in reading order."""
        rows = [
            [f.cause, f"{f.severity}, {f.confidence}", f.where, f"{CAUSES.get(f.cause, '')}. {f.evidence}".lstrip(". ")]
            for f in self.findings
        ]
        out: list[Table | str] = []
        if rows:
            out.append(Table("Findings", ["cause", "how bad, how sure", "where", "evidence"], rows))
            fixes = dict.fromkeys((f.cause, f.fix) for f in self.findings)
            out.append(Table("Fixes", ["cause", "a line of code"], [list(pair) for pair in fixes]))
        if self.not_run:
            out.append(Table("Not looked at", ["probe", "why"], [list(pair) for pair in self.not_run]))
        return [*out, self._told()]

    def _told(self) -> str:
        severe = sum(f.severity == "severe" for f in self.findings)
        told = f"{severe} severe of {len(self.findings)} findings" if self.findings else "nothing found"
        return (
            f"Found healthy: {', '.join(self.healthy) or 'nothing'}.\n"
            f"Passes: {self.forward} forward, {self.backward} backward.\nVerdict: {told}."
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the fields, and `ok`."""
        result: dict[str, Any] = jsonable({**dataclasses.asdict(self), "ok": self.ok})
        return result
