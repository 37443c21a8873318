"""One layer in one direction as it was called: what the nodes of the graph hold, for derivatives of derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ._cell import Cell, State, Step, hidden_bias, input_gates
from ._kernels import Cotangents, Weights


class Again(NamedTuple):
    """As `Run`, with a graph; `inside` equals `after` where there is no projection."""

    before: Tensor
    inside: Tensor
    after: Tensor
    last: State


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer in one direction over x `[T, B, features]`, computed in `dtype`."""

    x: Tensor
    state: State
    cell: Cell
    step: Step
    dtype: torch.dtype
    reverse: bool
    versions: list[int]

    @classmethod
    def of(cls, x: Tensor, state: State, cell: Cell, step: Step, dtype: torch.dtype, reverse: bool) -> Layer:
        """With its tensors as they are now."""
        return cls(x, state, cell, step, dtype, reverse, _versions(x, state, cell))

    @property
    def weights(self) -> Weights:
        """What multiplies states, as it was given but for the type."""
        given = (self.cell.w_hh, hidden_bias(self.cell, self.step), self.cell.w_hr)
        w_hh, b_hh, w_hr = (t if t is None else t.to(self.dtype) for t in given)
        assert w_hh is not None
        return Weights(w_hh, b_hh, w_hr)

    def again(self, added: Cotangents | None = None) -> Again:
        """In plain operations, with something added to each of the values that have a cotangent."""
        if self.versions != _versions(self.x, self.state, self.cell):
            raise RuntimeError("an input of a recurrent layer was changed in place before its second derivative")
        w_hh, b_hh, w_hr = self.weights
        gates, now = input_gates(self.x, self.cell, self.step).to(self.dtype), self.state
        if added is not None:
            gates, now = gates + added.gates, tuple(s + a for s, a in zip(now, added.state, strict=True))
        before, inside, after = [], [], []
        order = slice(None, None, -1 if self.reverse else 1)
        for t in range(len(gates))[order]:
            before.append(now[0])
            hidden = F.linear(now[0], w_hh, b_hh)
            h, *rest = self.step(gates[t], hidden if added is None else hidden + added.hidden[t], now)
            inside.append(h)
            if w_hr is not None:
                h = F.linear(h, w_hr)
                h = h if added is None or added.projected is None else h + added.projected[t]
            now = (h, *rest)
            after.append(h)
        return Again(torch.stack(before[order]), torch.stack(inside[order]), torch.stack(after[order]), now)

    def cotangents(self, grads: Sequence[Tensor | None], *, create_graph: bool) -> Cotangents:
        """From those of the outputs and of the last cell state, by autograd."""
        (length, rows), (w_hh, _, w_hr) = self.x.shape[:2], self.weights
        with torch.enable_grad():

            def zeros(*shape: int) -> Tensor:
                return w_hh.new_zeros(shape, requires_grad=True)

            gates, hidden = (zeros(length, rows, len(w_hh)) for _ in range(2))
            projected = None if w_hr is None else zeros(length, rows, len(w_hr))
            added = Cotangents(gates, hidden, projected, tuple(zeros(*s.shape) for s in self.state))
            again = self.again(added)
            outputs = zip((again.after, *again.last[1:]), grads, strict=True)
            given = [(out, grad) for out, grad in outputs if grad is not None]
            inputs = [gates, hidden, *([] if projected is None else [projected]), *added.state]
            found = torch.autograd.grad(
                [out for out, _ in given],
                inputs,
                [grad for _, grad in given],
                create_graph=create_graph,
                materialize_grads=True,
            )
        first, rest = len(inputs) - len(self.state), list(found)
        return Cotangents(rest[0], rest[1], None if projected is None else rest[2], tuple(rest[first:]))


def _versions(x: Tensor, state: State, cell: Cell) -> list[int]:
    return [0 if t is None or t.is_inference() else t._version for t in (x, *state, *cell)]
