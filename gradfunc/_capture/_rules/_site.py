"""What a rule is told, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..._factors import Dense, Factor
from .._layout import Layout

# From the cotangent of the operation's output to the factor on the value that it used. It holds what was read of the
# node beforehand, so that the graph may be freed meanwhile.
Maker = Callable[[Tensor], Factor]


@dataclass(frozen=True, eq=False)
class Site:
    """One use of a shared value.

    Attributes:
        node: torch's node; a rule reads its `_saved_*` attributes.
        name: of the node's type.
        input: which input of the operation the value is.
        samples: B.
        layout: who owns the operation's output.
        out: shape of that output.
        shape: of the value.
    """

    node: Any
    name: str
    input: int
    samples: int
    layout: Layout
    out: tuple[int, ...]
    shape: tuple[int, ...]

    def saved(self, name: str) -> Tensor | None:
        """A tensor that the operation kept."""
        tensor: Tensor | None = getattr(self.node, f"_saved_{name}")
        return tensor.detach() if tensor is not None and tensor.requires_grad else tensor

    def split(self, tensor: Tensor, dim: int | None = None) -> Tensor:
        """Every sample's slots: `[B, T, ...]`."""
        return self.layout.split(tensor, self.samples, dim)

    def channels(self, product: Tensor) -> Dense:
        """Rows from a product `[N, C, ...]` whose images belong to samples: a number a channel."""
        return self.summed(product.flatten(2).sum(2) if product.dim() > 2 else product)

    def summed(self, product: Tensor) -> Dense:
        """Rows from an elementwise product of the output's shape, summed to the shape of the value."""
        own = self.layout.dim - (product.dim() - len(self.shape))  # the dimension of samples in the value
        if product.dim() and (own < 0 or self.shape[own] == 1):
            each = self.split(product)  # [B, slots of a sample, the other dimensions]
            rows = each.squeeze(1) if each.shape[1] == 1 else each.sum(1)
            return Dense(sum_to(rows if own < 0 else rows.unsqueeze(1 + self.layout.dim), self.shape))
        rows = self.layout.masked(product, torch.arange(self.samples), self.samples)
        return Dense(sum_to(rows, self.shape))


def sum_to(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`[B, *larger]` summed to `[B, *shape]`: the reverse of broadcasting."""
    lead = rows.dim() - 1 - len(shape)
    if lead > 0:
        rows = rows.sum(list(range(1, 1 + lead)))
    if short := [d + 1 for d, n in enumerate(shape) if n == 1 and rows.shape[d + 1] != 1]:
        rows = rows.sum(short, keepdim=True)
    return rows if rows.shape[1:] == shape else rows.reshape(len(rows), *shape)


def sum_copies(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`[B, *longer]` summed to `[B, *shape]`: the reverse of repeating copies one after the other."""
    lead = rows.dim() - 1 - len(shape)
    for d, n in enumerate((*[1] * lead, *shape), 1):
        if rows.shape[d] != n:
            rows = rows.unflatten(d, (-1, n)).sum(d)
    return rows.reshape(len(rows), *shape)
