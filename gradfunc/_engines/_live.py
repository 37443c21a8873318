"""Rows that keep their derivative: by torch.func alone, or by autograd with `create_graph=True`.

What other sources compute in order to be quick (factors, detached results, looks at values) stands in the way of
differentiating again. These rows are dense, nothing is detached, and inside a transform of torch.func nothing is asked
of values, so that they carry whatever derivative is being taken around them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._factors import from_rows
from .._swap import Swap
from .._tree import At, Tensors, at_positions, map_nests
from ._call import Call
from ._source import Block, gradients, stacked_grads, zero_filled
from ._vmap import VmapSource

Live = Callable[[At, bool], Block]


def live(call: Call, *, batched: bool, looped: bool) -> Live:
    """`(at, rows) -> Block` for a call whose parameters are not detached; without `rows`, no gradients.

    Args:
        call: holds the tensors as they were given.
        batched: the loss runs the whole batch, and the block is of all its rows, whatever is asked for.
        looped: one autograd call a row, in grad mode and outside of any transform; else by torch.func.
    """
    if not batched:
        return _Looped(call) if looped else VmapSource(call).live
    native = _by_autograd if looped else _by_func
    return lambda at, rows: native(call, rows)


class _Looped:
    """One autograd call a sample."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def __call__(self, at: At, rows: bool) -> Block:
        """As `LoopSource.rows`, with a graph behind the answer."""
        call, grads, values = self.call, [], []
        for i in at_positions(at).tolist():
            sample = 0 if call.draws.randomness == "same" else int(call.draws.ids[i])
            swap, params = call.swap("plain"), _aliases(call.params)
            with torch.enable_grad(), call.running(swap, sample, vmapped=False):
                swap.begin(sample)
                value = call.value(params, [t[i].clone() for t in call.batch.tensors], batched=False)
                values.append(value)
            grads.append(_gradients(call, swap, value.numerator, params) if rows else {})
        stacked = stacked_grads(grads, call.params) if rows else {}
        stack = torch.stack
        aux = map_nests(stack, [value.aux for value in values]) if call.has_aux else None
        losses, weights = stack([v.numerator for v in values]), stack([v.weight for v in values])
        return Block(from_rows(stacked), losses, weights, None, aux)


def _by_autograd(call: Call, rows: bool) -> Block:
    """One native forward pass, one autograd call a row."""
    swap, params = call.swap("plain"), _aliases(call.params)
    with torch.enable_grad(), call.running(swap, 0, vmapped=False):
        swap.begin(0)
        value = call.value(params, [t.clone() for t in call.batch.tensors], batched=True)
    stacked: Tensors = {}
    if rows:
        each = [_gradients(call, swap, numerator, params) for numerator in value.numerator]
        stacked = stacked_grads(each, call.params)
    return Block(from_rows(stacked), value.numerator, value.weight, None, value.aux)


def _by_func(call: Call, rows: bool) -> Block:
    """One native forward pass, its vjp mapped over rows."""
    swap = call.swap("plain")

    def scaled(params: Tensors) -> tuple[Tensor, tuple[Any, ...]]:
        swap.begin(0)
        value = call.value(params, [t.clone() for t in call.batch.tensors], batched=True)
        return call.scaled(value.numerator), value if call.has_aux else value[:2]

    with call.running(swap, 0, vmapped=False):
        # torch's stubs call what comes with has_aux a pair
        losses, vjp, given = torch.func.vjp(scaled, dict(call.params), has_aux=True)  # type: ignore[misc]
    numerator, weight, *aux = given
    stacked: Tensors = {}
    if rows:
        with swap.backward():
            (stacked,) = torch.func.vmap(vjp)(torch.eye(len(losses), dtype=losses.dtype, device=losses.device))
    return Block(from_rows(stacked), numerator, weight, None, aux[0] if aux else None)


def _aliases(params: Tensors) -> Tensors:
    """The same values with a place of their own in the graph: a row is the gradient in what the loss was given."""
    return {k: v.view_as(v) if v.requires_grad else v.detach().requires_grad_() for k, v in params.items()}


def _gradients(call: Call, swap: Swap, numerator: Tensor, params: Tensors) -> dict[str, Tensor | None]:
    with swap.backward():
        found = gradients(call.scaled(numerator), params, create_graph=True)
    return dict(zero_filled(found, params))
