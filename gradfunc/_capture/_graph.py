"""The autograd graph behind the losses, read once: nodes in a fixed order, their edges, the parameters at its ends.

Reads `_input_metadata`, what torch knows of the outputs of the forward operation (the inputs of the node).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .._cotangent import is_clip


class Edge(NamedTuple):
    """Output `output` of the operation at node `node` (a position in the graph's list)."""

    node: int
    output: int


class Graph:
    """What `losses` were computed by.

    Attributes:
        nodes: from the losses down, each once, losses first. The list keeps torch's wrappers alive, and so their ids.
        names: of the nodes' types.
        inputs: for each node the edges that its operation read; None for what does not require gradients.
        leaves: node -> name of the parameter that ends there.
        signature: equal for graphs of the same operations on the same shapes; hashable.
    """

    def __init__(self, losses: Tensor, leaves: Mapping[str, Tensor]) -> None:
        known = {id(leaf): name for name, leaf in leaves.items()}
        self.losses = losses
        self.leaves: dict[int, str] = {}
        self.names: list[str] = []
        self.inputs: list[list[Edge | None]] = []
        root = losses.grad_fn
        self.nodes: list[Any] = [] if root is None else [root]
        where = dict.fromkeys(self.nodes, 0)
        self._outputs: list[tuple[tuple[tuple[int, ...], torch.dtype], ...]] = []
        parts: list[Any] = [len(losses)]
        for i, node in enumerate(self.nodes):  # grows while it is walked
            name, kind = node.name(), cast(Any, type(node))
            edges: list[Edge | None] = []
            for below, output in node.next_functions:
                if below is None:
                    edges.append(None)
                    continue
                at = where.get(below)
                if at is None:
                    at = where[below] = len(self.nodes)
                    self.nodes.append(below)
                edges.append(Edge(at, output))
            self.names.append(name)
            self.inputs.append(edges)
            leaf = known.get(id(node.variable)) if name == _LEAF else None
            if leaf is not None:
                self.leaves[i] = leaf
            numbers = tuple(str(getattr(node, attribute)) for attribute in _numbers(kind, name))
            numbers += (str(node.lead),) if is_clip(node) else ()
            outputs = tuple((tuple(meta.shape), meta.dtype) for meta in cast(Any, node)._input_metadata)
            self._outputs.append(outputs)
            parts.append((name, leaf, tuple(edges), outputs, numbers))
        self.signature: Any = tuple(parts)

    @property
    def structure(self) -> Any:
        """The same in any precision: who owns what does not depend on it."""
        size, *parts = self.signature
        shapes = ((*head, tuple(shape for shape, _ in outputs), numbers) for *head, outputs, numbers in parts)
        return (size, *shapes)

    def shape(self, edge: Edge) -> tuple[int, ...]:
        """Of the value, or the parameter, at an edge."""
        return self._outputs[edge.node][edge.output][0]

    def dtype(self, edge: Edge) -> torch.dtype:
        """Of the value at an edge."""
        return self._outputs[edge.node][edge.output][1]

    def outputs(self, node: int) -> int:
        """How many outputs the operation has."""
        return len(self._outputs[node])

    def only_input(self, node: int) -> Edge | None:
        """The edge below a node that reads one value."""
        return self.inputs[node][0] if self.inputs[node] else None


_LEAF = "torch::autograd::AccumulateGrad"
# What tells which part of a tensor an operation takes, along which dimension, or in which order.
_WORDS = "dim dims dim0 dim1 dim2 shifts diagonal offset pad padding size stride storage_offset repeats split_sizes"
_NUMBERS = tuple(f"_saved_{word}" for word in _WORDS.split())
_OWN = {
    "SelectBackward0": ("_saved_index",),
    "SliceBackward0": ("_saved_start", "_saved_end", "_saved_step"),
}  # which are tensors elsewhere


@cache
def _numbers(kind: Any, name: str) -> tuple[str, ...]:
    """Those of them that nodes of a type have."""
    return tuple(number for number in (*_NUMBERS, *_OWN.get(name, ())) if hasattr(kind, number))
