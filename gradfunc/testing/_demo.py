"""What `gradfunc check` shows without a model: a healthy one, and every kind of fault planted once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .._report import Report, Table, jsonable, number
from ..audit._demo import digits
from ._check import check_gradients
from ._planted import PLANTED
from ._report import CheckReport


@dataclass(frozen=True)
class Found:
    """A planted fault: the check that finds it, what it named, and whether that was right."""

    fault: str
    check: str
    named: str | None
    measured: float | None
    ok: bool


@dataclass(frozen=True)
class DemoReport(Report):
    """The default check.

    Attributes:
        healthy: a perceptron on the digits data.
        planted: every fault.
    """

    healthy: CheckReport
    planted: tuple[Found, ...]

    @property
    def ok(self) -> bool:
        """Whether the healthy model is found healthy, and every fault named."""
        return self.healthy.ok and all(found.ok for found in self.planted)

    def parts(self) -> Sequence[Table | str]:
        """Tables in reading order."""
        rows = [[f.fault, f.check, f.named or "NOT FOUND", number(f.measured)] for f in self.planted]
        return [
            "A perceptron on scikit-learn's digits: nothing is wrong with it.",
            *self.healthy.parts(),
            Table(
                "Every kind of fault, planted once",
                ["fault", "check that finds it", "named", "difference"],
                rows,
                "For yours: gradfunc check --model package.module:factory",
            ),
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        out: dict[str, Any] = jsonable(
            {"healthy": self.healthy.to_dict(), "planted": [vars(found) for found in self.planted], "ok": self.ok}
        )
        return out


def demo(
    *,
    dtype: str = "float32",
    device: str | None = None,
    batch_size: int = 16,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> DemoReport:
    """Run the default check; a fault is planted in a batch of 8, whatever is asked."""
    note = progress or (lambda stage: None)
    options: dict[str, Any] = {"dtype": dtype, "device": device, "seed": seed}
    model, criterion, batch = digits(batch_size)
    healthy = check_gradients(model, criterion, batch, progress=note, **options)
    found = []
    for planted in PLANTED:
        note(planted.fault)
        made, own = planted.make()
        row = check_gradients(made, own, digits(8)[2], **options).row(planted.check)
        named = row.parameter if row.verdict == "wrong" else None
        found.append(Found(planted.fault, planted.check, named, row.measured, named == planted.names))
    return DemoReport(healthy, tuple(found))
