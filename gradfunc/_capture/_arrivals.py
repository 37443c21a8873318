"""What has come to each parameter, joined as soon as all of it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor
from torch.autograd.graph import GradientEdge

from .._factors import Dense, Factor, Gradient, Gradients
from .._tree import Tensors
from ._graph import Edge, Graph
from ._owners import Backward
from ._plan import Plan
from ._pull import pulled
from ._vjp import vjp


class Used(NamedTuple):
    """One use of a parameter, for `explain()`.

    Attributes:
        operation: the node's type.
        rule: its name, or "generic".
        kind: of the factor that arrived.
        through: operations through which rows came back to the parameter where it was not used itself.
        stopped: whether their structure was lost on the way, so that they came back as rows.
    """

    operation: str
    rule: str
    kind: str = ""
    through: str = ""
    stopped: bool = False


class Arrivals:
    """Factors on the parameters of one graph, use by use.

    A parameter that no further use reaches is joined at once, and its rows formed if the plan says so. Where that
    happens while the backward pass runs, what they are made of is free before the pass goes on.
    """

    def __init__(self, graph: Graph, leaves: Tensors, plan: Plan, backward: Backward) -> None:
        self._graph, self._leaves, self._plan, self._backward = graph, leaves, plan, backward
        self._due = Counter(name for use in plan.uses for name in use.leaves)
        self._found: dict[str, list[tuple[Factor, Used]]] = {name: [] for name in leaves}
        self._stopped: list[tuple[Edge, Factor, Used]] = []
        self._joined: dict[str, tuple[Gradient, list[Used]]] = {}

    @property
    def stopped(self) -> bool:
        """Whether something must be pulled back through the graph, which `gradients` does."""
        return bool(self._stopped)

    def take(self, i: int, factor: Factor | None, used: Used) -> set[int]:
        """What use i of the plan has come to, None for nothing; returns the nodes read on the way to parameters."""
        use, through = self._plan.uses[i], set[int]()
        if factor is not None:
            arrived, stopped, through = pulled(self._graph, use.edge, factor, self._backward)
            names = ", ".join(self._graph.names[node] for node in sorted(through))
            for name, rows in arrived:
                self._found[name].append((rows, used._replace(kind=rows.kind, through=names)))
            if stopped:  # which arrives with all else that has
                self._stopped += [(edge, rows, used) for edge, rows in stopped]
                self._due.update(use.leaves)
        self._due.subtract(use.leaves)
        for name in use.leaves:
            if not self._due[name]:
                self._join(name)
        return through

    def gradients(self) -> tuple[Gradients, dict[str, list[Used]]]:
        """Every parameter's rows, and what they came from."""
        for name, rows, used in self._pulled_back():
            self._found[name].append((rows, used))
        for name in self._leaves:
            if name not in self._joined:
                self._join(name)
        found = {name: self._joined[name] for name in self._leaves}
        return {name: rows for name, (rows, _) in found.items()}, {name: uses for name, (_, uses) in found.items()}

    def _join(self, name: str) -> None:
        found, like = self._found.pop(name), self._leaves[name].detach()
        gradient = Gradient.of(like, len(self._graph.losses), [factor for factor, _ in found])
        gradient = gradient.formed() if name in self._plan.formed else gradient
        self._joined[name] = gradient, [used for _, used in found]

    def _pulled_back(self) -> Iterator[tuple[str, Factor, Used]]:
        """What stopped at some values, by one vector-Jacobian product a sample."""
        if not self._stopped:
            return
        graph = self._graph
        totals: dict[Edge, Tensor] = {}
        for edge, factor, _ in self._stopped:
            rows = factor.dense().to(graph.dtype(edge)).reshape(len(graph.losses), *graph.shape(edge))
            totals[edge] = totals[edge] + rows if edge in totals else rows
        through = ", ".join(sorted({graph.names[edge.node] for edge in totals}))
        operation, rule = (
            ", ".join(sorted({getattr(u, part) for *_, u in self._stopped})) for part in ("operation", "rule")
        )
        used = Used(operation, rule, "dense", through, stopped=True)
        outputs = [GradientEdge(graph.nodes[edge.node], edge.output) for edge in totals]
        with self._backward():
            found = vjp(outputs, list(self._leaves.values()), list(totals.values()))
        for name, grads in zip(self._leaves, found, strict=True):
            if grads is not None:
                yield name, Dense(grads), used
