"""Hooks that a user left on modules or parameters, and what they do to the gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .._certificate import Difference, compare
from .._random import forked
from .._tree import Tensors, norm
from ..audit._case import devices_of, run, value_of
from ._agreement import measured, not_run
from ._report import CheckRow
from ._side import Side, Sides
from ._verdict import Judge

# The dictionaries in which torch keeps hooks that see gradients, as in torch 2.11 to 2.15.
_ON_MODULES = {"_backward_hooks": "backward hook", "_backward_pre_hooks": "backward pre-hook"}
_ON_TENSORS = {"_backward_hooks": "tensor hook", "_post_accumulate_grad_hooks": "post-accumulate hook"}
_FORWARD = {"_forward_hooks": "forward hook", "_forward_pre_hooks": "forward pre-hook"}


@dataclass(frozen=True)
class Hook:
    """Hooks of one kind in one place.

    Attributes:
        place: name of the module or parameter.
        held: the attribute that holds them.
        kind: how a report calls it.
        on_parameter: whether they are on a parameter.
        functions: the hooks.
    """

    place: str
    held: str
    kind: str
    on_parameter: bool
    functions: tuple[Callable[..., Any], ...]

    @property
    def says(self) -> str:
        """The hook and its place."""
        count = f"{len(self.functions)} {self.kind}s" if len(self.functions) > 1 else self.kind
        return f"{count} on {'parameter' if self.on_parameter else 'module'} {self.place}"


def hooks(module: nn.Module) -> list[Hook]:
    """Every hook that may change a gradient."""
    found = [
        Hook(name or type(layer).__name__, held, kind, False, tuple(functions.values()))
        for name, layer in module.named_modules()
        for held, kind in _ON_MODULES.items()
        if (functions := getattr(layer, held, None))
    ]
    found += [
        Hook(name, held, kind, True, tuple(functions.values()))
        for name, value in module.named_parameters()
        for held, kind in _ON_TENSORS.items()
        if (functions := getattr(value, held, None))
    ]
    return found


def forward_hooks(module: nn.Module) -> list[str]:
    """Hooks that are part of the function: they run in every forward pass, and stay."""
    return [
        f"{kind} on module {name or type(layer).__name__}"
        for name, layer in module.named_modules()
        for held, kind in _FORWARD.items()
        if getattr(layer, held, None)
    ]


def check_hooks(sides: Sides, judge: Judge) -> Iterator[CheckRow]:
    """The gradient of the summed loss with each hook, and without any."""
    module = sides.asked.problem.model.module
    compares = "the gradient with the hooks that are registered, and without"
    if module is None:
        yield not_run("hooks", compares, "the model is a function, which has no hooks")
        return
    found = hooks(module)
    if not found:
        yield CheckRow("hooks", "modules and parameters: no hook that sees gradients")
    for hook in found:
        outside = "per-sample gradients are taken on fresh leaves, where it does not fire" if hook.on_parameter else ""
        cause = f"The {hook.says} changes the gradient" + (f"; {outside}" if outside else "") + "."
        yield measured(
            sides, judge, "hooks", f"the gradient with the {hook.says}, and without", _with_and_without(hook), cause,
            hook.place,
        )  # fmt: skip


def _with_and_without(hook: Hook) -> Callable[[Side], Difference]:
    def measure(side: Side) -> Difference:
        with_hook, without = _gradient(side, hook), _gradient(side, None)
        return compare(with_hook, without, norm(without))

    return measure


def _gradient(side: Side, kept: Hook | None) -> Tensors:
    """The gradient of the summed loss, on a copy of the module without hooks that see gradients, but for one kind."""
    problem = side.problem
    module = copy.deepcopy(problem.model.module)
    assert module is not None
    for name, layer in module.named_modules():
        for held in _ON_MODULES:
            if kept is None or kept.on_parameter or (name or type(layer).__name__, held) != (kept.place, kept.held):
                getattr(layer, held).clear()
    leaves = {name: value.detach().clone().requires_grad_() for name, value in problem.model.params.items()}
    if kept is not None and kept.on_parameter:
        leaf = leaves[kept.place]
        own = kept.held == "_backward_hooks"
        register: Callable[..., Any] = leaf.register_hook if own else leaf.register_post_accumulate_grad_hook
        for function in kept.functions:
            register(function)
    with torch.enable_grad(), forked(side.case.seed, 0, devices=devices_of(problem)):
        loss = value_of(run(problem.on(module), leaves)).sum()
        # into `.grad` of leaves made here: post-accumulate hooks fire nowhere else
        torch.autograd.backward(loss)
    return {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}
