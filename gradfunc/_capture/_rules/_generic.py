"""Any operation: its own vector-Jacobian product on the cotangent of one sample at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..._factors import Dense
from .._layout import Layout
from .._vjp import dense, unhurried
from ._site import sum_to

# Entries of masked cotangents at once.
_BUDGET = 2**24


def generic(
    node: Any,
    j: int,
    cotangents: Sequence[Tensor | None],
    layouts: Sequence[Layout | None],
    samples: int,
    shape: tuple[int, ...],
) -> Dense:
    """Rows with respect to input j of an operation, from the cotangents of all its outputs."""
    given = [
        (k, g, layout)
        for k, (g, layout) in enumerate(zip(cotangents, layouts, strict=True))
        if g is not None and layout
    ]

    def of(*masked: Tensor) -> Tensor:
        inputs: list[Tensor | None] = [None if g is None else torch.zeros_like(g) for g in cotangents]
        for (k, _, _), g in zip(given, masked, strict=True):
            inputs[k] = g
        if hasattr(node, "apply"):  # of a Python function, which is no callable itself and expects zeros, not None
            like = given[0][1]
            metas = zip(inputs, node._input_metadata, strict=True)
            out = node.apply(*(like.new_zeros(meta.shape, dtype=meta.dtype) if g is None else g for g, meta in metas))
            product = out[_argument(node, j)] if isinstance(out, tuple) else out
        else:
            out = node(*inputs)
            product = out[j] if isinstance(out, tuple) else out
        like = given[0][1]
        return like.new_zeros(shape) if product is None else sum_to(dense(product)[None], shape)[0]

    step = max(1, _BUDGET // max(1, sum(g.numel() for _, g, _ in given)))
    parts = []
    for start in range(0, samples, step):
        some = torch.arange(start, min(start + step, samples))
        masked = [layout.masked(g, some, samples) for _, g, layout in given]
        parts.append(_mapped(of, masked))
    return Dense(torch.cat(parts))


def _argument(node: Any, j: int) -> int:
    """Which argument of a Python function input j of its node is: arguments that are no tensors have no edge."""
    edges = [k for k, (below, _) in enumerate(node.next_functions) if below is not None]
    arguments = [k for k, needed in enumerate(node.needs_input_grad) if needed]
    return arguments[edges.index(j)]


def _mapped(fn: Any, masked: list[Tensor]) -> Tensor:
    def alone(b: int) -> Tensor:
        row: Tensor = fn(*(g[b] for g in masked))
        return row

    samples = len(masked[0])
    try:
        with unhurried():
            rows: Tensor = torch.func.vmap(fn)(*masked)
        # Some of torch's batching rules are wrong, such as that of the backward pass of cdist.
        if all(_alike(rows[b], alone(b)) for b in {0, samples - 1}):
            return rows
    except (RuntimeError, NotImplementedError):  # no batching rule for this node
        pass
    return torch.stack([alone(b) for b in range(samples)])


def _alike(a: Tensor, b: Tensor) -> bool:
    """Whether at least half of the digits agree, as they do for two ways of rounding; NaN agrees with NaN."""
    if not a.numel():
        return True
    bound = math.sqrt(torch.finfo(b.dtype).eps) * b.abs().nan_to_num().max()
    return bool((((a - b).abs() <= bound) | (a == b) | (a.isnan() & b.isnan())).all())
