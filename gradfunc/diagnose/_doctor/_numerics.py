"""Probes of numbers: not finite, rounded away, off in this precision; a backward pass that is no derivative."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from ..._random import forked
from ..._tree import norm, subtract
from ...audit._case import Case as Plain
from ...audit._case import attempt, devices_of
from .._nonfinite import find_nonfinite
from .._slopes import culprits, judged
from . import _limits
from ._case import Case
from ._finding import Finding, NotRun
from ._outputs import set_rate


def finite(case: Case) -> Iterator[Finding]:
    """A loss or gradient that is not finite, by `gf.diagnose.find_nonfinite`."""
    values = [g for g in case.first.gradients.values() if g is not None]
    if math.isfinite(case.loss) and all(bool(g.isfinite().all()) for g in values):
        return
    found, failed = attempt(
        lambda: find_nonfinite(case.problem.model, case.criterion, case.problem.batch, seed=case.seed)
    )
    if found is None:
        text, fix = (
            f"loss {case.loss:g}; its origin could not be found: {failed}",
            "# with torch.autograd.detect_anomaly():",
        )
        yield Finding("nonfinite", "severe", text, fix, "certain")
        return
    what = found.pattern or found.operation or found.given or found.what
    text = (
        f"{found.what} is not finite, from {what} ({found.direction}); {found.precision}; 0 samples may be, here are "
    )
    text += f"{list(found.samples)}" if found.samples else "all"
    where = found.where or found.layer or found.given
    yield Finding("nonfinite", "severe", text, f"# {found.safe or 'x.clamp_min(eps)'}", "certain", where)


def _all_finite(case: Case) -> None:
    if not all(bool(g.isfinite().all()) for g in case.gradient.values()) or not math.isfinite(case.loss):
        raise NotRun("loss or gradients are not finite")


def lost(case: Case) -> Iterator[Finding]:
    """Entries that a step leaves as they were although they have a gradient."""
    _all_finite(case)
    if not any(case.rates):
        raise NotRun("no optimizer was given, or its rate is 0")
    moved, own = case.descent.moved, [n for n, g in case.gradient.items() if bool(g.any())]
    due = sum(int((case.gradient[name] != 0).sum()) for name in own)
    still = sum(int(((case.gradient[name] != 0) & (moved[name] == 0)).sum()) for name in own)
    if case.optimizer is not None and case.module is not None:
        there = {id(value) for group in case.optimizer.param_groups for value in group["params"]}
        if not all(id(value) in there for value in case.module.parameters()):
            raise NotRun("the optimizer does not hold all parameters")
    if due and still > _limits.LOST * due:
        u = torch.finfo(next(iter(case.gradient.values())).dtype).eps / 2
        text = f"{still / due:.0%} of entries with a gradient do not move: their update is below {u:.1g} of the weight"
        narrow = u > torch.finfo(torch.float32).eps
        fix = f"{_cast(case, 'float')}  # weights in float32, autocast for the passes"
        if not narrow:  # then rate or gradients are too small for any precision
            fix = set_rate(max(case.rates) * 100) + "  # or mend what makes gradients so small"
        yield Finding("update_lost", "severe" if narrow else "warning", text, fix, "certain" if narrow else "possible")


def _cast(case: Case, kind: str) -> str:
    """Model and data in another type."""
    given = {"x": next(iter(case.problem.args), None), "y": case.problem.target}
    floats = [name for name, value in given.items() if isinstance(value, torch.Tensor) and value.is_floating_point()]
    return "; ".join(f"{name} = {name}.{kind}()" for name in ("model", *floats))


def precision(case: Case) -> Iterator[Finding]:
    """The gradient against that of float64."""
    _all_finite(case)
    if next(iter(case.gradient.values())).dtype == torch.float64:
        return
    exact = {name: g for name, g in case.in_double.gradients.items() if g is not None}
    here = {name: case.gradient[name].double() for name in exact}
    scale = norm(exact)
    if not all(bool(g.isfinite().all()) for g in exact.values()):
        raise NotRun("the gradient is not finite in float64")
    off = norm(subtract(here, exact)) / (scale or math.inf)
    if off > _limits.PRECISION and off * scale > _noise_of_sum(case):
        name = str(next(iter(case.gradient.values())).dtype).removeprefix("torch.")
        text = f"|gradient in {name} - in float64| is {off:.2g} of its norm, above {_limits.PRECISION:g}"
        fix = f"{_cast(case, 'double')}  # or write the subtraction, sum or small scale otherwise"
        yield Finding("precision", "severe", text, fix, "certain")


def _noise_of_sum(case: Case) -> float:
    """What rounding leaves of gradients of samples that cancel: half of the digits of those of half of the batch."""
    u = torch.finfo(next(iter(case.gradient.values())).dtype).eps / 2
    if case.problem.size < 2:
        return 0.0
    problem = case.problem.rows(0, case.problem.size // 2).cast(torch.float64)
    half = case.pass_at(problem, problem.model.params).gradients
    return math.sqrt(u) * norm({name: g for name, g in half.items() if g is not None})


def custom(case: Case) -> str:
    """The symptom: the graph has a `torch.autograd.Function` of the user's, or hooks."""
    seen: set[Any] = set()
    stack = [case.first.loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            return f"the graph has {type(node).__name__}"
        stack += [parent for parent, _ in node.next_functions]
    hooked = case.module is not None and any(m._backward_hooks or m._backward_pre_hooks for m in case.module.modules())
    return "modules have backward hooks" if hooked else ""


def backward(case: Case) -> Iterator[Finding]:
    """Directional derivatives in float64, layer by layer."""
    _all_finite(case)
    problem = case.problem.cast(torch.float64)
    with forked(case.seed, 5, devices=devices_of(problem)):
        plain, failed = attempt(lambda: Plain.of(problem, case.seed))
        if plain is None:
            raise NotRun(f"the model does not run in float64: {failed}")
        value = plain.forward.elements if plain.forward.elements is not None else plain.forward.scalar
        assert value is not None
        gradient = plain.gradient(torch.ones_like(value))
        case.count.forward, case.count.backward = case.count.forward + 1, case.count.backward + 1
        whole = judged(plain, gradient, list(problem.model.params), case.seed)
        found = list(culprits(problem, case.seed)) if whole.verdict != "rounding" else []
    case.count.forward += 25  # of one direction
    if whole.verdict == "cannot tell" and not found:
        raise NotRun("the loss is not smooth here")
    fix = "# torch.autograd.gradcheck(Function.apply, inputs) shows it: mend its backward"
    for name, slope in found:
        text = f"its backward gives {slope.claimed:.6g}, central differences {slope.measured:.6g}"
        text += f" +- {slope.uncertainty:.1g}"
        yield Finding("wrong_backward", "severe", text, fix, "certain", name)
    if whole.verdict == "wrong" and not found:
        text = f"autograd says {whole.claimed:.6g}, central differences {whole.measured:.6g}; no layer alone is wrong"
        yield Finding("wrong_backward", "severe", text, fix, "certain", "the criterion, or hooks")


def repeats(case: Case) -> Iterator[Finding]:
    """Two passes with one seed."""
    here = case.first.loss.detach()
    if not case.repeats and bool(here.isfinite().all()):
        text = f"losses {float(here):.9g} and {float(case.again):.9g} of one seed; equal is asked"
        fix = "# draw by torch's generators; torch.use_deterministic_algorithms(True)"
        yield Finding("nondeterministic", "warning", text, fix, "certain")
