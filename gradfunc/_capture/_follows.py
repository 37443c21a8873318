"""Whether the owners of an operation's input follow from those of its output, whatever the numbers are.

An operation that gives every number of an input to many numbers of its output (a product along the dimension that it
sums over, a lookup, broadcasting, attention) may still leave that input to one sample, if masks or zeros of the data
have it so. Other data of the same shapes, another mask, would have it otherwise.
"""

from __future__ import annotations

from collections.abc import Container

from .._cotangent import is_clip
from .._recurrent import is_scan
from ._graph import Edge, Graph
from ._owners import REORDERS, VIEWS, Owners
from ._routes import indexed

# Node type -> the first of the two inputs that are multiplied.
_PRODUCTS = {
    **dict.fromkeys(["MmBackward0", "MvBackward0", "BmmBackward0", "DotBackward0"], 0),
    **dict.fromkeys(["AddmmBackward0", "AddmvBackward0", "BaddbmmBackward0", "SparseAddmmBackward0"], 1),
}
# Node type, as it begins -> for each input, how many of its dimensions are the output's own; negative: all but so many.
_OTHERS: dict[str, tuple[int, ...]] = {
    "Embedding": (0,),
    "Convolution": (1, 0, 0),
    "GridSampler": (2, 1),
    "Cdist": (-1, -2),
    "EuclideanDist": (-1, -2),
    "ScaledDotProduct": (-1, -2, -2),  # keys and values are summed over
}
_ELEMENTWISE = (
    "Add Sub Rsub Mul Div Where MaskedFill Pow Lerp Addcmul Addcdiv Maximum Minimum Fmax Fmin Atan2 Expand Repeat"
)
_BROADCAST = frozenset(f"{name}Backward{k}" for name in _ELEMENTWISE.split() for k in (0, 1)) | _PRODUCTS.keys()


def follows(graph: Graph, owners: Owners, node: int, j: int) -> bool:
    """Whether input j of an owned operation is owned as it is for any data; of operations not known here, True."""
    edge = graph.inputs[node][j]
    assert edge is not None
    above, below = owners.of(Edge(node, 0)), owners.of(edge)
    name, out, shape = graph.names[node], graph.shape(Edge(node, 0)), graph.shape(edge)
    if owners.samples == 1 or not above.layouts or not below.layouts or name in VIEWS or name.startswith(REORDERS):
        return True
    scans = is_scan(graph.nodes[node])  # it keeps rows apart, the last dimension but one, and mixes steps
    if hasattr(graph.nodes[node], "apply") and not (
        scans or is_clip(graph.nodes[node])
    ):  # a function written in Python may do anything with its data
        return False
    if name.startswith("Convolution") and graph.nodes[node]._saved_groups % owners.samples == 0:
        return True  # groups of channels for each sample
    (dim, inner), (own, within) = ((layout.dim, layout.inner) for layout in (above.layout, below.layout))
    kept = _kept(graph, node, j, len(shape))
    if kept is not None:
        return own in kept and (own, within) == (dim, inner)
    if scans:
        return (own, dim, within) == (len(shape) - 2, len(out) - 2, inner)
    if name in _BROADCAST or out == shape:
        return (own + len(out) - len(shape), within) == (dim, inner)
    return True


def doubtful(graph: Graph, owners: Owners) -> list[Edge]:
    """Values that are owned by what was measured alone: their owners follow from no operation."""
    return [
        edge
        for i, name in enumerate(graph.names)
        for j, edge in enumerate(graph.inputs[i])
        if edge is not None
        and owners.of(edge).state == "owned"
        and owners.node(i) == "owned"
        and (owners.of(edge).layout.table is not None or indexed(name) or not follows(graph, owners, i, j))
    ]


def _kept(graph: Graph, node: int, j: int, rank: int) -> Container[int] | None:
    """The dimensions of input j that an operation keeps apart, where its output has them too; None if not known."""
    name = graph.names[node]
    first = _PRODUCTS.get(name)
    if first is not None and j >= first:
        summed = rank - 1 if j == first else max(0, rank - 2)
        return [d for d in range(rank) if d != summed]
    for kind, counts in _OTHERS.items():
        if name.startswith(kind) and j < len(counts):
            return range(counts[j] if counts[j] >= 0 else rank + counts[j])
    return None
