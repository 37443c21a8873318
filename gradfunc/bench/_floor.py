"""The floor: what clipping by factors, and rows, cannot do without, in bare operations.

For clipping: a forward pass; a backward pass that forms no weight gradients; and for each use of a weight the products
of its squared norms and the product of its weighted sum, or its rows and a pass over them for each. No graph is read,
nothing is checked, cross terms and biases' norms are left out: what gradfunc takes beyond this is its own.
The backward pass goes down to the lowest parameter that is no weight of a matrix product: in a model without biases it
stops early, and the floor is too low.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._capture import Plans, capture
from .._factors import Gradients, Outer, Rows, Unfolded, formed, scratch_of
from ..audit._case import mean_loss
from ._workload import Case


def floor(case: Case, quantity: str) -> Callable[[], Any]:
    """The operations on a case as one call; factors are found beforehand, by the factored engine.

    Raises:
        RuntimeError: the engine cannot run the loss.
    """
    rows = _factored(case)
    scratch, held = scratch_of(rows), formed(rows)
    outer = {
        name: [
            _Bare(factor, factor.method(scratch).name, name in held)
            for factor in gradient.factors
            if isinstance(factor, (Outer, Unfolded))
        ]
        for name, gradient in rows.items()
    }
    module = copy.deepcopy(case.module)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and not outer.get(name))
    others = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def call() -> Any:
        loss = mean_loss(case.problem, module)
        found = list(torch.autograd.grad(loss, others, allow_unused=True)) if others else []
        both = [bare() for bares in outer.values() for bare in bares]
        return found, [norms for norms, _ in both], [sums for _, sums in both]

    return call


def products(case: Case, quantity: str) -> Callable[[], Any]:
    """What rows cannot do without, beside a plain backward pass: the product of each use of a weight, sample by sample.

    For one position it is the outer product, written; an embedding's rows are scattered. What the engine holds as rows
    from the start (biases, norms) has no product here.

    Raises:
        RuntimeError: the factored engine cannot run the loss.
    """
    factors = [factor for gradient in _factored(case).values() for factor in gradient.factors]
    outer = [factor for factor in factors if isinstance(factor, Outer)]
    others = [factor for factor in factors if isinstance(factor, (Rows, Unfolded))]
    return lambda: ([_product(factor) for factor in outer], [factor.dense() for factor in others])


def _factored(case: Case) -> Gradients:
    """Every sample's gradients as factors, also where the engine would rather hold rows."""
    leaves = {name: value.detach().requires_grad_() for name, value in case.model.params.items()}
    with torch.enable_grad():
        losses = case.losses(leaves, *case.batch).numerator
    return capture(losses, leaves, Plans(), contextlib.nullcontext, form=False).gradients


def _product(factor: Outer) -> Tensor:
    x, g = factor.tensors
    out: Tensor = g.mT * x if x.shape[1] == 1 else g.mT @ x
    return out


@dataclass(frozen=True)
class _Bare:
    """One use of a weight: its squared norms and its sum, in as few operations as the method needs."""

    factor: Outer | Unfolded
    method: str
    held: bool

    def __call__(self) -> tuple[Tensor, Tensor]:
        if self.held:
            rows = _product(self.factor) if isinstance(self.factor, Outer) else self.factor.dense()
            return torch.linalg.vector_norm(rows.flatten(1), dim=1).square(), rows.sum(0)
        if isinstance(self.factor, Unfolded):
            return self.factor.squares(2**20).value, self.factor.weighted_sum(None, 2**30)
        x, g = self.factor.tensors
        return self._squares(x, g), g.flatten(0, 1).T @ x.flatten(0, 1)

    def _squares(self, x: Tensor, g: Tensor) -> Tensor:
        if x.shape[1] == 1:
            out: Tensor = (torch.linalg.vector_norm(x, dim=(1, 2)) * torch.linalg.vector_norm(g, dim=(1, 2))).square()
        elif self.method == "gram":
            out = (x @ x.mT).mul_(g @ g.mT).sum((1, 2))
        else:
            out = torch.linalg.vector_norm(g.mT @ x, dim=(1, 2)).square()
        return out
