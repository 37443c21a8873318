"""Where the graph is cut: the uses of values that several samples share.

From the losses down through what samples own; an edge to anything else, a parameter or a value computed from parameters
or from several samples, makes the node a *use* of that value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ._follows import follows
from ._graph import Edge, Graph
from ._layout import Layout
from ._owners import VIEWS, Owners
from ._pull import READING
from ._routes import Route, routes


@dataclass(frozen=True, eq=False)
class Use:
    """One operation that reads a shared value.

    Attributes:
        node: the operation, a position in the graph's list.
        input: which of its inputs the value is.
        edge: where the value comes from.
        layouts: who owns its outputs; None for an output without a gradient.
        leaves: parameters from which it comes.
        kept: whether the way back to them reads tensors that operations have kept.
    """

    node: int
    input: int
    edge: Edge
    layouts: tuple[Layout | None, ...]
    leaves: tuple[str, ...]
    kept: bool


@dataclass(frozen=True, eq=False)
class Plan:
    """What one reading of a graph has found, for all graphs of its signature.

    Attributes:
        uses: the cut.
        sentinels: values whose gradient was 0: the plan does not know who owns them, so it ends where one wakes.
        routes: indices that must be found unchanged.
        unused: parameters that no loss depends on.
        lasting: whether other data of the same shapes is owned alike.
        passed: nodes that the backward pass to the uses runs, and not only reaches.
        late: whether the graph is read after that pass.
        formed: parameters whose rows are formed as they arrive.
    """

    uses: list[Use]
    sentinels: list[Edge]
    routes: list[Route]
    unused: tuple[str, ...]
    lasting: bool
    passed: frozenset[int]
    late: bool = True
    formed: frozenset[str] = frozenset()

    def fits(self, graph: Graph) -> bool:
        """Whether the routes of a graph of this signature are those of the plan."""
        return all(route.unchanged(graph) for route in self.routes)


def plan(graph: Graph, owners: Owners) -> Plan:
    """Cut a graph whose owners are known."""
    uses: list[Use] = []
    sentinels: list[Edge] = []
    owned, seen = [0] if graph.nodes else [], {0}
    lasting = True
    for node in owned:  # grows while it is walked
        readings = [owners.of(Edge(node, k)) for k in range(graph.outputs(node))]
        lasting &= all(reading.certain for reading in readings if reading.state == "owned")
        layouts = tuple(reading.layout if reading.state == "owned" else None for reading in readings)
        for j, edge in enumerate(graph.inputs[node]):
            if edge is None:
                continue
            state = "shared" if edge.node in graph.leaves else owners.node(edge.node)
            if state in ("owned", "shared") and (behind := _repeated(graph, owners, node, j)) is not None:
                state, edge = "shared", behind
            if state == "shared" or (state == "zero" and _only_viewed(graph, owners, edge)):
                uses.append(Use(node, j, edge, layouts, *_leaves(graph, edge)))
            elif state == "zero":
                sentinels.append(edge)
            elif state == "owned":
                lasting &= follows(graph, owners, node, j)
                if edge.node not in seen:
                    seen.add(edge.node)
                    owned.append(edge.node)
    ends = [Edge(use.node, 0) for use in uses] + sentinels
    return Plan(uses, sentinels, routes(graph, owners), owners.unused, lasting, _passed(graph, ends))


def _leaves(graph: Graph, edge: Edge) -> tuple[tuple[str, ...], bool]:
    """The parameters from which a value is computed, and whether a pull on the way reads what an operation kept."""
    pending, names = [edge.node], dict[str, None]()
    seen = set(pending)
    for node in pending:  # grows while it is walked
        if node in graph.leaves:
            names[graph.leaves[node]] = None
        below = {e.node for e in graph.inputs[node] if e is not None} - seen
        seen |= below
        pending += below
    return tuple(names), any(graph.names[node] in READING for node in seen)


def _passed(graph: Graph, ends: list[Edge]) -> frozenset[int]:
    """The nodes from which one of the ends is reached, other than itself."""
    above: dict[int, list[int]] = {}
    for i, edges in enumerate(graph.inputs):
        for edge in edges:
            if edge is not None:
                above.setdefault(edge.node, []).append(i)
    pending, found = [edge.node for edge in ends], set[int]()
    for node in pending:
        for i in above.get(node, ()):
            if i not in found:
                found.add(i)
                pending.append(i)
    return frozenset(found)


_RESHAPES = VIEWS | {"TransposeBackward0", "PermuteBackward0", "TBackward0", "ExpandBackward0"}


def _only_viewed(graph: Graph, owners: Owners, edge: Edge) -> bool:
    """Whether a value is a view of a parameter or of something shared."""
    while edge.node not in graph.leaves and owners.node(edge.node) != "shared":
        below = graph.only_input(edge.node)
        if graph.names[edge.node] not in _RESHAPES or below is None:
            return False
        edge = below
    return True


# Node type -> the first of the two inputs that are multiplied.
BATCHED_PRODUCTS = {"BmmBackward0": 0, "BaddbmmBackward0": 1}


def _repeated(graph: Graph, owners: Owners, node: int, j: int) -> Edge | None:
    """The value behind an operand of a batched product that repeats it for every matrix, if it does.

    If a sample owns a repetition, its cotangent would be that sample's whole gradient; if all share each of them, rows
    would be as many times larger as there are repetitions.
    """
    first = BATCHED_PRODUCTS.get(graph.names[node])
    if first is None or j < first:
        return None
    edge = graph.inputs[node][j]
    while edge is not None and edge.node not in graph.leaves and graph.names[edge.node] in VIEWS:
        edge = graph.only_input(edge.node)
    behind = None if edge is None or graph.names[edge.node] != "ExpandBackward0" else graph.only_input(edge.node)
    if edge is None or behind is None:
        return None
    # Repeated along leading dimensions only, and once for every matrix.
    one, all_ = graph.shape(behind), graph.shape(edge)
    rest = one[next((d for d, n in enumerate(one) if n != 1), len(one)) :]
    matrices = graph.shape(Edge(node, 0))[0]
    repeated = math.prod(all_) == math.prod(rest) * matrices and all_[len(all_) - len(rest) :] == rest
    return behind if repeated and _only_viewed(graph, owners, behind) else None
