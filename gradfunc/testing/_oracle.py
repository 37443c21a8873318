"""What per-sample gradients are measured against: one plain autograd call a sample. None of gradfunc's arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._weights import Weighted

Tensors = dict[str, Tensor]
Arguments = tuple[Sequence[Any], Mapping[str, Any]]  # of one sample


class Truth(NamedTuple):
    """Rows `{name: [B, *shape]}`, numerators `[B]`, weights `[B]` in float64."""

    rows: Tensors
    losses: Tensor
    weights: Tensor


def split(out: Any) -> tuple[Tensor, Tensor]:
    """Numerator and weight of what a loss returned."""
    if isinstance(out, Weighted):
        return out.numerator, torch.as_tensor(out.weight, dtype=torch.float64, device=out.numerator.device)
    return out, torch.ones_like(out, dtype=torch.float64)


def truth(loss: Callable[..., Any], params: Mapping[str, Tensor], samples: Iterable[Arguments]) -> Truth:
    """One autograd call a sample."""
    rows: dict[str, list[Tensor]] = {name: [] for name in params}
    losses, weights = [], []
    for args, kwargs in samples:
        leaves = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
        numerator, weight = split(loss(leaves, *args, **kwargs))
        _append(rows, numerator, leaves)
        losses.append(numerator.detach())
        weights.append(weight)
    return _stacked(rows, losses, weights, params)


def truth_batched(
    losses: Callable[..., Any], params: Mapping[str, Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Truth:
    """One autograd call a row of losses, the whole batch in place."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    numerators, weights = split(losses(leaves, *args, **kwargs))
    rows: dict[str, list[Tensor]] = {name: [] for name in params}
    for numerator in numerators:
        _append(rows, numerator, leaves)
    return _stacked(rows, list(numerators.detach()), list(weights.detach()), params)


def _append(rows: dict[str, list[Tensor]], numerator: Tensor, leaves: Tensors) -> None:
    grads: Sequence[Tensor | None] = [None] * len(leaves)
    if numerator.requires_grad:
        grads = torch.autograd.grad(numerator, list(leaves.values()), retain_graph=True, allow_unused=True)
    for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
        rows[name].append(torch.zeros_like(leaf) if grad is None else grad)


def _stacked(
    rows: dict[str, list[Tensor]], losses: list[Tensor], weights: list[Tensor], params: Mapping[str, Tensor]
) -> Truth:
    full = {k: torch.stack(v) if v else params[k].new_zeros((0, *params[k].shape)) for k, v in rows.items()}
    none = next(iter(params.values())).new_zeros(0) if params else torch.zeros(0)
    weight = torch.stack([w.detach() for w in weights]) if weights else none.double()
    return Truth(full, torch.stack(losses) if losses else none, weight)
