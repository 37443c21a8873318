"""Rows as factors: a forward pass as usual, and one backward pass that forms no weight gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._capture import Plans, capture
from .._tree import At
from ._call import Call
from ._source import Block, Traceable, Traced, spans


@dataclass(frozen=True)
class FactoredSource:
    """A chunk of samples under vmap, its rows as factors."""

    call: Call
    forward: Traceable
    plans: Plans

    @property
    def size(self) -> int:
        """Number of samples."""
        return self.forward.size

    def plan(self, chunk: int) -> list[At]:
        """Stretches."""
        return spans(self.size, chunk)

    def rows(self, at: At) -> Block:
        """One forward pass under vmap, one backward pass."""
        return factored(self.call, self.forward.traced(at), self.plans, vmapped=True)

    def values(self, at: At) -> Block:
        """One vmapped forward pass."""
        return self.forward.values(at)

    def unused(self, at: At) -> Tensor:
        """Asked of one sample: under vmap every sample runs the same graph."""
        return self.forward.unused(at)


def factored(call: Call, traced: Traced, plans: Plans, *, vmapped: bool) -> Block:
    """What was run forward, differentiated; its graph is used up."""
    found = capture(traced.losses, traced.leaves, plans, traced.swap.backward, scale=traced.scale, vmapped=vmapped)
    call.draws.noticed.uses = found.uses
    call.draws.noticed.graphs.add(found.signature)
    unused = torch.tensor([[name in found.unused for name in traced.leaves]]).expand(len(traced.losses), -1)
    return call.unaliased(Block(found.gradients, traced.losses, traced.weights, unused, traced.aux))
