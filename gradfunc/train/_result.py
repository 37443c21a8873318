"""What a training has reached, whatever ended it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .._report import Report, Table
from .._tree import Tensors
from ._checkpoint import Checkpoint
from ._history import History
from ._loop import Stopped


@dataclass(frozen=True)
class Fit(Report):
    """What a training has reached. Made by `gf.train.fit`.

    Attributes:
        params: `{name: tensor}`, after the last update that was made.
        state: of the chain, likewise.
        history: what was seen, by name.
        steps: updates made.
        stopped: why training ended early; None if it did not.
    """

    params: Tensors = field(repr=False)
    state: Any = field(repr=False)
    history: History = field(repr=False)
    steps: int
    stopped: Stopped | None
    _checkpoint: Callable[[], Checkpoint] = field(repr=False)

    def checkpoint(self) -> Checkpoint:
        """The same for `gf.train.save_checkpoint`."""
        return self._checkpoint()

    @property
    def ok(self) -> bool:
        """Whether training did not stop for a number that is not finite, nor for an interrupt."""
        return self.history.ok and not (self.stopped and (self.stopped.nonfinite or self.stopped.interrupted))

    def parts(self) -> Sequence[Table | str]:
        """The epochs, and why training stopped."""
        why = [f"Stopped at step {self.stopped.step}: {self.stopped.reason}."] if self.stopped else []
        return [*self.history.parts(), *why]

    def to_dict(self) -> dict[str, Any]:
        """Steps, reason and history, JSON-ready."""
        stopped = {"reason": self.stopped.reason, "step": self.stopped.step} if self.stopped else None
        return {"ok": self.ok, "steps": self.steps, "stopped": stopped, "history": self.history.to_dict()}


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during `gf.train.fit`. The checkpoint, where there is one, was written.

    Attributes:
        fit: what training had reached.

    Example:
        >>> import torch, gradfunc as gf
        >>> def impatient(snapshot):
        ...     raise KeyboardInterrupt
        >>> try:
        ...     gf.train.fit(lambda p, x: (p["w"] - x).square(), gf.mean() >> gf.sgd(0.1), {"w": torch.zeros(())},
        ...                  torch.ones(4), callbacks=[impatient])
        ... except gf.train.Interrupted as stop:
        ...     print(stop.fit.steps)
        0
    """

    def __init__(self, text: str, fit: Fit) -> None:
        super().__init__(text)
        self.fit = fit
