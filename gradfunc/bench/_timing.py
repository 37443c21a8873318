"""Calls interleaved in one process, round by round, so that what slows the machine slows them all."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

Clock = Callable[[], float]


@dataclass
class Entry:
    """One call and what it has taken; `failure` once it has raised, and it is called no more."""

    call: Callable[[], Any]
    times: list[float] = field(default_factory=list)
    failure: str | None = None

    @classmethod
    def of(cls, make: Callable[[], Callable[[], Any]]) -> Entry:
        """The call that `make` prepares; where that raises, an entry that has failed."""
        try:
            return cls(make())
        except Exception as error:  # a peer may refuse a model before it runs
            return cls(_never, failure=in_a_line(error))

    def timed(self, clock: Clock, device: torch.device) -> tuple[Any, float]:
        """The result, and the seconds that it took on the device.

        Raises:
            Failed: whatever the call raised, in a line.
        """
        if self.failure is not None:
            raise Failed(self.failure)
        try:
            _finish(device)
            start = clock()
            result = self.call()
            _finish(device)
            return result, clock() - start
        except Exception as error:  # a peer may refuse a model in any way it likes
            self.failure = in_a_line(error)
            raise Failed(self.failure) from error


def in_a_line(error: Exception) -> str:
    """What was raised, cut to a readable length."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def in_words(warning: Warning | str) -> str:
    """A warning in a line; torch adds where it was built, which says nothing here."""
    text = " ".join(str(warning).split()).partition(" (Triggered internally")[0]
    return f"{type(warning).__name__} raised: {text[:300]}"


class Failed(RuntimeError):
    """A contender raised."""


def interleave(entries: Sequence[Entry], rounds: int, clock: Clock, device: torch.device) -> Iterator[int]:
    """Time every entry once a round, each round starting one entry later; gives the number of rounds done."""
    for done in range(rounds):
        gc.collect()  # what contenders leave in cycles is not to be collected in another's time
        shift = done % len(entries)
        for entry in [*entries[shift:], *entries[:shift]]:
            if entry.failure is None:
                try:
                    entry.times.append(entry.timed(clock, device)[1])
                except Failed:
                    continue
        yield done + 1


def ratios(times: Sequence[float], plain: Sequence[float]) -> tuple[float, ...]:
    """Each round's time over that of the plain backward pass of the same round."""
    return tuple(time / base for time, base in zip(times, plain, strict=False))


@contextmanager
def on_threads(count: int | None) -> Iterator[None]:
    """torch's threads for a while; None leaves them."""
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def _never() -> None:
    """What an entry calls that could not be prepared."""


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
