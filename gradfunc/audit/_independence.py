"""Does sample i's loss depend on sample j's input, and if so, which layer couples them?

Half of the samples are changed and the model runs again on a copy with hooks. Elements of an activation that change
belong to that half. If the halves swap roles and an element changes both times, samples met in it. The halves are given
by the bits of the sample's index, so that every pair of samples is parted at least once: 2 ceil(log2 n) + 2 forward
passes, no gradients, no assumption on where the batch sits inside the model.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._problem import Problem
from .._random import forked
from .._tree import tensors_of
from ._case import devices_of, run

Trace = list[tuple[str, list[Tensor]]]


@dataclass(frozen=True)
class Independence:
    """The answer.

    Attributes:
        independent: whether no loss depends on another sample's input; None if that could not be told.
        layer: the first layer, in order of execution, in which samples meet.
        coupled: samples (i, j) such that loss i changed when samples including j but not i were changed.
        why: how it was told, or why it could not be.
    """

    independent: bool | None
    layer: str | None
    coupled: tuple[int, int] | None
    why: str


def independence(problem: Problem, seed: int) -> Independence:
    """Check one problem."""
    n = problem.size
    if n == 1:
        return Independence(None, None, None, "one sample has no other to depend on")
    problem, names = _on_a_copy(problem)
    base, base_trace = _run(problem, names, seed)
    if base is None:
        return Independence(None, None, None, "the criterion gives one scalar for the whole batch")
    again, _ = _run(problem, names, seed)
    if again is None or _changed(base, again).any():
        return Independence(None, None, None, "two runs with the same seed differ: something draws outside torch")
    coupled: tuple[int, int] | None = None
    order, layer = len(base_trace), None
    for bit in range((n - 1).bit_length()):
        ones = torch.tensor([bool(i >> bit & 1) for i in range(n)])
        runs = [_run(_perturbed(problem, half), names, seed) for half in (ones, ~ones)]
        if all(torch.equal(x, y) for x, y in _inputs(problem, _perturbed(problem, ones))):
            return Independence(None, None, None, "all samples have the same input")
        for half, (losses, _) in zip((ones, ~ones), runs, strict=True):
            if losses is None or losses.shape != base.shape:
                return Independence(None, None, None, "the number of losses changes with the inputs")
            moved = _changed(base, losses) & ~half.to(losses.device)
            if coupled is None and moved.any():
                coupled = (int(moved.nonzero()[0]), int(half.nonzero()[0]))
        place, name = _first_meeting(base_trace, runs[0][1], runs[1][1])
        if place < order:
            order, layer = place, name
    if coupled is None:
        return Independence(True, None, None, f"no loss moved when other samples' inputs did ({n} samples)")
    if layer is None:
        layer = "the criterion" if problem.model.module is not None else "the model or the criterion"
    i, j = coupled
    return Independence(False, layer, coupled, f"loss {i} moved when inputs of other samples (such as {j}) did")


def _on_a_copy(problem: Problem) -> tuple[Problem, dict[nn.Module, str]]:
    module = problem.model.module
    if module is None:
        return problem, {}
    module = copy.deepcopy(module)
    names = {layer: name or type(layer).__name__ for name, layer in module.named_modules()}
    return problem.on(module), names


def _run(problem: Problem, names: dict[nn.Module, str], seed: int) -> tuple[Tensor | None, Trace]:
    """Losses `[n]`, and what went into and came out of every layer, in order."""
    trace: Trace = []
    parents: list[str] = []

    def before(name: str, layer: nn.Module, args: Any, kwargs: Any) -> None:
        inside = parents[-1] if parents else name
        trace.append((f"{inside} (its own forward, before {name})", _copies((args, kwargs))))
        parents.append(name)

    def after(name: str, layer: nn.Module, args: Any, out: Any) -> None:
        parents.pop()
        trace.append((name, _copies(out)))

    handles = []  # on a copy of the user's module
    for layer, name in names.items():
        # The name goes with the hook: a call runs on a replica, which is no key of `names`.
        handles.append(layer.register_forward_pre_hook(partial(before, name), with_kwargs=True))
        handles.append(layer.register_forward_hook(partial(after, name)))
    with torch.no_grad(), forked(seed, 0, devices=devices_of(problem)):
        forward = run(problem, problem.model.params)
    for handle in handles:
        handle.remove()
    losses = forward.elements
    return (None if losses is None else losses.detach().reshape(problem.size, -1).sum(1)), trace


def _inputs(a: Problem, b: Problem) -> list[tuple[Tensor, Tensor]]:
    return list(zip(tensors_of((a.args, a.kwargs, a._whole)), tensors_of((b.args, b.kwargs, b._whole)), strict=True))


def _copies(tree: Any) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors_of(tree)]


def _perturbed(problem: Problem, half: Tensor) -> Problem:
    """Half of the samples get another sample's input, or, for real numbers, a point between the two."""

    def change(tensor: Tensor, dim: int) -> Tensor:
        if tensor.dim() == 0:
            return tensor
        other = _unlike(tensor, dim)
        if tensor.is_floating_point():
            other = (tensor + other) / 2
            other = torch.where(other == tensor, tensor / 2, other)
        shape = [-1 if d == dim % tensor.dim() else 1 for d in range(tensor.dim())]
        return torch.where(half.to(tensor.device).reshape(shape), other, tensor)

    return problem.rearranged(change, inputs_only=True)


def _unlike(tensor: Tensor, dim: int) -> Tensor:
    """For each sample the content of one that differs from it: sample 0, or the first unlike sample 0."""
    rows = tensor.movedim(dim, 0)
    differs = (rows != rows[:1]).reshape(len(rows), -1).any(1)
    if not bool(differs.any()):
        return tensor
    stranger = rows[int(differs.nonzero()[0])]
    mask = differs.reshape(-1, *[1] * (rows.dim() - 1))
    return torch.where(mask, rows[:1], stranger).movedim(0, dim)


def _first_meeting(base: Trace, one: Trace, other: Trace) -> tuple[int, str | None]:
    """The first place where some element changed both when one half did and when the other half did."""
    for place, ((name, values), (_, a), (_, b)) in enumerate(zip(base, one, other, strict=False)):
        if any(
            x.shape == y.shape == z.shape and bool((_changed(x, y) & _changed(x, z)).any())
            for x, y, z in zip(values, a, b, strict=False)
        ):
            return place, name
    return len(base), None


def _changed(a: Tensor, b: Tensor) -> Tensor:
    return (a != b) & ~((a != a) & (b != b))
