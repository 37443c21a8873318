"""Operations that send rows elsewhere by an index: what a plan must find unchanged to be used again.

Which sample owns which row follows from the operations of the graph, but for these. So a plan remembers the indices
that met a dimension of samples, and is learnt anew where they differ: routed experts, packed sequences, another order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._graph import Edge, Graph
from ._owners import Owners

# Node type -> attribute that holds the index, for operations along `_saved_dim`.
_ALONG = {
    **dict.fromkeys(
        [f"{name}Backward0" for name in ("IndexSelect", "IndexAdd", "IndexCopy", "IndexFill", "IndexReduce", "Gather")]
        + ["ScatterBackward0", "ScatterBackward1", "ScatterAddBackward0", "ScatterReduceBackward0"],
        "_saved_index",
    ),
    **dict.fromkeys(["SortBackward0", "SortBackward1", "TopkBackward0", "KthvalueBackward0"], "_saved_indices"),
}
_TUPLES = frozenset({"IndexBackward0", "IndexPutBackward0", "UnsafeIndexBackward0"})
_WHOLE = {
    "MaskedSelectBackward0": "_saved_mask",
    "MaskedScatterBackward0": "_saved_mask",
    "TakeBackward0": "_saved_index",
}


# These read some of what the first input holds, and others write to it.
_READS = frozenset(
    f"{name}Backward{k}"
    for name in ("Index", "UnsafeIndex", "IndexSelect", "Gather", "Take", "MaskedSelect", "Sort", "Topk", "Kthvalue")
    for k in (0, 1)
)


def indexed(name: str) -> bool:
    """Whether operations of this type have an index."""
    return name in _ALONG or name in _TUPLES or name in _WHOLE


class Route(NamedTuple):
    """One index of one operation, as it was when the plan was learnt."""

    node: int
    dim: int
    to: Tensor

    def unchanged(self, graph: Graph) -> bool:
        """Whether the operation has it still."""
        return any(dim == self.dim and torch.equal(index, self.to) for dim, index in _indices(graph, self.node))


def routes(graph: Graph, owners: Owners) -> list[Route]:
    """Every index that sends what samples own to other places."""
    return [
        Route(i, dim, index.clone())
        for i in range(len(graph.nodes))
        if not _from_shared(graph, owners, i)
        for dim, index in _indices(graph, i)
        if dim < 0 or dim in _dims(graph, owners, i)
    ]


def _from_shared(graph: Graph, owners: Owners, node: int) -> bool:
    """Whether an index tells which part of a parameter, or of what all samples share, is read."""
    if graph.names[node] not in _READS:
        return False
    edge = graph.inputs[node][0]
    return edge is None or edge.node in graph.leaves or owners.of(edge).state == "shared"


def _dims(graph: Graph, owners: Owners, node: int) -> set[int]:
    """The dimensions of samples of an operation's first output and first input."""
    edges = [Edge(node, 0), *graph.inputs[node][:1]]
    return {layout.dim for edge in edges if edge is not None for layout in owners.of(edge).layouts}


def _indices(graph: Graph, i: int) -> list[tuple[int, Tensor]]:
    """Each index with the dimension it counts along, -1 for all."""
    node, name = graph.nodes[i], graph.names[i]
    if name in _TUPLES:
        return [(dim, index) for dim, index in enumerate(node._saved_indices) if index is not None]
    if name in _WHOLE:
        return [(-1, getattr(node, _WHOLE[name]))]
    if name in _ALONG:
        dim = node._saved_dim
        dim -= 2**64 if dim >= 2**63 else 0  # torch shows a negative number as an unsigned one
        return [(dim % max(len(graph.shape(Edge(i, 0))), 1), getattr(node, _ALONG[name]))]
    return []
