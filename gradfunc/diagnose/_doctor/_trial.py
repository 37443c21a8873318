"""The user's own step on copies: what gradient its optimiser gets, and how parameters move."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..._errors import message
from ..._problem import Problem, read
from ..._random import forked
from ..._stateless import stateless
from ..._tree import Tensors, copy_of, map_tensors
from ...audit._case import attempt, devices_of
from ._case import Case
from ._copies import copies
from ._finding import NotRun


@dataclass(frozen=True)
class Turn:
    """One call of the user's step.

    Attributes:
        module: the model as it was before, in the mode that the step left it in.
        problem: of it.
        seen: the gradients that the optimiser had at each call of its `step`; zeros where it had none.
        moved: what was added to each parameter.
        planned: what the optimiser adds to them for that gradient; None where it was not called once.
    """

    module: nn.Module
    problem: Problem
    seen: tuple[Tensors, ...]
    moved: Tensors
    planned: Tensors | None


@dataclass(frozen=True)
class Trial:
    """Two calls, one after the other, on one copy; whether they draw random numbers."""

    turns: tuple[Turn, ...]
    draws: bool


def trial(case: Case) -> Trial:
    """Run it.

    Raises:
        NotRun: no step, or copies on which it fails.
        ValueError: it changed the user's own model.
    """
    if case.step is None or case.optimizer is None:
        raise NotRun("no step was given")
    if case.module is None:
        raise NotRun("the model is no nn.Module")
    module, optimizer = copies(case.module, case.optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in held for p in module.parameters()):
        raise NotRun("the optimizer holds other parameters")
    turns = []
    for _k in range(2):
        before, planner = copies(module, optimizer)
        seen, failed = _call(case, module, optimizer)
        if failed is not None:
            raise NotRun(f"the step fails on copies: {failed}")
        start = {name: value.detach() for name, value in before.named_parameters() if name in case.problem.model.params}
        named = dict(module.named_parameters())
        moved = {name: named[name].detach() - value for name, value in start.items()}
        planned = _planned(before, planner, seen[0]) if len(seen) == 1 else None
        for a, b in zip(before.modules(), module.modules(), strict=True):
            a.training = b.training
        model = stateless(before, in_dims=case.problem.model.in_dims, out_dims=case.problem.model.out_dims)
        problem = read("step(model, optimizer, batch)", model, case.criterion, case.given)
        turns.append(Turn(before, problem, seen, moved, planned))
    return Trial(tuple(turns), _draws(case, turns[0].problem))


def enlarged(case: Case, times: float) -> Tensors | None:
    """What the optimiser sees in a first call where every gradient is so many times as large; None where it sees none.

    A clip that does not bite shows its bound so.
    """
    module, optimizer = copies(case.module, case.optimizer)
    for value in module.parameters():
        if value.requires_grad:
            value.register_hook(lambda g: g * times)  # of our copy
    seen, failed = _call(case, module, optimizer)
    return seen[0] if failed is None and len(seen) == 1 else None


def _call(case: Case, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[tuple[Tensors, ...], str | None]:
    """One call of the user's step on copies: the gradients at each call of the optimiser's; what it raised."""
    assert case.module is not None
    assert case.step is not None
    names = {value: name for name, value in module.named_parameters() if name in case.problem.model.params}
    seen: list[Tensors] = []

    def note(_: Any, args: Any, kwargs: Any) -> None:
        seen.append({n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for p, n in names.items()})

    handle = optimizer.register_step_pre_hook(note)
    batch = map_tensors(copy_of, case.given)
    with _Untouched(case.module), torch.enable_grad(), forked(case.seed, 0, devices=devices_of(case.problem)):
        _, failed = attempt(functools.partial(case.step, module, optimizer, batch))
    handle.remove()
    case.count.forward, case.count.backward = case.count.forward + 1, case.count.backward + 1  # at least
    return tuple(seen), failed


def _planned(module: nn.Module, optimizer: torch.optim.Optimizer, seen: Tensors) -> Tensors | None:
    module, optimizer = copies(module, optimizer)
    named = dict(module.named_parameters())
    before = {name: named[name].detach().clone() for name in seen}
    for name, g in seen.items():
        named[name].grad = g.clone()  # of our copy: an optimiser of torch reads it there
    _, failed = attempt(optimizer.step)
    return None if failed is not None else {name: named[name].detach() - value for name, value in before.items()}


def _draws(case: Case, problem: Problem) -> bool:
    """Whether two seeds give two losses: gradients of parts of the batch then cannot be repeated."""
    losses = []
    for seed in (case.seed, case.seed + 1):
        other = Case(problem, (problem,), case.given, case.module, None, None, seed, count=case.count)
        losses.append(other.loss_of(problem, problem.model.params)[1].detach())
    return not torch.equal(*losses)


class Touched(ValueError):
    """The step changed the user's own model."""


class _Untouched:
    """Puts the user's model back and raises if it was changed inside."""

    def __init__(self, module: nn.Module) -> None:
        self.held: list[Tensor] = [*module.parameters(), *module.buffers()]
        self.values = [value.detach().clone() for value in self.held]
        self.versions = [value._version for value in self.held]
        self.grads = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in module.parameters()]

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        changed = [v._version for v in self.held] != self.versions
        for p, grad, value in self.grads:
            # read and written here alone: to see that the user's step left it, and to put it back
            same = p.grad is grad and (grad is None or value is None or torch.equal(grad, value))
            if not same:
                changed, p.grad = True, value
        if changed:
            with torch.no_grad():
                for tensor, value in zip(self.held, self.values, strict=True):
                    tensor.copy_(value)
            raise Touched(
                message(
                    "step(model, optimizer, batch)",
                    got="a change of your own model (it was put back)",
                    expected="a step that touches its arguments only",
                    do="Use the model and the optimizer that it is called with.",
                )
            )
