"""`gf.bench.run`: every contender on every workload, timed, measured and compared."""

from __future__ import annotations

import dataclasses
import functools
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .._errors import message, one_of
from .._random import forked
from ..audit._case import attempt
from ..audit._options import device_of
from ._answers import Answers
from ._contender import Contender
from ._contenders import CONTENDERS, PLAIN, chosen
from ._environment import environment
from ._memory import peak_bytes
from ._peers import installed, missing
from ._report import BenchReport, BenchRow
from ._steady import unsteady
from ._timing import Clock, Entry, Failed, in_a_line, in_words, interleave, on_threads, ratios
from ._truth import BESIDES, QUANTITIES
from ._workload import Case, Workload, given
from ._workloads import WORKLOADS

CALL = "gf.bench.run(workloads, contenders)"


def run(
    workloads: Sequence[str | Workload] | None = None,
    contenders: Sequence[str | Contender] | None = None,
    *,
    peers: bool = False,
    quantities: Sequence[str] = ("clip-and-sum",),
    rounds: int = 10,
    warmups: int = 2,
    threads: int | None = None,
    device: torch.device | str | None = None,
    memory: bool = True,
    progress: Callable[[str], None] | None = None,
    clock: Clock = time.perf_counter,
) -> BenchReport:
    """What per-sample gradients cost, in units of one plain backward pass, and whether they are right.

    The plain backward pass is `torch.autograd.grad` of the mean loss with respect to the module's own parameters: the
    work of `loss.mean().backward()` where `.grad` is None. It is always measured, in every round. Samples are clipped
    to their median norm, so that half of them are.

    A result is compared with `vmap(grad)` in float64. It is wrong if it has lost more than half of its digits, or if
    its error on the first samples does not vanish when the contender itself computes in float64. Where there is nothing
    to compare with (random draws, a model that does not run in float64), a note says why. A contender that raises fails
    alone; a peer that raises has refused, and what peers do does not decide `report.ok`.

    Args:
        workloads: names from `gf.bench.WORKLOADS` (default: all of them), or workloads, such as `gf.bench.of_model`.
        contenders: names from `gf.bench.CONTENDERS` (default: all of them) or `gf.bench.PEERS`, an engine behind
            gradfunc's own as in "gradfunc:vmap"; or contenders.
        peers: whether every peer that is installed is measured too; notes name the others.
        quantities: of "clip-and-sum", "norms", "gram" and "materialise"; with "step", steps of Adam are measured: a
            chain of pure stages beside the same in place; with "flow", `gf.diagnose.gradient_flow`;
            with "nonfinite", `gf.diagnose.find_nonfinite` of a healthy batch.
        rounds: timed calls of each.
        warmups: calls of each before these, at least 1; the first is reported on its own.
        threads: of torch, for the time of the call; default: as they are.
        device: where to run, such as "cuda:0"; default: the workloads' own.
        memory: whether to measure the peak of extra memory, in a call that is not timed.
        progress: called with the name of each stage.
        clock: seconds, such as `time.perf_counter`.

    Raises:
        TypeError: a workload or contender of another form.
        ValueError: an unknown name, engine or device; a number that is not positive; workloads of one name, or on
            several devices; a workload whose samples have no gradient of their own.
        ModuleNotFoundError: a peer was named that is not installed.

    Example:
        >>> import gradfunc as gf
        >>> tiny = gf.bench.mlp([4, 8, 3], batch_size=5)
        >>> report = gf.bench.run([tiny], ["gradfunc", "vmap(grad)"], rounds=2, memory=False)
        >>> report.ok, [row.contender for row in report.rows]
        (True, ['plain', 'gradfunc', 'vmap(grad)'])
    """
    note = progress or (lambda stage: None)
    numbers = {"rounds": rounds, "warmups": warmups, "threads": 1 if threads is None else threads}
    for name, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(message(CALL, got=f"{name}={value!r}", expected="a positive int"))
    for quantity in quantities:
        one_of(CALL, "quantity", quantity, (*QUANTITIES, *BESIDES))
    cases = [given(CALL, "workload", item, WORKLOADS) for item in (WORKLOADS if workloads is None else workloads)]
    asked = chosen(CALL, [*CONTENDERS] if contenders is None else contenders)
    if peers:
        asked += [peer for peer in installed() if peer not in asked]
    _check_names(cases)
    place = _place(cases, device)
    settings = _Settings(tuple(quantities), rounds, warmups, memory, place, clock, note)
    with torch.enable_grad(), on_threads(threads), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        where = environment(place)
        with forked(0, 2, devices=[place]):  # a model may draw
            measured = [_rows(workload, asked, settings) for workload in cases]
    notes = [note for _, why in measured for note in why] + [in_words(w.message) for w in caught]
    return BenchReport(
        rows=tuple(row for rows, _ in measured for row in rows),
        workloads={workload.name: workload.about for workload in cases},
        rounds=rounds,
        warmups=warmups,
        environment=where,
        notes=tuple(dict.fromkeys([*notes, *(missing() if peers else [])])),
        peers={peer.name: (peer.made_of, peer.settings) for peer in asked if peer.peer},
    )


@dataclass(frozen=True)
class _Settings:
    quantities: tuple[str, ...]
    rounds: int
    warmups: int
    memory: bool
    device: torch.device
    clock: Clock
    note: Callable[[str], None]


def _rows(workload: Workload, contenders: Sequence[Contender], settings: _Settings) -> tuple[list[BenchRow], list[str]]:
    """The rows of one workload (what contenders answer, how long they take, what they hold), and notes."""
    note = settings.note
    note(f"{workload.name}: the answers in float64")
    problem = _Problem.of(workload, settings)
    planned = [
        (contender, quantity)
        for contender in _plain_first(contenders)
        for quantity in contender.asked(settings.quantities)
    ]
    entries, rows = [], []
    for contender, quantity in planned:
        note(f"{workload.name}: {contender.name}, {quantity}")
        entry = Entry.of(functools.partial(contender.make, problem.case, quantity))
        rows.append(_first(problem, contender, quantity, entry, settings))
        entries.append(entry)
    for count in interleave(entries, settings.rounds, settings.clock, settings.device):
        note(f"{workload.name}: round {count} of {settings.rounds}")
    note(f"{workload.name}: memory")
    done = [
        _finished(row, contender, entry, entries[0].times, settings)
        for row, (contender, _), entry in zip(rows, planned, entries, strict=True)
    ]
    untold = any(row.verdict == "cannot tell" for row in done)
    return done, [f"{workload.name}: cannot tell right from wrong: {problem.why_not}."] if untold else []


def _plain_first(contenders: Sequence[Contender]) -> list[Contender]:
    """The base line of the ratios, also where it was not asked for."""
    plain = [contender for contender in contenders if contender.name == PLAIN.name]
    return [*(plain or [PLAIN]), *[contender for contender in contenders if contender.name != PLAIN.name]]


@dataclass(frozen=True)
class _Problem:
    """A case and its answers, or why there are none."""

    case: Case
    answers: Answers | None
    why_not: str = ""

    @classmethod
    def of(cls, workload: Workload, settings: _Settings) -> _Problem:
        case = workload.case(settings.device)
        why_not = unsteady(case)
        answers, failed = attempt(functools.partial(Answers.of, case, gram="gram" in settings.quantities))
        if answers is None:
            return cls(case, None, why_not or failed or "")
        case = dataclasses.replace(case, max_norm=answers.truth.max_norm)
        return cls(case, answers if why_not is None else None, why_not or "")


def _first(problem: _Problem, contender: Contender, quantity: str, entry: Entry, settings: _Settings) -> BenchRow:
    """The first call, compared, and the other warm-up calls."""
    row = BenchRow(problem.case.workload.name, contender.name, quantity, peer=contender.peer)
    try:
        result, first = entry.timed(settings.clock, settings.device)
        row = dataclasses.replace(row, first=first)
        if quantity in QUANTITIES:
            compared: dict[str, Any] = {"verdict": "cannot tell"}
            if problem.answers is not None:
                compared = problem.answers.compared(contender, quantity, result, settings.device)
            row = dataclasses.replace(row, **compared)
        del result
        for _ in range(settings.warmups - 1):
            entry.timed(settings.clock, settings.device)
    except Failed as error:
        entry.failure = str(error)
    return row


def _finished(
    row: BenchRow, contender: Contender, entry: Entry, plain: Sequence[float], settings: _Settings
) -> BenchRow:
    """The row with its times and its memory; a contender that failed once has neither."""
    if entry.failure is None and settings.memory and not contender.foreign:
        try:
            row = dataclasses.replace(row, peak=peak_bytes(entry.call, settings.device))
        except Exception as error:  # such as no memory, beside what the profiler holds
            entry.failure = in_a_line(error)
    if entry.failure is not None:
        return dataclasses.replace(row, verdict="refused" if row.peer else "failed", failure=entry.failure)
    return dataclasses.replace(row, times=tuple(entry.times), ratios=ratios(entry.times, plain))


def _check_names(workloads: Sequence[Workload]) -> None:
    names = [workload.name for workload in workloads]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(message(CALL, got=f"several workloads named {twice[0]!r}", expected="names that differ"))


def _place(workloads: Sequence[Workload], device: torch.device | str | None) -> torch.device:
    """Where to run: as asked, else where the workloads are made."""
    if device is not None:
        return device_of(CALL, device)
    own = {str(workload.device): workload.device for workload in workloads}
    if len(own) > 1:
        raise ValueError(message(CALL, got=f"workloads on {sorted(own)}", expected="one device", do="Pass device=."))
    return device_of(CALL, next(iter(own.values()), "cpu"))
