"""`gf.diagnose.find_nonfinite`: the call."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..._errors import kind_of, message
from ..._nonfinite import Origin, all_finite
from ..._problem import Problem
from ..._stateless import PureModel, Stateless
from ...audit._case import attempt
from ...audit._options import asked_problem, name_of
from ._faults import FAULTS, Fault, recognized
from ._passes import CALL, Outcome, plain, watched
from ._report import ALSO, CAUSED, NonfiniteReport
from ._search import MOST, Samples, search


def find_nonfinite(
    model: nn.Module | PureModel | Stateless,
    criterion: Any,
    batch: Any,
    *,
    seed: int = 0,
    faults: Sequence[Fault] | None = None,
) -> NonfiniteReport:
    """Where a NaN or infinity in the loss or the gradients came from: sample, layer, operation, and its safe form.

    A healthy batch costs one forward and one backward pass. Where the loss or a gradient is not finite, the passes run
    again under a mode that follows such numbers to the first operation that made one of finite ones; masks of -inf and
    other infinities that reach neither loss nor gradient are no fault. The samples are found by halves, the first of
    them is run alone, and again in float64. Nothing is hooked; `.grad` and running statistics are left alone.

    Args:
        model: an `nn.Module` in the mode you train it in, a pure model, or `gf.stateless(...)`.
        criterion: `criterion(output, target)`, or `gf.whole(fn)`.
        batch: `(*inputs, target)`, or a mapping with a "target".
        seed: of draws in the model (dropout).
        faults: what to recognise, first entries first; None for all of `gf.diagnose.FAULTS`.

    Raises:
        TypeError: arguments of another form.
        ValueError: no trainable parameter, a loss that depends on none, an empty batch.

    Example:
        >>> import gradfunc as gf
        >>> def lengths(model, x):
        ...     return model(x).square().sum(-1).sqrt()
        >>> x = torch.randn(64, 3)
        >>> x[17] = 0
        >>> found = gf.diagnose.find_nonfinite(torch.nn.Linear(3, 2, bias=False), gf.whole(lengths), x)
        >>> found.samples, found.operation, found.direction, found.pattern
        ((17,), 'aten.sqrt', 'backward', 'norm at 0')
        >>> found.code, found.precision
        ('return model(x).square().sum(-1).sqrt()', 'also in float64')
    """
    faults = FAULTS if faults is None else faults
    if not all(isinstance(fault, Fault) for fault in faults):
        got = next(kind_of(fault) for fault in faults if not isinstance(fault, Fault))
        raise TypeError(message(CALL, got=f"{got} among faults", expected="gf.diagnose.Fault"))
    problem, dtype = asked_problem(CALL, model, criterion, batch, dtype=None, device=None, batch_size=None, seed=seed)
    try:
        seen = plain(problem, seed)
    except Exception:  # of an operation that refuses NaN, or the user's own, which passes
        seen = watched(problem, seed)
    if seen.finite:
        return NonfiniteReport(problem.size, name_of(dtype))
    origin = watched(problem, seed).origin
    samples = Samples((), False) if origin is None else _samples(problem, seed, origin)
    there, of = problem, None
    if samples.positions:
        last = samples.positions[0 if samples.alone else -1]
        there, of = problem.rows(samples.positions[0], last + 1), problem.size
    again, failed = attempt(lambda: watched(there, seed, of=of, layers=True))
    if failed is not None:  # a batch norm may refuse a sample alone
        there, of = problem, None
    elif again.origin is not None:
        origin = again.origin
    return _report(problem, name_of(dtype), seen, samples, origin, _precision(there, seed, of), faults)


def _samples(problem: Problem, seed: int, origin: Origin) -> Samples:
    if "its own" in origin.facts or (origin.given and not _of_batch(origin.given)):
        return Samples((), True)  # parameters break them all

    def breaks(start: int, stop: int) -> bool:
        part = problem.rows(start, stop)
        if origin.given:
            return not all_finite(part.batch)
        found, _ = attempt(lambda: watched(part, seed, of=problem.size, ranges=False).origin)
        return found is not None and found.same == origin.same

    return search(problem.size, breaks)


def _of_batch(given: str) -> bool:
    return given.startswith(("input", "the "))


def _precision(problem: Problem, seed: int, of: int | None) -> str:
    """What float64 gives for the same samples."""
    run = functools.partial(watched, problem.cast(torch.float64), seed, of=of, widen=True)
    found, failed = attempt(run)
    if failed is not None:
        return f"cannot tell: it does not run in float64 ({failed})"
    if found.finite:
        return CAUSED
    narrow = [i.dtype for i in (() if found.origin is None else found.origin.inputs) if i.dtype in _NARROW]
    return f"cannot tell: the operation stays in {narrow[0]}" if narrow else ALSO


_NARROW = ("float16", "bfloat16", "float32")


def _report(
    problem: Problem,
    dtype: str,
    seen: Outcome,
    samples: Samples,
    origin: Origin | None,
    precision: str,
    faults: Sequence[Fault],
) -> NonfiniteReport:
    fault = recognized(origin, seen.loss, faults)
    return NonfiniteReport(
        batch_size=problem.size,
        dtype=dtype,
        what="gradient" if seen.loss else "loss",
        samples=samples.positions,
        alone=samples.alone,
        raised=seen.raised,
        parameters=seen.gradients[:MOST],
        direction="backward" if seen.loss else "forward",
        operation=origin.operation if origin else "",
        kernel=origin.kernel if origin else "",
        layer=(origin.layer or origin.after) if origin else "",
        after=origin.after if origin else "",
        where=origin.where if origin else "",
        code=origin.code if origin else "",
        given=origin.given if origin else "",
        ranges=origin.inputs if origin else (),
        kernel_ranges=origin.kernel_inputs if origin else (),
        precision=precision,
        pattern=fault.name if fault else "",
        why=fault.why if fault else "",
        safe=fault.safe if fault else "",
    )
