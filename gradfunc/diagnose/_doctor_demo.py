"""What `gradfunc doctor` shows without a model: one training of every family, diagnosed as it fails and once cured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .._errors import message
from .._report import Report, Table, findings, jsonable
from ._doctor import DoctorReport, doctor
from ._doctor_cases import CASES, Case

Progress = Callable[[str], None] | None


@dataclass(frozen=True)
class Treated:
    """One training, before and after.

    Attributes:
        case: the training.
        found: the report as it fails; of a healthy one, as it is.
        cured: the report after the cure; of a healthy one, the same.
    """

    case: Case
    found: DoctorReport
    cured: DoctorReport

    @property
    def first(self) -> str | None:
        """The first cause found."""
        return next(iter(self.found.causes), None)

    @property
    def named(self) -> bool:
        """Whether the planted cause is found first; a healthy one is left alone."""
        return self.first == self.case.name if self.case.sick else self.quiet

    @property
    def quiet(self) -> bool:
        """Whether nothing is found after the cure, or notes only, as a deep look may add."""
        return all(finding.severity == "note" for finding in self.cured.findings)

    def row(self) -> dict[str, Any]:
        """JSON-ready."""
        worst = self.found.findings[0] if self.found.findings else None
        return {
            "case": self.case.name,
            "what": self.case.what,
            "sick": self.case.sick,
            "found_first": self.first,
            "severity": worst and worst.severity,
            "fix": worst and worst.fix,
            "quiet": self.quiet,
            "found": self.found.to_dict(),
            "cured": self.cured.to_dict(),
        }


@dataclass(frozen=True)
class DoctorDemoReport(Report):
    """The default doctor.

    Attributes:
        cases: in the order of `CASES`.
    """

    cases: tuple[Treated, ...]

    @property
    def ok(self) -> bool:
        """Whether every planted cause is found first, every cure is quiet, and the healthy are left alone."""
        return all(one.named and one.quiet for one in self.cases)

    def parts(self) -> Sequence[Table | str]:
        """The cases, and the fix of each."""
        rows, fixes = [], []
        for one in self.cases:
            row = one.row()
            after = ("quiet" if one.quiet else ", ".join(one.cured.causes)) if one.case.sick else "-"
            rows.append([one.case.name, one.case.what, row["found_first"] or "-", row["severity"] or "-", after])
            if row["fix"]:
                fixes.append([row["found_first"], row["fix"]])
        table = Table(
            "Trainings on scikit-learn's data, diagnosed as they fail, and again once cured",
            ["case", "what", "found first", "how bad", "after the cure"],
            rows,
            "In full: gradfunc doctor --case NAME. For yours: gradfunc doctor --model package.module:factory",
        )
        return [table, Table("What the doctor prescribes", ["cause", "a line of code"], fixes), self._told()]

    def _told(self) -> str:
        wrong = [f"{one.case.name} is taken for {one.first or 'healthy'}" for one in self.cases if not one.named]
        wrong += [f"{one.case.name} is not quiet after the cure" for one in self.cases if one.case.sick > one.quiet]
        return f"Verdict: {', '.join(wrong) or 'every cause is found first, every cure is quiet'}."

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        out: dict[str, Any] = jsonable({"cases": [one.row() for one in self.cases], "ok": self.ok})
        return out


@dataclass(frozen=True)
class CasesReport(Report):
    """Some of the trainings, as they fail, in full.

    Attributes:
        found: `{name: report}`, in the order asked for.
    """

    found: dict[str, DoctorReport]

    @property
    def ok(self) -> bool:
        """Whether nothing severe was found."""
        return all(report.ok for report in self.found.values())

    def parts(self) -> Sequence[Table | str]:
        """Report after report."""
        out: list[Table | str] = []
        for case in chosen(list(self.found)):
            out += [f"{case.name}: {case.what}.", *findings(self.found[case.name])]
        severe = [name for name, report in self.found.items() if not report.ok]
        return [*out, f"Verdict: {'severe findings in ' + ', '.join(severe) if severe else 'nothing severe'}."]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        found = {name: report.to_dict() for name, report in self.found.items()}
        out: dict[str, Any] = jsonable({"cases": found, "ok": self.ok})
        return out


def chosen(names: Sequence[str]) -> list[Case]:
    """The cases of these names.

    Raises:
        ValueError: no name, or one that is none.
    """
    known = {case.name: case for case in CASES}
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        got = ", ".join(map(repr, unknown)) or "no name"
        raise ValueError(message("gradfunc doctor --case", got=got, expected=f"some of {', '.join(known)}"))
    return [known[name] for name in dict.fromkeys(names)]


def demo(*, deep: bool = False, seed: int = 0, progress: Progress = None) -> DoctorDemoReport:
    """Run the default."""
    treated = []
    for case in CASES:
        found = _diagnose(case, cured=False, deep=deep, seed=seed, progress=progress)
        cured = _diagnose(case, cured=True, deep=deep, seed=seed, progress=progress) if case.sick else found
        treated.append(Treated(case, found, cured))
    return DoctorDemoReport(tuple(treated))


def cases(names: Sequence[str], *, deep: bool = False, seed: int = 0, progress: Progress = None) -> CasesReport:
    """The full reports of some."""
    return CasesReport(
        {case.name: _diagnose(case, cured=False, deep=deep, seed=seed, progress=progress) for case in chosen(names)}
    )


def _diagnose(case: Case, *, cured: bool, deep: bool, seed: int, progress: Progress) -> DoctorReport:
    if progress:
        progress(f"{case.name}, cured" if cured else case.name)
    made = case.training(cured=cured, seed=seed)
    return doctor(made.model, made.criterion, made.data, made.optimizer, made.step, deep, seed=seed)
