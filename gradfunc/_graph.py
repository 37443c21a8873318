"""The autograd graph behind a value: its nodes, and the lowest precision in it.

Reads `_input_metadata` (shapes and dtypes of a node's outputs), as it is in torch 2.13.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ._rounding import unit_roundoff
from ._tree import Tensors


def nodes(root: Any) -> list[Any]:
    """Every node from `root` down, each once. The list keeps their Python objects alive, so ids are good."""
    found, stack, seen = [], [root], {root}
    while stack:
        node = stack.pop()
        found.append(node)
        for below, _ in node.next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                stack.append(below)
    return found


def coarsest_in(value: Tensor, leaves: Tensors) -> float:
    """The largest unit roundoff of the leaves and of any floating value in the graph of `value`."""
    root = value.grad_fn
    dtypes = {value.dtype, *(leaf.dtype for leaf in leaves.values())}
    # Outputs that something is computed from: a Python function under vmap has others, which stand for nothing.
    read = {edge for node in (nodes(root) if root is not None else []) for edge in node.next_functions}
    for node, k in read:
        metas = getattr(node, "_input_metadata", ())
        dtypes |= {metas[k].dtype} if k < len(metas) and metas[k] is not None else set()
    return max(unit_roundoff(dtype) for dtype in dtypes if dtype.is_floating_point)
