"""Probes of the user's own step: what gradient its optimiser gets, against closed forms of the criterion's."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ..._tree import Tensors, add, dot, norm, scale, subtract
from ...audit._case import attempt
from . import _limits
from ._case import Case
from ._clips import largest, late, loose, multiple
from ._finding import Finding, NotRun
from ._trial import StepFails, Trial, Turn, trial

_PARTS = range(2, 9)


def step(case: Case) -> Iterator[Finding]:
    """Run the step twice on copies; name what its gradients are."""
    if case.error:
        raise NotRun("the pass of the first batch fails: see the findings")
    try:
        ran = trial(case)
    except StepFails as error:
        fix = "# step(model, optimizer, batch) is called with a batch of your data"
        yield Finding("step_fails", "severe", f"on copies it raises {error}", fix, "certain")
        return
    first, second = ran.turns
    yield from _mode(case, first)
    if not first.seen:
        moved = any(bool(value.any()) for value in first.moved.values())
        if moved:
            raise NotRun("parameters move, but not by the optimizer's step")
        text, fix = "0 calls of optimizer.step() in a call of yours; 1 is expected", "optimizer.step()"
        yield Finding("no_step", "severe", text, fix, "certain")
        return
    if len(first.seen) > 1 or len(second.seen) != 1:
        raise NotRun(f"{len(first.seen)} and {len(second.seen)} calls of optimizer.step() in two calls of yours")
    yield from _gradients(case, ran)
    yield from late(first.seen[0], first.after)
    yield from loose(case, first.seen[0])
    if first.planned is not None:
        off = norm(subtract(first.moved, first.planned))
        size = max(norm(first.planned), norm(first.moved))
        if off > _limits.SAME * size:
            text = f"|moved - planned by the optimiser| is {off / size:.2g} of it, above {_limits.SAME:g}"
            fix = "optimizer.step()  # and nothing else that writes to parameters"
            yield Finding("moved_otherwise", "warning", text, fix, "certain")


def _mode(case: Case, turn: Turn) -> Iterator[Finding]:
    """A model that is set to eval mode in the step itself."""
    assert case.module is not None
    differ = any(isinstance(m, (_BatchNorm, _DropoutNd)) for m in case.module.modules())
    if differ and case.module.training and turn.training and not any(turn.training):
        text = "the model is in train mode before your step and in eval mode in its forward pass"
        yield Finding("eval_mode", "warning", text, "model.train()  # in the step, before the pass", "certain")


def _gradients(case: Case, ran: Trial) -> Iterator[Finding]:
    first, second = ran.turns
    g, seen = _mean(case, first, first=True), first.seen[0]
    if not norm(g):
        raise NotRun("the criterion's gradient is 0")
    if not norm(seen):
        text = f"the optimiser sees gradients of 0 or none; the criterion's has the norm {norm(g):.3g}"
        fix = "optimizer.zero_grad(); loss.backward(); optimizer.step()  # in this order"
        yield Finding("gradient_zeroed", "severe", text, fix, "certain")
        return
    then, later = _mean(case, second), second.seen[0]
    same = _limits.PRECISION if first.narrow else _limits.SAME
    factor, again = multiple(seen, g, same), multiple(later, then, same)
    kept = add(seen, then if factor is None else scale(then, factor))
    share = multiple(later, kept, same)
    stale = share is not None and (
        again is None or (factor is not None and abs(again - 2 * factor) < 0.5 * abs(factor))
    )
    if stale:
        off = norm(subtract(later, scale(kept, share or 1.0))) / norm(later)
        text = f"the second step's gradient is its own plus the first one's, to {off:.1g}, below {_limits.SAME:g}"
        yield Finding("missing_zero_grad", "severe", text, "optimizer.zero_grad()", "certain")
    elif factor is not None and again is None and (names := _kept(case, seen, then, later, factor, same)):
        text = f"the second step's gradient of {len(names)} of {len(seen)} parameters is its own plus the first one's"
        fix = "optimizer.zero_grad()  # of all parameters"
        yield Finding("missing_zero_grad", "severe", text, fix, "certain", ", ".join(names[:5]))
    if factor is not None:
        yield from _factor(
            first, factor, None if stale else again, norm(later), multiple(first.given[0], g, same), same
        )
    elif not stale:
        yield from _turned(case, ran, g)


def _kept(case: Case, seen: Tensors, then: Tensors, later: Tensors, factor: float, same: float) -> list[str]:
    """Parameters whose gradient of the first step is in that of the second, where all others have their own."""
    assert case.module is not None
    assert case.optimizer is not None
    held = {id(value) for group in case.optimizer.param_groups for value in group["params"]}
    there = {name for name, value in case.module.named_parameters() if id(value) in held}
    names = []
    for name in there & later.keys():
        found = later[name]
        own, both = factor * then[name], factor * then[name] + seen[name]
        near = same * max(float(own.norm()), float(found.norm()))
        if float((found - both).norm()) <= near and float(seen[name].norm()) > near:
            names.append(name)
        elif float((found - own).norm()) > near:
            return []
    return names


def _factor(
    turn: Turn, c: float, again: float | None, later: float, given: float | None, same: float
) -> Iterator[Finding]:
    """What a multiple c of the mean gradient comes from; backward passes gave a multiple `given`."""
    if abs(c - 1) <= same:
        return
    size, passes = norm(turn.seen[0]), turn.given[1]
    told = f"the optimiser sees {c:.6g} times the criterion's gradient"
    whole = round(c)
    if c < 0:
        yield Finding("ascent", "severe", told, "loss.backward()  # of the loss, not of its negative", "certain")
    elif c >= _limits.SCALE and abs(c - 2.0 ** round(math.log2(c))) <= same * c:
        yield Finding("gradient_scale_left", "severe", told, "# scaler.step(optimizer); scaler.update()", "certain")
    elif c > 1 + same and passes == 1:
        fix = f"loss.backward()  # without the factor {c:.4g}, or divide the gradients by it before the step"
        yield Finding("gradient_scale_left", "severe", f"{told}, from one backward pass", fix, "certain")
    elif whole > 1 and abs(c - whole) <= same * c:
        text = f"{told}: {passes} backward passes are added"
        yield Finding("missing_division", "severe", text, f"(loss / {whole}).backward()", "certain")
    elif c < 1 and given is not None and given >= _limits.SCALE:
        text = f"{told}, where backward brought {given:.6g} times it: a clip's norm over a loss scale"
        fix = "# scaler.unscale_(optimizer); torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)"
        yield Finding("clipped_before_unscaling", "severe", text, fix, "certain")
    elif c < 1 and again is not None and abs(size - later) <= same * size:
        if c < 1 / _limits.SIZE:
            text = (
                f"norms {size:.4g} and {later:.4g} in two steps, {c:.2g} of the gradient's, below {1 / _limits.SIZE:g}"
            )
            fix = f"torch.nn.utils.clip_grad_norm_(model.parameters(), {size / c:.2g})"
            yield Finding("clips_always", "warning", text, fix, "likely")
    elif again is not None and abs(again - c) <= same * c:
        text = f"{told}, in both steps"
        yield Finding("step_differs", "warning", text, "loss = criterion(model(x), y); loss.backward()", "certain")


def _turned(case: Case, ran: Trial, g: Tensors) -> Iterator[Finding]:
    """What a gradient of another direction comes from."""
    first = ran.turns[0]
    seen, same = first.seen[0], _limits.PRECISION if first.narrow else _limits.SAME
    bound = largest(seen)
    clipped = {name: value.clamp(-bound, bound) for name, value in g.items()}
    if norm(subtract(clipped, seen)) <= same * norm(seen):
        text = f"entries are clipped to {bound:.3g}; the cosine to the gradient is {_cosine(seen, g):.4f}, not 1"
        fix = f"torch.nn.utils.clip_grad_norm_(model.parameters(), {norm(seen):.2g})"
        yield Finding("clips_by_value", "note", text, fix, "certain")
        return
    if ran.draws:
        raise NotRun("the model draws random numbers: the step's gradient cannot be repeated")
    for k in _PARTS:
        last = _last(case, first, k)
        if last is not None and multiple(seen, last, same) is not None:
            text = f"the optimiser sees the gradient of the last of {k} parts of the batch"
            fix = "optimizer.zero_grad()  # before the first part, not before each"
            yield Finding("only_last_part", "severe", text, fix, "certain")
            return
    off = norm(subtract(seen, g)) / norm(g)
    if off <= same:
        return
    text = f"|yours - the criterion's mean| is {off:.2g} of it, above {same:g}; cosine {_cosine(seen, g):.4f}"
    fix = "loss = criterion(model(x), y); loss.backward()"
    yield Finding("step_differs", "warning", text, fix, "certain")


def _last(case: Case, turn: Turn, k: int) -> Tensors | None:
    n = turn.problem.size
    part = -(-n // k)  # as torch.chunk has it
    start = (n - 1) // part * part
    if part >= n:
        return None
    found, _ = attempt(functools.partial(_gradient, case, turn, start))
    return found  # type: ignore[no-any-return]


def _gradient(case: Case, turn: Turn, start: int) -> Tensors:
    problem = turn.problem.rows(start, turn.problem.size)
    found = case.pass_at(problem, problem.model.params).gradients
    return {name: value * 0 if (g := found[name]) is None else g for name, value in problem.model.params.items()}


def _mean(case: Case, turn: Turn, first: bool = False) -> Tensors:
    """The criterion's gradient where a turn begins; that of the first pass is known, if the step leaves modes alone."""
    assert case.module is not None
    modes = [[m.training for m in module.modules()] for module in (turn.module, case.module)]
    if first and modes[0] == modes[1]:
        return case.gradient
    return _gradient(case, turn, 0)


def _cosine(a: Tensors, b: Tensors) -> float:
    return dot(a, b) / norm(a) / norm(b)
