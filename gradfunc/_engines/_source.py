"""What every source of rows has in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .._cotangent import clips
from .._factors import Gradients
from .._swap import Swap
from .._tree import At, Tensors, row_sum, wide
from .._weights import Weighted


class Block(NamedTuple):
    """Gradients `{name: Gradient}`, numerators `[b]`, weights `[b]` and auxiliary values of some samples.

    `unused` is `[b, parameters]`: which losses do not depend on which parameters; None where computing the rows did not
    tell. `aux` is a nest of `[b, ...]`, None if the loss returns none.
    """

    grads: Gradients
    losses: Tensor
    weights: Tensor
    unused: Tensor | None = None
    aux: Any = None


class Source(Protocol):
    """Where the rows come from."""

    @property
    def size(self) -> int:
        """Number of samples."""

    def plan(self, chunk: int) -> list[At]:
        """Every sample once, at most `chunk` at a time, in the order in which rows are cheapest."""

    def rows(self, at: At) -> Block:
        """Compute the rows of some samples."""

    def values(self, at: At) -> Block:
        """The same without gradients: `grads` is empty."""

    def unused(self, at: At) -> Tensor:
        """`[b, parameters]`: which losses do not depend on which parameters."""


class Traceable(Source, Protocol):
    """A source that runs the loss itself."""

    def traced(self, at: At) -> Traced:
        """Run the loss forward, with the draws of `rows`, for a backward pass of the caller's own."""


@dataclass(frozen=True)
class Traced:
    """A forward pass of some samples with one autograd graph behind it, for a backward pass of the caller's own.

    Attributes:
        leaves: the parameters.
        losses: numerators, `[b]`, with the graph.
        weights: `[b]`.
        aux: a nest of `[b, ...]` without graph, None if the loss returns none.
        swap: holds the draws, for what runs again in the backward pass.
        scale: what a cotangent is multiplied by before it goes through the graph (`loss_scale`).
    """

    leaves: Tensors
    losses: Tensor
    weights: Tensor
    aux: Any
    swap: Swap
    scale: float

    def weighted_grad(self, r: Tensor) -> Tensors:
        """Gradient of `sum r[i] losses[i]` in the accumulation dtype. The graph is retained.

        A graph with clipped cotangents is linear in none of them: there it is one backward pass a sample.
        """
        if not clips(self.losses):
            return self._pulled(r.to(self.losses))
        chosen = [i for i in range(len(r)) if r[i] != 0] or [0]
        ones = torch.eye(len(r), dtype=self.losses.dtype, device=self.losses.device)
        each = [self._pulled(ones[i]) for i in chosen]
        return row_sum({name: torch.stack([row[name] for row in each]) for name in self.leaves}, r[chosen])

    def _pulled(self, cotangent: Tensor) -> Tensors:
        with self.swap.backward():
            grads = zero_filled(gradients(self.losses, self.leaves, cotangent * self.scale), self.leaves)
        return {name: value.to(wide(value.dtype)) / self.scale for name, value in grads.items()}


def spans(size: int, chunk: int) -> list[At]:
    """Stretches of at most `chunk` samples."""
    return [slice(start, min(start + chunk, size)) for start in range(0, size, chunk)]


def gradients(
    loss: Tensor,
    leaves: Tensors,
    cotangent: Tensor | None = None,
    *,
    is_grads_batched: bool = False,
    create_graph: bool = False,
) -> dict[str, Tensor | None]:
    """`autograd.grad` by name: dense, None where `loss` does not depend on a leaf. The graph is retained."""
    if not loss.requires_grad:
        return dict.fromkeys(leaves)
    grads = torch.autograd.grad(
        loss,
        list(leaves.values()),
        cotangent,
        retain_graph=True,
        create_graph=create_graph,
        allow_unused=True,
        is_grads_batched=is_grads_batched,
    )
    dense = [None if g is None else g.to_dense() if g.layout != torch.strided else g for g in grads]
    return dict(zip(leaves, dense, strict=True))


def stacked_grads(each: list[dict[str, Tensor | None]], leaves: Tensors) -> Tensors:
    """One gradient a sample, stacked by name; zeros where a sample has none."""
    full = [zero_filled(grads, leaves) for grads in each]
    return {name: torch.stack([grads[name] for grads in full]) for name in leaves}


def zero_filled(grads: dict[str, Tensor | None], leaves: Tensors, *rows: int) -> Tensors:
    """Zeros for what there is no gradient of, `[*rows, *shape]`."""
    return {
        name: leaf.detach().new_zeros((*rows, *leaf.shape)) if (g := grads[name]) is None else g
        for name, leaf in leaves.items()
    }


def absent(each: list[dict[str, Tensor | None]]) -> Tensor:
    """`[b, parameters]`: which gradients autograd says there are none of."""
    return torch.tensor([[grad is None for grad in grads.values()] for grads in each], dtype=torch.bool)


def stacked_values(values: list[Weighted]) -> Weighted:
    """One loss a sample, stacked."""
    return Weighted(torch.stack([v.numerator.detach() for v in values]), torch.stack([v.weight for v in values]))
