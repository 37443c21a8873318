"""The loop: one batch after the other, each step a pure function of where training stands."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from .._errors import kind_of, message
from .._per_sample import PerSampleGradsFunction
from .._transform import StepFunction, StepReport, flatten_state
from .._tree import Tensors, wide
from ._checkpoint import Checkpoint, CheckpointError, save_checkpoint
from ._data import Batch, Data, no_batch
from ._evaluate import Metric, means
from ._history import Recorder
from ._nonfinite import Nonfinite, find
from ._progress import Note
from ._snapshot import Snapshot

T = TypeVar("T")


@dataclass(frozen=True)
class Setup:
    """What `gf.train.fit` was asked for, read."""

    run: StepFunction
    data: Data
    epochs: int
    validation: Data | None
    validation_f: PerSampleGradsFunction
    metrics: Mapping[str, Metric]
    capture: Mapping[str, Callable[[Snapshot], Any]]
    capture_every: int
    callbacks: Sequence[Callable[[Snapshot], str | None]]
    stop_on_nonfinite: bool
    path: Path | None
    every: int
    identity: Mapping[str, Any]

    def generators(self) -> list[torch.Generator]:
        """The loaders' own ones."""
        found = [*self.data.generators(), *(self.validation.generators() if self.validation else ())]
        return list({id(generator): generator for generator in found}.values())

    def states(self) -> tuple[Tensor, ...]:
        """Of these generators, now."""
        return tuple(generator.get_state() for generator in self.generators())


@dataclass(frozen=True)
class Place:
    """Where training stands: replaced as a whole, so that an interrupt finds it before a step or after."""

    params: Tensors
    state: Any
    step: int = 0
    epoch: int = 0
    batch: int = 0
    generators: tuple[Tensor, ...] = ()  # states of the loaders' own ones, when this epoch began


@dataclass(frozen=True)
class Stopped:
    """Why training ended before its last epoch.

    Attributes:
        reason: in words.
        step: at which it was: the last that was made, or, where something was not finite, the first that was not.
        nonfinite: what was not finite, if that is why.
        interrupted: whether it was Ctrl-C.
    """

    reason: str
    step: int
    nonfinite: Nonfinite | None = None
    interrupted: bool = False


@dataclass
class Loop:
    """A training that runs."""

    setup: Setup
    at: Place
    recorder: Recorder
    owns: bool = False  # the file at the path

    def run(self, note: Note) -> Stopped | None:
        """Until the last epoch, or a reason to stop."""
        while self.at.epoch < self.setup.epochs:
            empty = self.at.batch == 0
            for batch, last in _with_last(self.setup.data.epoch(self.at.epoch, self.at.batch)):
                empty, epoch = False, self.at.epoch
                stopped, loss = self._step(batch, last)
                if stopped is not None:
                    return stopped
                note(self.at.step - 1, epoch, loss, last)
                if self.setup.path is not None and self.at.step % self.setup.every == 0:
                    self.save()
            if empty:
                raise no_batch("gf.train.fit(...)", f"in epoch {self.at.epoch}")
            if self.at.batch:  # fewer batches than the checkpoint had seen
                self.at = dataclasses.replace(self.at, epoch=self.at.epoch + 1, batch=0, generators=self.setup.states())
        return None

    def save(self) -> None:
        """Write the checkpoint, where there is one."""
        path = self.setup.path
        if path is None:
            return
        if not self.owns and path.exists():
            got = f"checkpoint={str(path)!r}, a file that was not there when this run began"
            do = "It is left as it is: another run's. Save error.fit.checkpoint() elsewhere."
            raise CheckpointError(message("gf.train.fit(...)", got=got, expected="a path of its own", do=do))
        save_checkpoint(path, self.checkpoint())
        self.owns = True

    def checkpoint(self) -> Checkpoint:
        """Where training stands, to go on from."""
        at = self.at
        state, history = flatten_state(at.state), self.recorder.history(before=at.step)
        return Checkpoint(at.params, state, history, at.step, at.epoch, at.batch, at.generators, self.setup.identity)

    def _step(self, batch: Batch, last: bool) -> tuple[Stopped | None, float]:
        setup, at = self.setup, self.at
        f = setup.run.f.at(at.step, None if setup.run.f.options.batched else batch.ids)
        seen = bool(setup.capture) and at.step % setup.capture_every == 0
        run = dataclasses.replace(setup.run, report=seen)
        rows = [run.rows(f, at.params, batch.args, batch.kwargs, spent=not seen)]
        losses, weights, kept = rows[0].losses, rows[0].weights, rows[0] if seen else None
        try:
            params, state, report = run.advance(rows, at.state, at.params)
        except ValueError:  # a stage that raises on what is not finite, if that is what it was
            found = self._nonfinite(batch, at.params) if setup.stop_on_nonfinite else None
            if found is None:
                raise
            return self._stopped(found, losses, weights), math.nan
        loss, weight, finite = _numbers(losses, weights, params)
        if not finite and setup.stop_on_nonfinite and (found := self._nonfinite(batch, params)) is not None:
            return self._stopped(found, losses, weights), loss
        self._note(loss, weight)
        validation = self._ended(params) if last else {}
        reason = None
        if seen or setup.callbacks:
            snapshot = Snapshot(
                at.step, at.epoch, last, batch.args, batch.kwargs, batch.ids, at.params, params, at.state, state,
                losses, weights, loss, validation, self.recorder.history,
                lambda: run.rows(f, at.params, batch.args, batch.kwargs, spent=False) if kept is None else kept,
                lambda: report if seen else self._said(snapshot),
            )  # fmt: skip
            self._captured(snapshot, seen)
            reason = self._asked(snapshot)
        # the one line that moves training on
        generators = setup.states() if last else at.generators
        self.at = Place(params, state, at.step + 1, at.epoch + last, 0 if last else at.batch + 1, generators)
        return (None if reason is None else Stopped(reason, at.step)), loss

    def _said(self, snapshot: Snapshot) -> StepReport:
        run = dataclasses.replace(self.setup.run, report=True)
        _, _, report = run.advance([snapshot.g], snapshot.state, snapshot.params)
        return report

    def _note(self, loss: float, weight: float) -> None:
        for name, value in {"loss": loss, "weight": weight, "epoch": self.at.epoch}.items():
            self.recorder.add(name, self.at.step, value)

    def _ended(self, params: Tensors) -> dict[str, float]:
        """What an epoch's end adds: its mean loss, and validation."""
        at, setup = self.at, self.setup
        losses, weights = (
            [float(value) for value in values] for values in self.recorder.since(at.step - at.batch, "loss", "weight")
        )
        total = sum(weights)
        mean = sum(a * b for a, b in zip(losses, weights, strict=True) if b) / total if total else math.nan
        self.recorder.add("epoch_loss", at.step, mean)
        if setup.validation is None:
            return {}
        call = "gf.train.fit(..., validation=...)"
        found = means(call, setup.validation_f, params, setup.validation, setup.metrics, at.step)
        self.recorder.add("validation", at.step, found)
        return found

    def _captured(self, snapshot: Snapshot, seen: bool) -> None:
        for name, function in self.setup.capture.items() if seen else ():
            self.recorder.add(name, snapshot.step, function(snapshot))

    def _asked(self, snapshot: Snapshot) -> str | None:
        reasons = [callback(snapshot) for callback in self.setup.callbacks]
        for reason in reasons:
            if reason is not None and not isinstance(reason, str):
                expected = "None to go on, or the reason to stop, a string"
                raise TypeError(message("callback(snapshot)", got=kind_of(reason), expected=expected))
        return next((reason for reason in reasons if reason is not None), None)

    def _nonfinite(self, batch: Batch, after: Tensors) -> Nonfinite | None:
        at = self.at
        return find(self.setup.run.f, at.params, batch.args, batch.kwargs, batch.ids, at.step, after)

    def _stopped(self, found: Nonfinite, losses: Tensor, weights: Tensor) -> Stopped:
        loss, weight, _ = _numbers(losses, weights, {})
        self._note(loss, weight)
        return Stopped(str(found), self.at.step, found)


def _numbers(losses: Tensor, weights: Tensor, params: Tensors) -> tuple[float, float, bool]:
    """Mean loss, total weight, whether losses and parameters are finite: one wait for the device.

    The sum of a parameter is NaN or inf where an entry is; it may overflow besides, so that False means a second look.
    """
    sums = [value.detach().sum(dtype=wide(value.dtype)).to(losses.device, torch.float64) for value in params.values()]
    both = torch.stack([losses.sum(dtype=torch.float64), weights.sum(dtype=torch.float64), *sums]).tolist()
    loss, weight = both[:2]
    return loss / weight if weight else math.nan, weight, all(map(math.isfinite, [loss, *both[2:]]))


def _with_last(items: Iterator[T]) -> Iterator[tuple[T, bool]]:
    """Each with whether it is the last."""
    held: list[T] = []
    for item in items:
        if held:
            yield held.pop(), False
        held.append(item)
    if held:
        yield held.pop(), True
