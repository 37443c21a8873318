"""One layer in one direction as two kinds of nodes of the graph of autograd.

The products of the states with a recurrent weight are one node for all steps, `RecurrentProduct`, whose inputs are the
weight and its bias. The rest of the recurrence is another, `RecurrentScan`, whose backward pass gives the cotangents of
these products with all that later steps send back: so the weight's gradient is an ordinary product over all rows. The
value of the products is read by nothing, since the steps have computed it one by one.

Plain operations compute what a backward pass with `create_graph=True` gives, which is to be differentiated again, and
cotangents that a vmap maps over.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._kernels import Kind, Run, Weights
from ._layer import Layer


def is_product(node: Any) -> bool:
    """Whether a node of the graph is a `RecurrentProduct`, and no other function of that name."""
    return isinstance(getattr(node, "layer", None), Layer) and node.name() == f"{RecurrentProduct.__name__}Backward"


def is_scan(node: Any) -> bool:
    """Whether it is a `RecurrentScan`."""
    return isinstance(getattr(node, "layer", None), Layer) and node.name() == f"{RecurrentScan.__name__}Backward"


class RecurrentProduct(Function):
    """`(layer, projects, weight, bias or None, rows)`: stands in the graph for `F.linear(rows, weight, bias)`."""

    @staticmethod
    def forward(ctx: Any, layer: Layer, projects: bool, weight: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor:
        """Zeros, for nobody reads it."""
        ctx.layer, ctx.projects = layer, projects
        ctx.save_for_backward(rows)
        return rows.new_zeros(()).expand(*rows.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of a product and a bias."""
        _, _, weighs, adds, _ = ctx.needs_input_grad
        (rows,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            again = ctx.layer.again()
            rows = again.inside if ctx.projects else again.before
        # (not flatten, for which a vmap over cotangents has no rule)
        weight = grad.reshape(-1, grad.shape[2]).t() @ rows.reshape(-1, rows.shape[2]) if weighs else None
        return None, None, weight, grad.sum((0, 1)) if adds else None, None


class RecurrentScan(Function):
    """`(layer, kind, run, weights, gates, hidden, projected or None, *state)`: the outputs and the last cell state.

    `gates` is what the input gives, `hidden` and `projected` are the products of the states, whose values are `run`'s.
    """

    @staticmethod
    def forward(ctx: Any, layer: Layer, kind: Kind, run: Run, weights: Weights, *given: Tensor | None) -> Any:
        """What was computed, in tensors of its own: a caller may write to them."""
        ctx.layer, ctx.kind, ctx.bias = layer, kind, weights.b_hh
        ctx.save_for_backward(weights.w_hh, weights.w_hr, *run.kept)
        ctx.set_materialize_grads(False)
        return run.after.clone(), *(s.clone() for s in run.last[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, last: Tensor | None = None) -> tuple[Tensor | None, ...]:
        """Every step back."""
        if grad is None and last is None:
            return (None,) * len(ctx.needs_input_grad)
        if torch.is_grad_enabled() or not all(map(_stored, (grad, last))):
            found = ctx.layer.cotangents((grad, last)[: len(ctx.layer.state)], create_graph=torch.is_grad_enabled())
        else:
            w_hh, w_hr, *kept = ctx.saved_tensors
            with torch._C.DisableTorchFunction():  # a mode would be asked about every kernel of every step
                found = ctx.kind.back(kept, Weights(w_hh, ctx.bias, w_hr), last, grad, ctx.layer.reverse)
        return *[None] * 4, found.gates, found.hidden, found.projected, *found.state


def _stored(tensor: Tensor | None) -> bool:
    """Whether it is there to be written beside: a tensor that a vmap maps over has no storage."""
    try:
        return tensor is None or tensor.untyped_storage() is not None
    except NotImplementedError:
        return False
