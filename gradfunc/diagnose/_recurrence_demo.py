"""What `gradfunc recurrence` shows without a model: two matrices, an LSTM on digits, and the remedies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._report import Report, Table, findings, jsonable
from ..audit._demo import digits
from ._recurrence import LinearRecurrence, RecurrenceReport, RemedyReport, recurrence, remedies

STEPS = 50


@dataclass(frozen=True, eq=False)
class RecurrenceDemo(Report):
    """The default recurrence.

    Attributes:
        explodes: W with eigenvalues 1.5 and 0.5.
        transient: W that is not normal: both eigenvalues are 0.9, and it grows at first.
        lstm: an LSTM as torch starts it, which reads digits pixel by pixel.
        remedies: what is done against it.
    """

    explodes: LinearRecurrence
    transient: LinearRecurrence
    lstm: RecurrenceReport
    remedies: RemedyReport

    @property
    def ok(self) -> bool:
        """Whether each is found to be what it is, and every closed form is met."""
        return not self._off()

    def _off(self) -> list[str]:
        held = {
            "diag(1.5, 0.5) does not explode": self.explodes.explodes,
            "[[0.9, 10], [0, 0.9]] does not grow and vanish": self.transient.vanishes and self.transient.peak > 1,
            "the LSTM does not vanish": self.lstm.vanishes,
            "a closed form is not met": self.remedies.ok,
        }
        return [name for name, holds in held.items() if not holds]

    def parts(self) -> Sequence[Table | str]:
        """All of them, in this order."""
        return [
            "W = diag(1.5, 0.5): 1.5^50 = 6.376e8.",
            *findings(self.explodes),
            "W = [[0.9, 10], [0, 0.9]]: both eigenvalues are below 1, and yet it grows at first.",
            *findings(self.transient),
            "An LSTM, as torch starts it, reads scikit-learn's digits pixel by pixel: only the last state is judged.",
            *findings(self.lstm),
            *self.remedies.parts(),
            "For yours: gradfunc recurrence --model package.module:factory",
            f"Verdict: {', '.join(self._off()) or 'each is found to be what it is made to be'}.",
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        named = {name: getattr(self, name).to_dict() for name in ("explodes", "transient", "lstm", "remedies")}
        out: dict[str, Any] = jsonable({**named, "ok": self.ok})
        return out


class _Reader(nn.Module):
    """Digits as sequences of pixels; what the last state says."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 16, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.lstm(x[:, :, None])[0][:, -1])


def demo(*, batch_size: int = 32, seed: int = 0, progress: Callable[[str], None] | None = None) -> RecurrenceDemo:
    """Run the default."""
    note = progress or (lambda stage: None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = _Reader()
    _, criterion, batch = digits(batch_size)
    note("two matrices")
    explodes = recurrence(torch.diag(torch.tensor([1.5, 0.5], dtype=torch.float64)), steps=STEPS, seed=seed)
    transient = recurrence(torch.tensor([[0.9, 10.0], [0.0, 0.9]], dtype=torch.float64), steps=200, seed=seed)
    note("an LSTM on digits")
    lstm = recurrence(reader, criterion, batch, samples=2, seed=seed)
    assert isinstance(explodes, LinearRecurrence)
    assert isinstance(transient, LinearRecurrence)
    assert isinstance(lstm, RecurrenceReport)
    note("remedies")
    return RecurrenceDemo(explodes, transient, lstm, remedies(steps=STEPS, seed=seed))
