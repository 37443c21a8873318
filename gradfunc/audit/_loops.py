"""Loops that collect gradients in `.grad`: the one of the forum question, and the user's own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import kind_of, message
from .._random import RecordDraws, forked
from .._stateless import Stateless
from .._tree import Tensors, copy_of, map_tensors, tensors_of
from ._case import Case, Passes, devices_of

YourLoop = Callable[[nn.Module, Any, Any], Any]


def forum(case: Case, losses: Iterable[Tensor]) -> Tensors:
    """Average per-sample gradients as the forum question does: keep the first as a view of `.grad`, zero in place.

    Once `zero_grad` has zeroed `.grad` and the next backward has added to it, the kept view shows sample 1's
    gradient. Later ones are copied when they are joined, so only the first is wrong. A running sum stands for the
    joined columns, at the cost of one gradient instead of n.
    """
    leaves = case.leaves
    sums: Tensors = {}
    count = 0
    for loss in losses:
        for leaf in leaves.values():
            if leaf.grad is not None:
                leaf.grad.zero_()
        if loss.requires_grad:
            loss.backward(retain_graph=True, inputs=list(leaves.values()))
        for name, leaf in leaves.items():
            column = torch.zeros_like(leaf).view(-1, 1) if leaf.grad is None else leaf.grad.view(-1, 1)
            # In the first round the sum *is* the view of .grad: no clone, the bug.
            sums[name] = column if count == 0 else sums[name] + column
        count += 1
    averages = {name: (value / count).reshape(leaves[name].shape) for name, value in sums.items()}
    for leaf in leaves.values():
        leaf.grad = None
    return averages


def yours(case: Case, loop: YourLoop) -> tuple[Tensors, Passes]:
    """Run the user's loop on a copy of the model; note the sizes of its micro-batches and the draws of each.

    The gradient is what the loop returns, `{name: tensor}`, or else what it leaves in `.grad` of the copy.
    """
    problem = case.problem
    if problem.model.module is None:
        raise TypeError(message("yours(model, criterion, batch)", got="a pure model", expected="an nn.Module"))
    model = _fresh(problem.model)
    mode = RecordDraws()
    sizes: list[int] = []
    starts: list[int] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():  # an evaluation beside the training passes
            return
        dims = problem.model.in_dims
        first = tensors_of((args, kwargs))[0]
        sizes.append(first.shape[dims if isinstance(dims, int) else 0])
        starts.append(len(mode.record.draws))

    model.register_forward_pre_hook(note, with_kwargs=True)  # on our copy
    with torch.enable_grad(), forked(case.seed, 2, devices=devices_of(problem)), mode:
        returned = loop(model, problem.criterion.given, map_tensors(copy_of, problem.batch))
    if returned is None:
        returned = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    passes = Passes(sizes if sum(sizes) == case.size else [], None if mode.failed else mode.record.split(starts))
    return _read(case, returned), passes


def _read(case: Case, returned: Any) -> Tensors:
    """The gradients that a loop returned, checked; zeros for None."""
    expected = "{name: gradient} for every trainable parameter, or None with the gradients left in .grad"
    call = "yours(model, criterion, batch)"
    if not isinstance(returned, Mapping):
        raise TypeError(message(call, got=kind_of(returned), expected=expected))
    if set(returned) != set(case.leaves):
        raise TypeError(message(call, got=f"keys {sorted(returned)}", expected=expected))
    for name, leaf in case.leaves.items():
        value = returned[name]
        if value is not None and not (isinstance(value, Tensor) and value.shape == leaf.shape):
            came = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else kind_of(value)
            raise TypeError(
                message(call, got=f"{came} for '{name}'", expected=f"a gradient of shape {tuple(leaf.shape)}")
            )
    return case.filled({name: None if returned[name] is None else returned[name].detach() for name in case.leaves})


def _fresh(model: Stateless) -> nn.Module:
    """A copy of the module that holds the case's values, in its precision, and no gradients."""
    assert model.module is not None
    module = copy.deepcopy(model.module)
    held = {**model.params, **model.frozen, **model.buffers}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        tensor.data, tensor.grad = held[name].detach().clone(), None
    return module
