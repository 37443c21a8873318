"""Probes of the learning rate and of weight decay against the loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..._tree import Tensors, norm
from . import _limits
from ._case import Case
from ._finding import Finding, NotRun
from ._loss import against_constant
from ._outputs import set_rate

_ADAM = (torch.optim.Adam, torch.optim.AdamW)


def _group(case: Case) -> dict[str, Any]:
    """The group of the largest rate."""
    if case.optimizer is None or not case.rates:
        raise NotRun("no optimizer was given, or none with a rate")
    return max(case.optimizer.param_groups, key=lambda group: float(group.get("lr", 0.0)))


def _later(group: dict[str, Any]) -> float:
    """The rate that a scheduler began with, 0 without one: a warm-up comes back to it."""
    return float(group.get("initial_lr", 0.0))


def moves(case: Case) -> Iterator[Finding]:
    """A rate of 0, and steps that are nothing beside the weights."""
    group = _group(case)
    if not any(case.rates):
        text, fix = "every group's rate is 0", set_rate(1e-3) + "  # and look at the scheduler"
        later = _later(group)
        text += f"; a scheduler began at {later:g}: a warm-up's first step is 0" if later else ""
        yield Finding("rate_zero", "note" if later else "severe", text, fix, "certain")
        return
    if group.get("maximize", False):
        fix = "for group in optimizer.param_groups: group['maximize'] = False"
        yield Finding("ascent", "severe", "maximize=True: steps go uphill", fix, "certain")
    params = case.problem.model.params
    share = norm(case.descent.moved) / (norm(params) or 1.0)
    if not norm(_held(case)):
        raise NotRun("no gradient comes to what the optimizer holds")
    due = share * max(1.0, _later(group) / float(group["lr"]))
    if isinstance(case.optimizer, _ADAM) and due < _limits.STILL:  # its steps do not shrink with the gradient
        text = f"a step moves weights by {share:.2g} of their size, below {_limits.STILL:g}"
        yield Finding("rate_too_small", "severe", text, set_rate(1e-3), "likely")


def _held(case: Case) -> Tensors:
    """Gradients of the model's parameters that the optimiser holds."""
    groups = [] if case.optimizer is None else case.optimizer.param_groups
    there = {id(value) for group in groups for value in group["params"]}
    named = {} if case.module is None else dict(case.module.named_parameters())
    return {name: g for name, g in case.gradient.items() if name in named and id(named[name]) in there}


def decay(case: Case) -> Iterator[Finding]:
    """Weight decay against the gradient, or for decoupled decay against a step."""
    group = _group(case)
    weight_decay = float(group.get("weight_decay", 0.0))
    if not weight_decay:
        raise NotRun("no weight decay")
    own = {id(value) for value in group["params"]}
    names = {n for n, value in case.module.named_parameters() if id(value) in own} if case.module is not None else set()
    params = {n: value for n, value in case.problem.model.params.items() if n in names}
    gradient = {n: case.gradient[n] for n in params}
    pull, push = weight_decay * norm(params), norm(gradient)
    what = "|gradient|"
    if isinstance(case.optimizer, torch.optim.AdamW) or group.get("decoupled_weight_decay", False):
        push, what = sum(value.numel() for value in params.values()) ** 0.5, "the norm of a step over the rate"
    if push > 0 and pull > _limits.DECAY * push:
        text = f"decay |weight| is {pull:.3g}, {what} {push:.3g}: {pull / push:.3g} times, above {_limits.DECAY:g}"
        due = weight_decay * push / pull / 100
        fix = f"for group in optimizer.param_groups: group['weight_decay'] = {due:.1g}"
        yield Finding("decay_overpowers", "severe", text, fix, "likely")


def grows(case: Case) -> str:
    """The symptom: the loss is not lower after some steps on copies, or a step is nothing beside the weights."""
    if case.optimizer is None or case.module is None or not any(case.rates):
        return ""
    if not case.falls:
        return "the loss grows over some steps"
    small = norm(case.descent.moved) < 10 * _limits.STILL * norm(case.problem.model.params)
    return "steps are small beside the weights" if small else ""


def curvature(case: Case) -> Iterator[Finding]:
    """The rate against the largest that is stable on the quadratic model.

    For gradient descent with momentum b that is 2 (1 + b) / lambda, with Nesterov's 2 (1 + b) / ((1 + 2 b) lambda)
    (Cohen et al. 2021, arXiv 2103.00065, appendix B). For Adam lambda is that of D H D, D^2 = 1 / (sqrt(v) + eps), and
    the limit (2 + 2 b1) / (1 - b1) / lambda (Cohen et al. 2022, arXiv 2207.14484, eq. 4); its steps are of the size of
    the rate whatever the curvature, so that too small a rate is a matter of `moves`.
    """
    group = _group(case)
    rate = float(group["lr"])
    if isinstance(case.optimizer, torch.optim.SGD):
        b = float(group["momentum"])
        limit = 2 * (1 + b) / ((1 + 2 * b) if group["nesterov"] else 1.0)
        top = case.curvature.sharpness + float(group["weight_decay"])
    elif isinstance(case.optimizer, _ADAM):
        b = float(group["betas"][0])
        limit = (2 + 2 * b) / (1 - b)
        top = case.curvature_in(_preconditioner(case, case.optimizer, float(group["eps"]))).sharpness
    else:
        raise NotRun(f"no limit is known for {type(case.optimizer).__name__}")
    if top <= 0:
        raise NotRun("the curvature is not positive: there is no limit")
    largest = limit / top
    if rate > largest and not case.falls:
        text = f"rate {rate:.3g} above {limit:.3g} / {top:.4g} = {largest:.3g}; the loss goes "
        text += f"{case.descent.losses[0]:.3g} to {case.descent.losses[-1]:.3g} in {_limits.STEPS} steps"
        # where no rate in use would do, gradients are the matter
        sure = "possible" if any(row.verdict == "exploding" for row in case.flow.rows) else "likely"
        yield Finding("rate_too_large", "severe", text, set_rate(largest / 4), sure)
    elif isinstance(case.optimizer, torch.optim.SGD) and max(rate, _later(group)) < _limits.SLOW * largest:
        text = f"rate {rate:.3g} below {_limits.SLOW:g} of {limit:.3g} / {top:.4g} = {largest:.3g}"
        learned = _learned(case)
        severity = "note" if learned else "severe"
        yield Finding("rate_too_small", severity, text + learned, set_rate(largest / 4), "likely")


def _learned(case: Case) -> str:
    """What a net that has learned already is told; empty for another."""
    try:
        best, loss = against_constant(case)
    except NotRun:
        return ""
    return f"; the loss is {loss / best:.2g} of the best constant's" if loss < _limits.LEARNED * best else ""


def _preconditioner(case: Case, optimizer: Optimizer, eps: float) -> Tensors:
    """D of each parameter: from the optimiser's second moments, else from the first gradient, as its first step has."""
    assert case.module is not None
    named = dict(case.module.named_parameters())
    out: Tensors = {}
    for name, g in case.gradient.items():
        state = optimizer.state.get(named[name], {})
        root: Tensor = g.detach().abs()
        if "exp_avg_sq" in state:
            beta = float(optimizer.param_groups[0]["betas"][1])
            root = (state["exp_avg_sq"] / (1 - beta ** float(state["step"]))).sqrt()
        out[name] = (root.double() + eps).rsqrt().to(g)
    return out
