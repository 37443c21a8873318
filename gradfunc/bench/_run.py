"""`gf.bench.run`: every contender on every workload, timed, measured and compared."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .._errors import message, one_of
from .._rounding import is_rounding, unit_roundoff
from ..audit._options import device_of
from ._contenders import CONTENDERS, PLAIN, Contender, named
from ._environment import environment
from ._memory import peak_bytes
from ._report import BenchReport, BenchRow
from ._timing import Clock, Entry, Failed, interleave, on_threads, ratios
from ._truth import QUANTITIES, Truth
from ._workload import Case, Workload
from ._workloads import WORKLOADS

CALL = "gf.bench.run(workloads, contenders)"
FEW = 8  # samples that are computed in float64 too


def run(
    workloads: Sequence[str | Workload] | None = None,
    contenders: Sequence[str | Contender] | None = None,
    *,
    quantities: Sequence[str] = ("clip-and-sum",),
    rounds: int = 10,
    warmups: int = 2,
    threads: int | None = None,
    device: torch.device | str = "cpu",
    memory: bool = True,
    progress: Callable[[str], None] | None = None,
    clock: Clock = time.perf_counter,
) -> BenchReport:
    """What per-sample gradients cost, in units of one plain backward pass, and whether they are right.

    The plain backward pass is `torch.autograd.grad` of the mean loss with respect to the module's own parameters: the
    work of `loss.mean().backward()` where `.grad` is None. It is always measured, in every round. Samples are clipped
    to their median norm, so that half of them are.

    A result is compared with `vmap(grad)` in float64. It is wrong if it has lost more than half of its digits, or if
    its error on the first samples does not vanish when the contender itself computes in float64.

    Args:
        workloads: names from `gf.bench.WORKLOADS` (default: all of them), or workloads.
        contenders: names from `gf.bench.CONTENDERS` (default: all of them), an engine behind gradfunc's own as in
            "gradfunc:vmap"; or contenders.
        quantities: of "clip-and-sum", "norms" and "gram".
        rounds: timed calls of each.
        warmups: calls of each before these, at least 1; the first is reported on its own.
        threads: of torch, for the time of the call; default: as they are.
        device: where to run, such as "cuda:0".
        memory: whether to measure the peak of extra memory, in a call that is not timed.
        progress: called with the name of each stage.
        clock: seconds, such as `time.perf_counter`.

    Raises:
        TypeError: a workload or contender of another form.
        ValueError: an unknown name, engine or device; a number that is not positive.

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
        one_of(CALL, "quantity", quantity, QUANTITIES)
    chosen = [_workload(item) for item in (WORKLOADS if workloads is None else workloads)]
    asked = [_contender(item) for item in (CONTENDERS if contenders is None else contenders)]
    place = device_of(CALL, device)
    settings = _Settings(tuple(quantities), rounds, warmups, memory, place, clock, note)
    with torch.enable_grad(), on_threads(threads), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        where = environment(place)
        rows = [row for workload in chosen for row in _rows(workload, asked, settings)]
    return BenchReport(
        rows=tuple(rows),
        workloads={workload.name: workload.about for workload in chosen},
        rounds=rounds,
        warmups=warmups,
        environment=where,
        notes=tuple(dict.fromkeys(_note(w.message) for w in caught)),
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


def _note(warning: Warning | str) -> str:
    """A warning in a line; torch adds where it was built, which says nothing here."""
    text = " ".join(str(warning).split()).partition(" (Triggered internally")[0]
    return f"{type(warning).__name__} raised: {text[:300]}"


def _rows(workload: Workload, contenders: Sequence[Contender], settings: _Settings) -> list[BenchRow]:
    """The rows of one workload: what contenders answer, how long they take, what they hold."""
    note = settings.note
    note(f"{workload.name}: the answers in float64")
    problem = _Problem.of(workload, settings)
    planned = [
        (contender, quantity)
        for contender in _plain_first(contenders)
        for quantity in contender.quantities
        if quantity in settings.quantities or quantity not in QUANTITIES
    ]
    entries, rows = [], []
    for contender, quantity in planned:
        note(f"{workload.name}: {contender.name}, {quantity}")
        entry = Entry(contender.make(problem.case, quantity))
        rows.append(_first(problem, contender, quantity, entry, settings))
        entries.append(entry)
    for done in interleave(entries, settings.rounds, settings.clock, settings.device):
        note(f"{workload.name}: round {done} of {settings.rounds}")
    note(f"{workload.name}: memory")
    return [_finished(row, entry, entries[0].times, settings) for row, entry in zip(rows, entries, strict=True)]


def _plain_first(contenders: Sequence[Contender]) -> list[Contender]:
    """The base line of the ratios, also where it was not asked for."""
    plain = [contender for contender in contenders if contender.name == PLAIN.name]
    return [*(plain or [PLAIN]), *[contender for contender in contenders if contender.name != PLAIN.name]]


@dataclass(frozen=True)
class _Problem:
    """A case, its first samples in float64, and the answers for both."""

    case: Case
    few: Case
    truth: Truth
    truth_of_few: Truth

    @classmethod
    def of(cls, workload: Workload, settings: _Settings) -> _Problem:
        case = workload.case(settings.device)
        gram = "gram" in settings.quantities
        exact = case.in_float64()
        truth = Truth.of(exact, gram=gram)
        few = dataclasses.replace(exact.first(FEW), max_norm=truth.max_norm)
        case = dataclasses.replace(case, max_norm=truth.max_norm)
        return cls(case, few, truth, Truth.of(few, gram=gram))


def _first(problem: _Problem, contender: Contender, quantity: str, entry: Entry, settings: _Settings) -> BenchRow:
    """The first call, compared, and the other warm-up calls."""
    row = BenchRow(problem.case.workload.name, contender.name, quantity)
    try:
        result, first = entry.timed(settings.clock, settings.device)
        row = dataclasses.replace(row, first=first)
        if quantity in QUANTITIES:
            error = problem.truth.error(quantity, result)
            again, _ = Entry(contender.make(problem.few, quantity)).timed(time.perf_counter, settings.device)
            error64 = problem.truth_of_few.error(quantity, again)
            row = dataclasses.replace(row, error=error, error64=error64, verdict=_verdict(error, error64, problem.case))
            del result, again
        for _ in range(settings.warmups - 1):
            entry.timed(settings.clock, settings.device)
    except Failed as error:
        entry.failure = str(error)
    return row


def _verdict(error: float, error64: float, case: Case) -> str:
    """Whether an error that was measured at the workload's precision and in float64 is rounding."""
    u, u64 = (unit_roundoff(dtype) for dtype in (_dtype(case), torch.float64))
    vanishes = is_rounding(low=error, high=error64, scale_low=1.0, scale_high=1.0, u_low=u, u_high=u64)
    return "rounding" if vanishes and error <= math.sqrt(u) else "wrong"


def _finished(row: BenchRow, entry: Entry, plain: Sequence[float], settings: _Settings) -> BenchRow:
    """The row with its times and its memory; a contender that failed once has neither."""
    if entry.failure is None and settings.memory:
        try:
            row = dataclasses.replace(row, peak=peak_bytes(entry.call, settings.device))
        except Exception as error:  # such as no memory, beside what the profiler holds
            entry.failure = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if entry.failure is not None:
        return dataclasses.replace(row, verdict="failed", failure=entry.failure)
    return dataclasses.replace(row, times=tuple(entry.times), ratios=ratios(entry.times, plain))


def _dtype(case: Case) -> torch.dtype:
    return next(iter(case.model.params.values())).dtype


def _workload(item: Any) -> Workload:
    if isinstance(item, Workload):
        return item
    if not isinstance(item, str):
        raise TypeError(message(CALL, got=f"{item!r} as workload", expected="a name or a Workload"))
    one_of(CALL, "workload", item, WORKLOADS)
    return WORKLOADS[item]


def _contender(item: Any) -> Contender:
    if isinstance(item, Contender):
        return item
    if not isinstance(item, str):
        raise TypeError(message(CALL, got=f"{item!r} as contender", expected="a name or a Contender"))
    return named(CALL, item)
