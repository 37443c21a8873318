"""A batch run natively once, then one vjp a row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._factors import Gradients, from_rows
from .._swap import Scans, Swap
from .._tree import At, Tensors, at_positions, count, is_whole, map_tensors
from ._call import Call, Value
from ._source import Block, Traced, absent, gradients, spans, stacked_grads, zero_filled


@dataclass(frozen=True)
class CotangentSource:
    """The gradient of `losses[i]` with the whole batch in place, coupling included."""

    call: Call
    leaves: Tensors
    value: Value
    vmapped: bool
    swap: Swap

    @classmethod
    def run(cls, call: Call, *, vmapped: bool, scan: Scans, graph: bool = True) -> CotangentSource:
        """Run the loss on the whole batch, `vmapped` with scans: torch has no batching rule for its recurrences.

        Without a `graph` there are values alone to ask for.
        """
        leaves, swap = call.leaves(), call.swap(scan)
        with torch.set_grad_enabled(graph), call.running(swap, 0, vmapped=False):
            swap.begin(0)
            value = call.value(leaves, [t.clone() for t in call.batch.tensors], batched=True)
        return cls(call, leaves, value, vmapped, swap)

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.value.numerator)

    def plan(self, chunk: int) -> list[At]:
        """Stretches."""
        return spans(self.size, chunk)

    def rows(self, at: At) -> Block:
        """One vjp a row, vmapped or in a loop."""
        losses, size = self.value.numerator, count(at)
        cotangents = torch.zeros(size, self.size, dtype=losses.dtype, device=losses.device)
        cotangents[torch.arange(size), at_positions(at)] = self.call.loss_scale
        with self.swap.backward():
            if self.vmapped:
                grads = gradients(losses, self.leaves, cotangents, is_grads_batched=True)
                unused = absent([grads]).expand(size, -1)
                return self._block(from_rows(zero_filled(grads, self.leaves, size)), at, unused)
            each = [gradients(losses, self.leaves, cotangent) for cotangent in cotangents]
        return self._block(from_rows(stacked_grads(each, self.leaves)), at, absent(each))

    def values(self, at: At) -> Block:
        """Read off the one forward pass."""
        return self._block({}, at, None)

    def unused(self, at: At) -> Tensor:
        """Parameters with no path to the losses."""
        losses = self.value.numerator
        with self.swap.backward():
            grads = gradients(losses, self.leaves, torch.ones_like(losses))
        return absent([grads]).expand(count(at), -1)

    def traced(self, at: At) -> Traced:
        """The graph that is there."""
        there, losses = self.values(at), self.value.numerator
        if not is_whole(at, self.size):
            with torch.enable_grad():
                losses = losses[at]
        return Traced(self.leaves, losses, there.weights, there.aux, self.swap, self.call.loss_scale)

    def _block(self, grads: Gradients, at: At, unused: Tensor | None) -> Block:
        def fresh(tensor: Tensor) -> Tensor:
            return tensor.detach()[at].clone()

        return Block(
            grads, fresh(self.value.numerator), fresh(self.value.weight), unused, map_tensors(fresh, self.value.aux)
        )
