"""Progress on stderr: a bar where a person watches, else a line an epoch if it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Note(Protocol):
    """Where training stands: `note(step, epoch, loss, epoch_ends)`."""

    def __call__(self, step: int, epoch: int, loss: float, epoch_ends: bool) -> None:
        """After each step."""


@contextmanager
def noting(progress: bool | None, start: int, total: int | None, epochs: int) -> Iterator[Note]:
    """Notes by a bar on a terminal; elsewhere by lines with `progress=True`, not at all with None."""
    console = Console(stderr=True)
    if progress is False or (progress is None and not console.is_terminal):
        yield lambda step, epoch, loss, epoch_ends: None
    elif not console.is_terminal:

        def line(step: int, epoch: int, loss: float, epoch_ends: bool) -> None:
            if epoch_ends:
                console.print(f"epoch {epoch + 1}/{epochs}: step {step + 1}, loss {loss:.4g}", highlight=False)

        yield line
    else:
        columns = (
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4g}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as bar:
            nan = float("nan")
            task = bar.add_task("", total=total, completed=start, epoch=0, epochs=epochs, loss=nan, rate="")

            def move(step: int, epoch: int, loss: float, epoch_ends: bool) -> None:
                speed = bar.tasks[0].speed
                rate = f"{speed:.3g} steps/s" if speed else ""
                bar.update(task, completed=step + 1, epoch=epoch + 1, loss=loss, rate=rate)

            yield move
