"""The user's own step on copies: what gradient its optimiser gets, and how parameters move."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..._errors import message
from ..._problem import Problem, read
from ..._random import forked
from ..._stateless import stateless
from ..._tree import Tensors, copy_of, map_tensors, tensors_of
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
        given: the gradients that backward passes brought, added up, and how many passes there were.
        after: the gradients when the step returned.
        training: whether the model was in train mode at each of its forward passes.
        narrow: whether a layer gave a type of less than float32's precision, as under autocast.
        moved: what was added to each parameter.
        planned: what the optimiser adds to them for that gradient; None where it was not called once.
    """

    module: nn.Module
    problem: Problem
    seen: tuple[Tensors, ...]
    given: tuple[Tensors, int]
    after: Tensors
    training: tuple[bool, ...]
    narrow: bool
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
        NotRun: no step, or one with a closure.
        StepFails: it raises on copies.
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
        ran = _call(case, module, optimizer)
        if ran.failed is not None:
            raise StepFails(ran.failed)
        if ran.closure:
            raise NotRun("the optimizer takes a closure: its gradients come inside of its step")
        start = {name: value.detach() for name, value in before.named_parameters() if name in case.problem.model.params}
        named = dict(module.named_parameters())
        moved = {name: named[name].detach() - value for name, value in start.items()}
        planned = _planned(before, planner, ran.seen[0]) if len(ran.seen) == 1 else None
        for a, b in zip(before.modules(), module.modules(), strict=True):
            a.training = b.training
        model = stateless(before, in_dims=case.problem.model.in_dims, out_dims=case.problem.model.out_dims)
        problem = read("step(model, optimizer, batch)", model, case.criterion, case.given)
        given = ran.given, max(ran.passes.values(), default=0)
        narrow = any(torch.finfo(dtype).eps > torch.finfo(torch.float32).eps for dtype in ran.dtypes)
        turns.append(
            Turn(before, problem, tuple(ran.seen), given, ran.after, tuple(ran.training), narrow, moved, planned)
        )
    return Trial(tuple(turns), _draws(case, turns[0].problem))


def enlarged(case: Case, times: float) -> Tensors | None:
    """What the optimiser sees in a first call where every gradient is so many times as large; None where it sees none.

    A clip that does not bite shows its bound so.
    """
    module, optimizer = copies(case.module, case.optimizer)
    for value in module.parameters():
        if value.requires_grad:
            value.register_hook(lambda g: g * times)  # of our copy
    ran = _call(case, module, optimizer)
    return ran.seen[0] if ran.failed is None and len(ran.seen) == 1 else None


class StepFails(Exception):
    """The user's step raises."""


@dataclass
class _Ran:
    """What was noted in a call of the step; see `Turn`."""

    names: dict[Tensor, str]
    seen: list[Tensors] = field(default_factory=list)
    given: Tensors = field(default_factory=dict)
    passes: dict[str, int] = field(default_factory=dict)
    after: Tensors = field(default_factory=dict)
    training: list[bool] = field(default_factory=list)
    dtypes: set[torch.dtype] = field(default_factory=set)
    closure: bool = False
    failed: str | None = None

    def gradients(self) -> Tensors:
        """As they are now; zeros where there is none."""
        return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for p, n in self.names.items()}

    def steps(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """The optimiser's step is called."""
        self.seen.append(self.gradients())
        self.closure = self.closure or any(map(callable, (*args, *kwargs.values())))

    def brought(self, name: str, g: Tensor) -> None:
        """A backward pass brings a gradient."""
        self.given[name] = self.given[name] + g if name in self.given else g.clone()
        self.passes[name] = self.passes.get(name, 0) + 1

    def gave(self, out: Any) -> None:
        """A layer gives an output."""
        self.dtypes.update(tensor.dtype for tensor in tensors_of(out) if tensor.is_floating_point())


def _call(case: Case, module: nn.Module, optimizer: torch.optim.Optimizer) -> _Ran:
    """One call of the user's step on copies, with hooks on them."""
    assert case.module is not None
    assert case.step is not None
    names = {value: name for name, value in module.named_parameters() if name in case.problem.model.params}
    ran = _Ran(dict(names.items()))
    handles: list[Any] = [optimizer.register_step_pre_hook(lambda *given: ran.steps(*given))]
    handles.append(module.register_forward_pre_hook(lambda m, _: ran.training.append(m.training)))
    handles += [m.register_forward_hook(lambda m, i, out: ran.gave(out)) for m in module.modules()]
    handles += [p.register_hook(functools.partial(ran.brought, n)) for p, n in names.items() if p.requires_grad]
    batch = map_tensors(copy_of, case.given)
    with (
        _Untouched(case.module, case.optimizer),
        torch.enable_grad(),
        forked(case.seed, 0, devices=devices_of(case.problem)),
    ):
        _, ran.failed = attempt(functools.partial(case.step, module, optimizer, batch))
    for handle in handles:
        handle.remove()
    ran.after = ran.gradients()
    case.count.forward, case.count.backward = case.count.forward + 1, case.count.backward + 1  # at least
    return ran


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
    """Puts the user's model and optimiser back and raises if one was changed inside."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        self.optimizer, self.before = optimizer, None if optimizer is None else optimizer.state_dict()
        self.groups = copy.deepcopy(self.before and self.before["param_groups"])
        self.held: list[Tensor] = [*module.parameters(), *module.buffers()]
        self.values = [value.detach().clone() for value in self.held]
        self.versions = [value._version for value in self.held]
        self.grads = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in module.parameters()]

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        if self.optimizer is not None and self.before is not None:
            now = self.optimizer.state_dict()
            if repr(now["param_groups"]) != repr(self.groups) or len(now["state"]) != len(self.before["state"]):
                self.optimizer.load_state_dict({**self.before, "param_groups": self.groups})
                got = "a change of your own optimizer, as by a scheduler's step (its rates were put back)"
                expected, do = (
                    "a step that touches its arguments only",
                    "Leave the scheduler out of the step given here.",
                )
                raise Touched(message("step(model, optimizer, batch)", got=got, expected=expected, do=do))
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
