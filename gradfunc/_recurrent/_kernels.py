"""The recurrences by hand: all steps forward, and all steps of the backward pass, in few kernels a step.

Formulas: `torch.nn.LSTM`, `GRU`, `RNN`, and their derivatives by the chain rule, gate by gate. What does not depend on
the step before, or after, is computed for all times at once.

A kind has `run(gates, state, weights, reverse)`, which keeps what `back` needs, and `back(kept, weights, last, grad,
reverse)`. Time is the first dimension everywhere, in its own order; `reverse` is the direction of the steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ._cell import State

_sigmoid_back = torch.ops.aten.sigmoid_backward.grad_input  # (g, s) -> g s (1 - s), as autograd computes it
_tanh_back = torch.ops.aten.tanh_backward.grad_input  # (g, t) -> g (1 - t^2)
_relu_back = torch.ops.aten.threshold_backward.grad_input


class Weights(NamedTuple):
    """Of one layer in one direction, without graph, in the type of the gates."""

    w_hh: Tensor
    b_hh: Tensor | None  # added to the product of each step, in GRU alone
    w_hr: Tensor | None


class Run(NamedTuple):
    """All steps.

    Attributes:
        before: `[T, B, P]`, what each step read.
        after: `[T, B, P]`, what it gave.
        inside: `[T, B, H]`, that before the projection; None where there is none.
        last: the state at the end.
        kept: what the backward pass needs.
    """

    before: Tensor
    after: Tensor
    inside: Tensor | None
    last: State
    kept: tuple[Tensor, ...]


class Cotangents(NamedTuple):
    """Of what the steps were computed from, each with all that later steps send back.

    Attributes:
        gates: `[T, B, gates]`.
        hidden: `[T, B, gates]`, of the products with w_hh.
        projected: `[T, B, P]`, of those with w_hr.
        state: of the first state.
    """

    gates: Tensor
    hidden: Tensor
    projected: Tensor | None
    state: State


class Kind(Protocol):
    """One kind of cell."""

    def run(self, gates: Tensor, state: State, weights: Weights, reverse: bool) -> Run:
        """All steps. Takes the gates' storage."""

    def back(
        self, kept: Sequence[Tensor], weights: Weights, last: Tensor | None, grad: Tensor | None, reverse: bool
    ) -> Cotangents:
        """All steps back: `grad` is the cotangent of `after`, `last` that of the cell state at the end."""


def _states(first: Tensor, length: int, reverse: bool) -> tuple[Tensor, Tensor]:
    """Room for the states before and after each step; the first is there."""
    room = first.new_empty(length + 1, *first.shape)
    before, after = (room[1:], room[:-1]) if reverse else (room[:-1], room[1:])
    before[-1 if reverse else 0] = first
    return before, after


def _by_step(tensor: Tensor, reverse: bool) -> tuple[Tensor, ...]:
    """In the order of the steps."""
    return tensor.unbind(0)[::-1] if reverse else tensor.unbind(0)


def _by_gate(tensor: Tensor, count: int) -> Tensor:
    """`[..., gates H]` as `[..., gates, H]`."""
    apart: Tensor = tensor.unflatten(-1, (count, -1))
    return apart


class LSTM:
    """Input, forget, candidate, output gate."""

    def run(self, gates: Tensor, state: State, weights: Weights, reverse: bool) -> Run:
        """In place: fresh memory costs more than what is computed into it. `back` has the tanh of the cell again."""
        width = gates.shape[2]
        projection = None if weights.w_hr is None else weights.w_hr.t()
        before, after = _states(state[0], len(gates), reverse)
        c_before, c_after = _states(state[1], len(gates), reverse)
        inside = after if projection is None else torch.empty_like(c_after)
        weight = weights.w_hh.t()
        parts = (after, gates, gates[:, :, : width // 2], *gates.chunk(4, 2), c_after)
        steps = zip(*(_by_step(part, reverse) for part in parts), strict=True)
        insides = repeat(None) if projection is None else _by_step(inside, reverse)
        h, c = state
        for (h_next, given, both, enter, forget, new, leave, c_next), within in zip(steps, insides, strict=False):
            out = h_next if within is None else within
            given.addmm_(h, weight)
            both.sigmoid_()
            leave.sigmoid_()
            new.tanh_()
            torch.mul(forget, c, out=c_next).addcmul_(enter, new)
            torch.tanh(c_next, out=out).mul_(leave)
            if projection is not None:
                torch.mm(out, projection, out=h_next)
            h, c = h_next, c_next
        end = 0 if reverse else -1
        kept = (gates, c_before, c_after)
        return Run(before, after, None if projection is None else inside, (after[end], c_after[end]), kept)

    def back(
        self, kept: Sequence[Tensor], weights: Weights, last: Tensor | None, grad: Tensor | None, reverse: bool
    ) -> Cotangents:
        """The output's cotangent goes to the output gate and to the cell state, that of the cell state to the rest."""
        acts, c_before, c_after = kept
        length, rows, size = c_after.shape
        i, f, g, o = acts.chunk(4, 2)
        gates, to_cell = torch.empty_like(acts), torch.tanh(c_after)  # at first each gate's slope
        by_gate = _by_gate(gates, 4)
        for k, (times, gate) in {0: (g, i), 1: (c_before, f), 3: (to_cell, o)}.items():
            _sigmoid_back(times, gate, grad_input=by_gate[:, :, k])
        _tanh_back(i, g, grad_input=by_gate[:, :, 2])
        _tanh_back(o, to_cell, grad_input=to_cell)
        own = g.new_zeros(rows, size) if last is None else last.clone(memory_format=torch.contiguous_format)
        to_all = own[:, None]
        grad = g.new_zeros(()).expand(length, rows, weights.w_hh.shape[1]) if grad is None else grad
        projected = None if weights.w_hr is None else torch.empty_like(grad, memory_format=torch.contiguous_format)
        h, inner = torch.empty_like(grad[0], memory_format=torch.contiguous_format), torch.empty_like(own)
        wholes = repeat(h) if projected is None else _by_step(projected, not reverse)
        parts = (grad, gates, by_gate[:, :, :3], by_gate[:, :, 3], to_cell, f)
        steps = zip(*(_by_step(part, not reverse) for part in parts), strict=True)
        behind: Tensor | None = None
        for (given, out, cells, outs, slope, forget), whole in zip(steps, wholes, strict=False):
            total = given if behind is None else torch.addmm(given, behind, weights.w_hh, out=whole)
            if weights.w_hr is not None:
                if behind is None:
                    whole.copy_(given)
                total = torch.mm(whole, weights.w_hr, out=inner)
            own.addcmul_(total, slope)
            cells.mul_(to_all)
            outs.mul_(total)
            own.mul_(forget)
            behind = out
        assert behind is not None  # there is a step
        return Cotangents(gates, gates, projected, (behind @ weights.w_hh, own))


class GRU:
    """Reset gate, update gate, candidate."""

    def run(self, gates: Tensor, state: State, weights: Weights, reverse: bool) -> Run:
        """The gates in place; what the state gives to the candidate is kept too."""
        length, rows, width = gates.shape
        size = width // 3
        before, after = _states(state[0], length, reverse)
        to_candidate = gates.new_empty(length, rows, size)
        hidden, weight, bias = gates.new_empty(rows, width), weights.w_hh.t(), weights.b_hh
        hidden_both, hidden_n = hidden.split([2 * size, size], 1)
        parts = (after, gates[:, :, : 2 * size], *gates.chunk(3, 2), to_candidate)
        (h,) = state
        for h_next, both, reset, update, new, product in zip(*(_by_step(part, reverse) for part in parts), strict=True):
            if bias is None:
                torch.mm(h, weight, out=hidden)
            else:
                torch.addmm(bias, h, weight, out=hidden)
            both.add_(hidden_both).sigmoid_()
            product.copy_(hidden_n)
            new.addcmul_(reset, product).tanh_()
            torch.lerp(new, h, update, out=h_next)
            h = h_next
        return Run(before, after, None, (after[0 if reverse else -1],), (gates, to_candidate, before))

    def back(
        self, kept: Sequence[Tensor], weights: Weights, last: Tensor | None, grad: Tensor | None, reverse: bool
    ) -> Cotangents:
        """Every gate's cotangent is the output's times what is known beforehand."""
        acts, to_candidate, before = kept
        r, z, n = acts.chunk(3, 2)
        hidden, slope_n, total = torch.empty_like(acts), torch.empty_like(before), torch.empty_like(before)
        by_gate = _by_gate(hidden, 3)  # at first each gate's slope
        _tanh_back(1 - z, n, grad_input=slope_n)
        _sigmoid_back(slope_n * to_candidate, r, grad_input=by_gate[:, :, 0])
        _sigmoid_back(before - n, z, grad_input=by_gate[:, :, 1])
        torch.mul(slope_n, r, out=by_gate[:, :, 2])
        grad = n.new_zeros(()).expand_as(n) if grad is None else grad
        steps = zip(*(_by_step(part, not reverse) for part in (grad, total, hidden, by_gate, z)), strict=True)
        own: Tensor | None = None  # what the state itself sends back
        behind: Tensor | None = None
        for given, h, out, parts, update in steps:
            if own is None or behind is None:
                h.copy_(given)
            else:
                torch.addmm(given, behind, weights.w_hh, out=h).add_(own)
            parts.mul_(h[:, None])
            own = h * update
            behind = out
        assert own is not None  # there is a step
        assert behind is not None
        gates = hidden.clone()
        torch.mul(slope_n, total, out=_by_gate(gates, 3)[:, :, 2])
        return Cotangents(gates, hidden, None, (torch.addmm(own, behind, weights.w_hh),))


class RNN:
    """One gate, a tanh or a relu."""

    def __init__(self, *, relu: bool) -> None:
        self._relu = relu

    def run(self, gates: Tensor, state: State, weights: Weights, reverse: bool) -> Run:
        """In place in the states."""
        before, after = _states(state[0], len(gates), reverse)
        weight = weights.w_hh.t()
        (h,) = state
        for out, given in zip(*(_by_step(part, reverse) for part in (after, gates)), strict=True):
            torch.addmm(given, h, weight, out=out)
            out.relu_() if self._relu else out.tanh_()
            h = out
        return Run(before, after, None, (after[0 if reverse else -1],), (after,))

    def back(
        self, kept: Sequence[Tensor], weights: Weights, last: Tensor | None, grad: Tensor | None, reverse: bool
    ) -> Cotangents:
        """The slope follows from the output."""
        (after,) = kept
        gates, h = torch.empty_like(after), torch.empty_like(after[0])
        grad = after.new_zeros(()).expand_as(after) if grad is None else grad
        behind: Tensor | None = None
        for given, out, result in zip(*(_by_step(part, not reverse) for part in (grad, gates, after)), strict=True):
            total = given if behind is None else torch.addmm(given, behind, weights.w_hh, out=h)
            if self._relu:
                _relu_back(total, result, 0, grad_input=out)
            else:
                _tanh_back(total, result, grad_input=out)
            behind = out
        assert behind is not None  # there is a step
        return Cotangents(gates, gates, None, (behind @ weights.w_hh,))
