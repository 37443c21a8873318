"""One autograd call a sample: works for whatever autograd can differentiate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .._factors import Gradients, from_rows
from .._swap import Scans, Swap
from .._tree import At, Tensors, at_positions, map_nests, map_tensors, scattered
from .._weights import Weighted
from ._call import Call, Value
from ._source import Block, Traced, absent, gradients, spans, stacked_grads, stacked_values


class _Run(NamedTuple):
    """One sample's forward pass."""

    leaves: Tensors
    value: Value
    swap: Swap


@dataclass(frozen=True)
class LoopSource:
    """One autograd call a sample; `scan` is what recurrent operators become."""

    call: Call
    scan: Scans = None

    @property
    def size(self) -> int:
        """Number of samples."""
        return self.call.size

    def plan(self, chunk: int) -> list[At]:
        """Stretches."""
        return spans(self.size, chunk)

    def rows(self, at: At) -> Block:
        """One forward and one backward pass a sample."""
        grads, values = [], []
        for i in at_positions(at).tolist():
            run = self._run(i)
            grads.append(self._gradients(run))
            values.append(_detached(run.value))
        return self._block(from_rows(stacked_grads(grads, run.leaves)), values, absent(grads))

    def values(self, at: At) -> Block:
        """One forward pass a sample."""
        return self._block({}, [_detached(self._run(i).value) for i in at_positions(at).tolist()], None)

    def unused(self, at: At) -> Tensor:
        """Asked of every sample, since each may take its own branch."""
        runs = (self._run(i) for i in at_positions(at).tolist())
        return absent([self._gradients(run) for run in runs]).reshape(-1, len(self.call.params))

    def traced(self, at: At) -> Traced:
        """Every sample's forward pass on the same leaves."""
        leaves, swap = self.call.leaves(), self.call.swap(self.scan)
        runs = [self._run(i, leaves, swap) for i in at_positions(at).tolist()]
        with torch.enable_grad():
            losses = torch.stack([run.value.numerator for run in runs])
        there = self._block({}, [_detached(run.value) for run in runs], None)
        return Traced(leaves, losses, there.weights, there.aux, swap, self.call.loss_scale)

    def _run(self, i: int, leaves: Tensors | None = None, swap: Swap | None = None) -> _Run:
        leaves, swap = leaves or self.call.leaves(), swap or self.call.swap(self.scan)
        sample = 0 if self.call.draws.randomness == "same" else int(self.call.draws.ids[i])
        # Always with a graph: a loss may differentiate inside (a gradient penalty).
        with torch.enable_grad(), self.call.running(swap, sample, vmapped=False):
            swap.begin(sample)
            tensors = [t[i].clone() for t in self.call.batch.tensors]
            return _Run(leaves, self.call.value(leaves, tensors, batched=False), swap)

    def _gradients(self, run: _Run) -> dict[str, Tensor | None]:
        with run.swap.backward():
            return gradients(self.call.scaled(run.value.numerator), run.leaves)

    def _block(self, grads: Gradients, values: list[Value], unused: Tensor | None) -> Block:
        weighted = stacked_values([Weighted(value.numerator, value.weight) for value in values])
        aux = map_nests(self._stacked, [value.aux for value in values]) if self.call.has_aux else None
        return Block(grads, *weighted, unused, aux)

    def _stacked(self, leaves: list[Tensor]) -> Tensor:
        return scattered([(slice(i, i + 1), leaf[None]) for i, leaf in enumerate(leaves)])


def _detached(value: Value) -> Value:
    return Value(value.numerator.detach(), value.weight, map_tensors(lambda t: t.detach().clone(), value.aux))
