"""The floor: what clipping by factors, and rows, cannot do without, in bare operations.

For clipping: a forward pass; a backward pass that forms no weight gradients; and for each use of a weight the products
of its squared norms and the product of its weighted sum. No graph is read, nothing is checked, cross terms and biases'
norms are left out: what gradfunc takes beyond this is its own.
The backward pass goes down to the lowest parameter that is no weight of a matrix product: in a model without biases it
stops early, and the floor is too low.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._factors import Gradients, Outer, Rows, scratch_of
from .._per_sample import per_sample_grads
from ..audit._case import mean_loss
from ._workload import Case


def floor(case: Case, quantity: str) -> Callable[[], Any]:
    """The operations on a case as one call; factors are found beforehand, by the factored engine.

    Raises:
        RuntimeError: the engine cannot run the loss.
    """
    rows = _factored(case)
    scratch = scratch_of(rows)
    outer = {
        name: [(factor, factor.method(scratch).name) for factor in gradient.factors if isinstance(factor, Outer)]
        for name, gradient in rows.items()
    }
    module = copy.deepcopy(case.module)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and not outer.get(name))
    others = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def call() -> Any:
        loss = mean_loss(case.problem, module)
        found = list(torch.autograd.grad(loss, others, allow_unused=True)) if others else []
        norms = [_squares(factor, method) for factors in outer.values() for factor, method in factors]
        sums = [_sum(factor) for factors in outer.values() for factor, _ in factors]
        return found, norms, sums

    return call


def products(case: Case, quantity: str) -> Callable[[], Any]:
    """What rows cannot do without, beside a plain backward pass: the product of each use of a weight, sample by sample.

    For one position it is the outer product, written; an embedding's rows are scattered. What the engine holds as rows
    already (biases, norms, convolutions with small weights) has no product here, and this is too low.

    Raises:
        RuntimeError: the factored engine cannot run the loss.
    """
    factors = [factor for gradient in _factored(case).values() for factor in gradient.factors]
    outer = [factor for factor in factors if isinstance(factor, Outer)]
    rows = [factor for factor in factors if isinstance(factor, Rows)]
    return lambda: ([_product(factor) for factor in outer], [factor.dense() for factor in rows])


def _factored(case: Case) -> Gradients:
    """Every sample's gradients as the factored engine holds them."""
    f = per_sample_grads(case.losses, engine="factored", batched=True).at(step=0)
    found: Gradients = f(case.model.params, *case.batch)._source.rows(slice(0, case.size)).grads
    return found


def _product(factor: Outer) -> Tensor:
    x, g = factor.tensors
    out: Tensor = g.mT * x if x.shape[1] == 1 else g.mT @ x
    return out


def _squares(factor: Outer, method: str) -> Tensor:
    x, g = factor.tensors
    if x.shape[1] == 1:
        out: Tensor = (torch.linalg.vector_norm(x, dim=(1, 2)) * torch.linalg.vector_norm(g, dim=(1, 2))).square()
    elif method == "gram":
        out = (x @ x.mT).mul_(g @ g.mT).sum((1, 2))
    else:
        out = torch.linalg.vector_norm(g.mT @ x, dim=(1, 2)).square()
    return out


def _sum(factor: Outer) -> Tensor:
    x, g = factor.tensors
    out: Tensor = g.flatten(0, 1).T @ x.flatten(0, 1)
    return out
