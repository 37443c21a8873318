"""The audit's report: estimators, pairs with verdicts and causes, what the model invites, independence."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .._report import Report, Table, jsonable, number
from ._causes import Cause
from ._independence import Independence
from ._measure import ESTIMATORS
from ._mechanisms import BY_NAME

DEMONSTRATION = "forum loop"


@dataclass(frozen=True)
class EstimatorRow:
    """One way to the mean gradient: the norm of what it gave, or why it gave nothing."""

    name: str
    says: str
    norm: float | None
    why_not: str | None


@dataclass(frozen=True)
class Pair:
    """Two estimators compared.

    Attributes:
        discrepancy: largest absolute difference of an entry; None if one of them did not run.
        parameter: where it is.
        bound: the most that rounding can make of it there, where that is a theorem.
        other: the same discrepancy at the other precision.
        verdict: "exact", "rounding", "wrong", "cannot tell" or "not run".
        causes: the closed forms that match a wrong one.
        unexplained: the residual of a wrong one that no closed form matches.
        demonstration: whether one of the two is known to be broken and there for comparison.
    """

    a: str
    b: str
    discrepancy: float | None
    parameter: str | None
    bound: float | None
    other: float | None
    verdict: str
    causes: tuple[Cause, ...]
    unexplained: float | None
    demonstration: bool

    @property
    def fault(self) -> bool:
        """Whether the user's own estimators disagree, and not by weights that the loss itself declares."""
        declared = any(all(BY_NAME[name].declared for name in cause.mechanisms) for cause in self.causes)
        return self.verdict == "wrong" and not self.demonstration and not declared


@dataclass(frozen=True)
class Invitation:
    """A mechanism that this model and criterion invite.

    Attributes:
        mechanism: its name.
        why: what invites it.
        size: the largest difference it makes (or would make, were the layer in train mode) on this batch.
        acts: whether it acts as things stand.
    """

    mechanism: str
    why: str
    size: float | None
    acts: bool


@dataclass(frozen=True)
class ReductionReport(Report):
    """What `gf.audit.reductions` found.

    Attributes:
        batch_size: n.
        dtype: the precision asked for.
        other_dtype: the one it was repeated in; None if the model cannot run there.
        estimators: every estimator.
        pairs: all pairs of them.
        invitations: mechanisms that the model and criterion invite.
        independence: whether samples are independent.
        notes: warnings that the model or criterion raised, and what could not be checked.
    """

    batch_size: int
    dtype: str
    other_dtype: str | None
    estimators: tuple[EstimatorRow, ...]
    pairs: tuple[Pair, ...]
    invitations: tuple[Invitation, ...]
    independence: Independence
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the reductions agree: no pair at fault, no loss that depends on another sample, yours could run.

        Pairs that differ by weights which the loss itself declares (`gf.Weighted`) are listed, but no fault. Pairs that
        could not be told are none either; the verdict says how many.
        """
        ran = all(row.norm is not None for row in self.estimators if row.name == "yours")
        return ran and self.independence.independent is not False and not any(pair.fault for pair in self.pairs)

    @property
    def causes(self) -> tuple[str, ...]:
        """Names of the mechanisms found in the user's own estimators, each once."""
        found = [c for pair in self.pairs if not pair.demonstration for c in pair.causes]
        return tuple(dict.fromkeys(name for cause in found for name in cause.mechanisms))

    def pair(self, a: str, b: str) -> Pair:
        """The pair of two estimators, in either order.

        Raises:
            KeyError: no such pair.
        """
        for pair in self.pairs:
            if {pair.a, pair.b} == {a, b}:
                return pair
        raise KeyError(f"no pair of {a!r} and {b!r}; estimators: {[row.name for row in self.estimators]}")

    def parts(self) -> Sequence[Table | str]:
        """Tables in reading order."""
        return [self._estimators(), self._pairs(), *self._findings(), self._verdict()]

    def _estimators(self) -> Table:
        rows = [[row.name, number(row.norm), row.why_not or row.says] for row in self.estimators]
        return Table(
            f"Estimators of the mean gradient ({self.batch_size} samples, {self.dtype})",
            ["estimator", "norm", "how"],
            rows,
        )

    def _pairs(self) -> Table:
        rows = [
            [
                f"{pair.a} - {pair.b}",
                number(pair.discrepancy),
                number(pair.bound),
                number(pair.other),
                pair.verdict,
                pair.parameter or "",
                self._cause_of(pair),
            ]
            for pair in self.pairs
        ]
        other = f"in {self.other_dtype}" if self.other_dtype else "elsewhere"
        return Table(
            "Largest discrepancy of each pair",
            ["pair", "largest", "bound", other, "verdict", "parameter", "cause"],
            rows,
            "bound: the most that rounding makes of it, where that is a theorem. exact: equal to the last bit. "
            "rounding: it shrinks with the unit roundoff. wrong: it stays.",
        )

    @staticmethod
    def _cause_of(pair: Pair) -> str:
        if pair.unexplained is not None:
            follows = pair.b == "yours" and pair.a != "mean"
            return "see mean - yours" if follows else f"unexplained, residual {number(pair.unexplained)}"
        return " or ".join(dict.fromkeys(" + ".join(cause.mechanisms) for cause in pair.causes))

    def _findings(self) -> list[Table]:
        tables = []
        seen: dict[str, list[tuple[Pair, Cause]]] = {}
        for pair in self.pairs:
            for cause in pair.causes:
                for name in cause.mechanisms:
                    seen.setdefault(name, []).append((pair, cause))
        if seen:
            rows = []
            for name, found in seen.items():
                pair, cause = min(found, key=lambda item: len(item[1].mechanisms))
                worst = max(cause.relative_error for _, cause in found)
                detail = f" [{cause.detail}]" if cause.detail else ""
                what = f"{BY_NAME[name].says}{detail}: {BY_NAME[name].formula}. Remedy: {BY_NAME[name].remedy}"
                rows.append([name, f"{pair.a} - {pair.b}", number(cause.predicted), number(worst), what])
            head = ["cause", "such as", "predicted", "worst match", "what happens"]
            note = (
                "worst match: |measured - predicted| / |measured|, over all pairs in which the closed form was found."
            )
            tables.append(Table("Causes found by their closed forms", head, rows, note))
        if self.invitations:
            rows = [
                [i.mechanism, i.why, number(i.size), "yes" if i.acts else "no", BY_NAME[i.mechanism].remedy]
                for i in self.invitations
            ]
            head = ["mechanism", "because of", "size here", "acts now", "remedy"]
            note = "size here: the largest difference it makes on this batch, for layers in eval mode if they trained."
            tables.append(Table("What this model and criterion invite", head, rows, note))
        return tables

    def _verdict(self) -> str:
        check = self.independence
        lines = []
        if check.independent is None:
            lines.append(f"Independence of samples: cannot tell, {check.why}.")
        elif check.independent:
            lines.append(f"Independence of samples: yes, {check.why}.")
        else:
            lines.append(f"Independence of samples: NO. {check.why}; they meet in {check.layer}.")
        lines += [f"Note: {note}" for note in self.notes]
        wrong = sum(pair.fault for pair in self.pairs)
        unsure = sum(pair.verdict == "cannot tell" for pair in self.pairs)
        if wrong:
            told = f"{wrong} pairs disagree beyond rounding: {', '.join(self.causes) or 'unexplained'}"
        elif not self.ok and check.independent is False:
            told = "the reductions agree, but one sample's loss depends on other samples"
        elif not self.ok:
            told = "your loop did not run"
        elif unsure:
            told = f"no pair is shown to be wrong, but {unsure} could not be told"
        elif self.causes:
            told = "the reductions differ only by the weights that the loss declares, and g.mean() divides by"
        else:
            told = "the reductions agree"
        lines.append(f"Verdict: {told}.")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the fields, with remedies beside causes, and `ok`."""
        out: dict[str, Any] = dataclasses.asdict(self)
        for pair, given in zip(out["pairs"], self.pairs, strict=True):
            for cause, source in zip(pair["causes"], given.causes, strict=True):
                cause["remedy"] = source.remedy
        for invitation in out["invitations"]:
            invitation["remedy"] = BY_NAME[invitation["mechanism"]].remedy
        result: dict[str, Any] = jsonable({**out, "causes": list(self.causes), "ok": self.ok})
        return result


def estimator_rows(norms: dict[str, tuple[float | None, str | None]]) -> tuple[EstimatorRow, ...]:
    """Rows in the order of `ESTIMATORS`."""
    return tuple(EstimatorRow(name, ESTIMATORS[name], *norms[name]) for name in ESTIMATORS if name in norms)
