"""`gf.testing.check_gradients`: every check on one model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from .._errors import message
from .._problem import Problem
from .._random import forked
from .._rounding import other_precisions
from .._stateless import PureModel, Stateless
from ..audit._case import attempt, devices_of, value_of
from ..audit._independence import independence
from ..audit._options import asked_problem, name_of
from ._agreement import engines, reductions, weights
from ._certify import Certified, certificate_rows
from ._effects import aliases, dtypes, purity, repetition
from ._hooks import check_hooks, forward_hooks
from ._purity import Snapshot
from ._report import CheckReport, CheckRow
from ._side import Side, Sides
from ._slopes import slopes
from ._verdict import Judge


def check_gradients(
    model: nn.Module | PureModel | Stateless,
    criterion: Any,
    batch: Any,
    *,
    dtype: str | torch.dtype | None = None,
    device: torch.device | str | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> CheckReport:
    """Check the gradients of your own model: is each what it should be, and if not, which layer is at fault?

    The checks: every engine against one autograd call a sample; `none`, `sum` and `mean`, any split and any order of
    the batch; independence of samples; the criterion's own sum and mean; the certificate of `certify`; dtypes, shared
    storage, repetition and purity; hooks that change gradients; and layer by layer, whether the gradient is the
    derivative, by central differences in float64. Differences are judged at two precisions, never by a tolerance.

    Costs some `6 n` backward passes at each of two precisions and 25 forward passes a layer, and holds a few times n
    gradients: use the first samples of a batch. Nothing of the user's changes; hooks are taken off copies.

    Args:
        model: an `nn.Module`, in the mode you train it in, or a stateless model.
        criterion: `criterion(output, target)` whose reduction can be varied, or that gives one loss a sample; or
            `gf.whole(fn)`.
        batch: `(*inputs, target)`, or a mapping (its entry "target" is the target).
        dtype: "float64", "float32", "bfloat16" or "float16"; default: the parameters' own.
        device: where to run; default: where the parameters are.
        batch_size: use the first samples of the batch only.
        seed: of dropout and other draws, and of directions.
        progress: called with the name of each stage.

    Raises:
        TypeError: a model, criterion or batch of another form.
        ValueError: unknown dtype or device; an empty batch; no trainable parameter, or none that the loss depends on.

    Example:
        >>> import gradfunc as gf
        >>> x, y = torch.randn(8, 4), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
        >>> gf.testing.check_gradients(nn.Linear(4, 3), nn.CrossEntropyLoss(), (x, y)).ok
        True
        >>> mixing = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))    # in train mode
        >>> report = gf.testing.check_gradients(mixing, nn.CrossEntropyLoss(), (x, y))
        >>> report.ok, report.row("independence").parameter
        (False, '1')
    """
    call = "gf.testing.check_gradients(model, criterion, batch)"
    note = progress or (lambda stage: None)
    options: dict[str, Any] = {"dtype": dtype, "device": device, "batch_size": batch_size, "seed": seed}
    problem, asked = asked_problem(call, model, criterion, batch, **options)
    module = problem.model.module
    before = Snapshot.of(module, batch)
    with (
        warnings.catch_warnings(record=True) as caught,
        torch.enable_grad(),
        forked(seed, 3, devices=devices_of(problem)),
    ):
        warnings.simplefilter("always")
        note("the forward pass")
        sides, other = _sides(problem, asked, seed)
        if not value_of(sides.asked.case.forward).requires_grad:
            expected = "a loss that depends on at least one of them"
            raise ValueError(message(call, got="no differentiable parameter in the loss", expected=expected))
        rows = list(_rows(sides, seed, note))
    rows.append(purity(before, module))
    notes = [f"{type(w.message).__name__} raised: {w.message}" for w in caught]
    if sides.other is None:
        notes.append(f"could not be repeated in {name_of(other)}: {sides.why_not}")
    if module is not None and (hooked := forward_hooks(module)):
        notes.append(f"part of the function, and left where they are: {', '.join(hooked[:3])}"
                     + (f" and {len(hooked) - 3} more" if len(hooked) > 3 else ""))  # fmt: skip
    return CheckReport(
        title=f"Gradients of {type(module).__name__ if module is not None else 'a pure model'}",
        batch_size=problem.size,
        dtype=name_of(asked),
        other_dtype=name_of(other) if sides.other is not None else None,
        rows=tuple(rows),
        notes=tuple(dict.fromkeys(" ".join(text.split())[:300] for text in notes)),
    )


def _sides(problem: Problem, asked: torch.dtype, seed: int) -> tuple[Sides, torch.dtype]:
    first = Side.of(problem, seed)
    why_not = ""
    for dtype in other_precisions(asked):
        second, failed = attempt(partial(_side, problem, dtype, seed))
        if second is not None:
            return Sides(first, second, ""), dtype
        why_not = why_not or failed or ""
    return Sides(first, None, why_not), other_precisions(asked)[0]


def _side(problem: Problem, dtype: torch.dtype, seed: int) -> Side:
    return Side.of(problem.cast(dtype), seed)


def _rows(sides: Sides, seed: int, note: Callable[[str], None]) -> Iterator[CheckRow]:
    judge = Judge(sides.asked.u, None if sides.other is None else sides.other.u, sides.why_not)
    note("independence of samples")
    yield _independence(sides, seed)
    note("engines")
    yield from engines(sides, judge)
    note("reductions")
    yield from reductions(sides, judge)
    note("the criterion")
    yield from weights(sides, judge)
    note("the certificate")
    yield from _certificate(sides, judge)
    note("dtypes, storage and repetition")
    yield dtypes(sides)
    yield aliases(sides)
    yield repetition(sides, judge)
    note("hooks")
    yield from check_hooks(sides, judge)
    note("slopes, layer by layer")
    yield from _slopes(sides, seed)


def _independence(sides: Sides, seed: int) -> CheckRow:
    compares = "losses of half of the samples while the other half changes"
    found, failed = attempt(lambda: independence(sides.asked.problem, seed))
    if found is None or found.independent is None:
        return CheckRow("independence", compares, verdict="not run", cause=failed or found.why)
    if found.independent:
        return CheckRow("independence", compares)
    if sides.asked.case.draws is None:  # RReLU draws for negative inputs only: one sample's shift those of the next
        cause = "losses moved, but the model's random draws may depend on its inputs; use .eval()"
        return CheckRow("independence", compares, verdict="cannot tell", cause=cause)
    sample = None if found.coupled is None else found.coupled[0]
    cause = f"Samples meet in {found.layer}: {found.why}."
    return CheckRow("independence", compares, verdict="wrong", parameter=found.layer, sample=sample, cause=cause)


def _certificate(sides: Sides, judge: Judge) -> Iterator[CheckRow]:
    """The certificate of the first engine that runs."""
    for engine in ("factored", "vmap", "loop", "batched, factored", "batched, rows looped"):
        first, failed = attempt(partial(_certified, sides.asked, engine))
        if first is None:
            continue
        second, why_not = None, None
        if sides.other is not None:
            second, why_not = attempt(partial(_certified, sides.other, engine))
        if second is None:
            judge = judge._replace(u_other=None, why_not=why_not or sides.why_not)
        yield from certificate_rows(first, second, judge, f"certificate, {engine}: ")
        return
    yield CheckRow("certificate", "extra backward passes, norms, Gram, dot", verdict="not run", cause=failed or "")


def _certified(side: Side, engine: str) -> Certified:
    return Certified.of(side.function(engine), side.problem.model.params, tuple(side.tensors), {})


def _slopes(sides: Sides, seed: int) -> Iterator[CheckRow]:
    compares = "the derivative along parameters, and central differences in float64"
    rows, failed = attempt(lambda: list(slopes(sides.asked.problem.cast(torch.float64), seed)))
    yield from rows if rows is not None else [CheckRow("slope", compares, verdict="not run", cause=failed or "")]
