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
        """All steps."""

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
    """`[..., B, gates H]` as `[..., gates, B, H]`."""
    apart: Tensor = tensor.unflatten(-1, (count, -1))
    return apart.transpose(-2, -3)


class LSTM:
    """Input, forget, candidate, output gate."""

    def run(self, gates: Tensor, state: State, weights: Weights, reverse: bool) -> Run:
        """Four gates and the cell state."""
        length, rows, width = gates.shape
        projection = None if weights.w_hr is None else weights.w_hr.t()
        before, after = _states(state[0], length, reverse)
        c_before, c_after = _states(state[1], length, reverse)
        acts = gates.new_empty(length, 4, rows, width // 4)
        squashed = torch.empty_like(acts[:, 0])
        inside = after if projection is None else torch.empty_like(squashed)
        hidden, weight = gates.new_empty(rows, width), weights.w_hh.t()
        hidden_by_gate = _by_gate(hidden, 4)
        parts = (_by_gate(gates, 4), acts, acts[:, :2], *acts.unbind(1), c_before, c_after, squashed, inside)
        steps = zip(*(_by_step(part, reverse) for part in (before, after, *parts)), strict=True)
        for h, h_next, given, act, both, i, f, g, o, c, c_next, tanh_c, out in steps:
            torch.mm(h, weight, out=hidden)
            torch.add(given, hidden_by_gate, out=act)
            both.sigmoid_()
            g.tanh_()
            o.sigmoid_()
            torch.mul(f, c, out=c_next).addcmul_(i, g)
            torch.tanh(c_next, out=tanh_c)
            torch.mul(o, tanh_c, out=out)
            if projection is not None:
                torch.mm(out, projection, out=h_next)
        end = 0 if reverse else -1
        last = (after[end], c_after[end])
        return Run(before, after, None if projection is None else inside, last, (acts, c_before, squashed))

    def back(
        self, kept: Sequence[Tensor], weights: Weights, last: Tensor | None, grad: Tensor | None, reverse: bool
    ) -> Cotangents:
        """The output's cotangent goes to the output gate and to the cell state, that of the cell state to the rest."""
        acts, c_before, squashed = kept
        length, _, rows, size = acts.shape
        i, f, g, o = acts.unbind(1)
        slopes, to_cell = torch.empty_like(acts), torch.empty_like(squashed)
        for k, (times, gate) in enumerate(((g, i), (c_before, f), (None, None), (squashed, o))):
            if gate is not None:
                _sigmoid_back(times, gate, grad_input=slopes[:, k])
        _tanh_back(i, g, grad_input=slopes[:, 2])
        _tanh_back(o, squashed, grad_input=to_cell)
        gates = acts.new_empty(length, rows, 4 * size)
        by_gate = _by_gate(gates, 4)
        own = acts.new_zeros(rows, size) if last is None else last.clone(memory_format=torch.contiguous_format)
        grad = acts.new_zeros(()).expand(length, rows, weights.w_hh.shape[1]) if grad is None else grad
        projected = None if weights.w_hr is None else torch.empty_like(grad, memory_format=torch.contiguous_format)
        h, inner = acts.new_empty(rows, weights.w_hh.shape[1]), acts.new_empty(rows, size)
        wholes = repeat(h) if projected is None else _by_step(projected, not reverse)
        parts = (grad, gates, by_gate[:, :3], by_gate[:, 3], slopes[:, :3], slopes[:, 3], to_cell, f)
        steps = zip(*(_by_step(part, not reverse) for part in parts), strict=True)
        behind: Tensor | None = None
        for (given, out, out_cell, out_o, slope, slope_o, slope_c, forget), whole in zip(steps, wholes, strict=False):
            total = given if behind is None else torch.addmm(given, behind, weights.w_hh, out=whole)
            if weights.w_hr is not None:
                if behind is None:
                    whole.copy_(given)
                total = torch.mm(whole, weights.w_hr, out=inner)
            own.addcmul_(total, slope_c)
            torch.mul(slope, own, out=out_cell)
            torch.mul(slope_o, total, out=out_o)
            own.mul_(forget)
            behind = out
        assert behind is not None  # there is a step
        return Cotangents(gates, gates, projected, (behind @ weights.w_hh, own))


class GRU:
    """Reset gate, update gate, candidate."""

    def run(self, gates: Tensor, state: State, weights: Weights, reverse: bool) -> Run:
        """Three gates; what the state gives to the candidate is kept too."""
        length, rows, width = gates.shape
        before, after = _states(state[0], length, reverse)
        acts = gates.new_empty(length, 3, rows, width // 3)
        to_candidate = torch.empty_like(acts[:, 0])
        hidden, weight, bias = gates.new_empty(rows, width), weights.w_hh.t(), weights.b_hh
        hidden_both, hidden_n = _by_gate(hidden, 3).split([2, 1])
        hidden_n = hidden_n[0]
        by_gate = _by_gate(gates, 3)
        parts = (before, after, by_gate[:, :2], by_gate[:, 2], acts[:, :2], *acts.unbind(1), to_candidate)
        steps = zip(*(_by_step(part, reverse) for part in parts), strict=True)
        for h, h_next, given, given_n, both, r, z, n, kept in steps:
            if bias is None:
                torch.mm(h, weight, out=hidden)
            else:
                torch.addmm(bias, h, weight, out=hidden)
            torch.add(given, hidden_both, out=both).sigmoid_()
            kept.copy_(hidden_n)
            torch.addcmul(given_n, r, kept, out=n).tanh_()
            torch.lerp(n, h, z, out=h_next)
        return Run(before, after, None, (after[0 if reverse else -1],), (acts, to_candidate, before))

    def back(
        self, kept: Sequence[Tensor], weights: Weights, last: Tensor | None, grad: Tensor | None, reverse: bool
    ) -> Cotangents:
        """Every gate's cotangent is the output's times what is known beforehand."""
        acts, to_candidate, before = kept
        length, _, rows, size = acts.shape
        r, z, n = acts.unbind(1)
        slopes = torch.empty_like(acts)
        slope_n = torch.empty_like(to_candidate)
        _tanh_back(1 - z, n, grad_input=slope_n)
        _sigmoid_back(slope_n * to_candidate, r, grad_input=slopes[:, 0])
        _sigmoid_back(before - n, z, grad_input=slopes[:, 1])
        torch.mul(slope_n, r, out=slopes[:, 2])
        hidden = acts.new_empty(length, rows, 3 * size)
        total = torch.empty_like(to_candidate)
        grad = acts.new_zeros(()).expand_as(total) if grad is None else grad
        parts = (grad, total, hidden, _by_gate(hidden, 3), slopes, z)
        steps = zip(*(_by_step(part, not reverse) for part in parts), strict=True)
        own: Tensor | None = None  # what the state itself sends back
        behind: Tensor | None = None
        for given, h, out, out_by_gate, slope, update in steps:
            if own is None or behind is None:
                h.copy_(given)
            else:
                torch.addmm(given, behind, weights.w_hh, out=h).add_(own)
            torch.mul(slope, h, out=out_by_gate)
            own = h * update
            behind = out
        assert own is not None  # there is a step
        assert behind is not None
        gates = hidden.clone()
        torch.mul(slope_n, total, out=_by_gate(gates, 3)[:, 2])
        return Cotangents(gates, hidden, None, (torch.addmm(own, behind, weights.w_hh),))


class RNN:
    """One gate, a tanh or a relu."""

    def __init__(self, *, relu: bool) -> None:
        self._relu = relu

    def run(self, gates: Tensor, state: State, weights: Weights, reverse: bool) -> Run:
        """In place in the states."""
        before, after = _states(state[0], len(gates), reverse)
        weight = weights.w_hh.t()
        for h, out, given in zip(*(_by_step(part, reverse) for part in (before, after, gates)), strict=True):
            torch.addmm(given, h, weight, out=out)
            out.relu_() if self._relu else out.tanh_()
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
