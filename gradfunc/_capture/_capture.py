"""The capture itself: one backward pass to the uses of what samples share, and factors from what arrives there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from .._errors import message
from .._factors import Dense, Factor, Gradient, Gradients
from .._tree import Tensors
from ._follows import doubtful
from ._graph import Edge, Graph
from ._owners import Backward, confirm, measure
from ._plan import Plan, Use, plan
from ._pull import pulled
from ._rules import LATE, RULES, Maker, Site, at_once, generic
from ._vjp import dense as _dense
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


@dataclass
class Plans:
    """What graphs have shown, by signature; shared by all calls of one function."""

    known: dict[Any, Plan] = field(default_factory=dict)
    learnt: int = 0


@dataclass(frozen=True, eq=False)
class Captured:
    """Rows as factors, and what is told of them."""

    gradients: Gradients
    unused: tuple[str, ...]
    uses: dict[str, list[Used]]
    signature: Any


class _Awake(Exception):
    """A value without gradient, when the plan was learnt, has one now."""


def capture(
    losses: Tensor,
    leaves: Tensors,
    plans: Plans,
    backward: Backward,
    *,
    scale: float = 1.0,
    vmapped: bool = False,
    compact: bool = True,
) -> Captured:
    """The gradients of `scale * losses[i]` with respect to the leaves. The graph behind the losses is used up.

    Args:
        losses: `[B]` with a graph.
        leaves: the parameters.
        plans: what is known of such graphs, and will be.
        backward: a context around a backward pass.
        scale: what the losses are multiplied by.
        vmapped: whether samples were run by vmap, and mean nothing to each other.
        compact: whether rows are held instead of factors that are no smaller.

    Raises:
        NotImplementedError: torch's own backward pass would mix samples.
    """
    if losses.requires_grad and losses.grad_fn is None:  # a parameter is returned as it is
        with torch.enable_grad():
            losses = losses.view_as(losses)
    graph = Graph(losses, leaves)
    if not len(losses) or not graph.nodes:
        nothing = {name: Gradient.of(leaf.detach(), len(losses), ()) for name, leaf in leaves.items()}
        return Captured(nothing, tuple(leaves), {name: [] for name in leaves}, hash(graph.signature))
    if vmapped:
        _check_apart(graph)
    known = plans.known.get(graph.signature)
    if known is not None and known.fits(graph):
        try:
            return _Run(graph, leaves, known, backward, scale).captured(compact)
        except _Awake:
            pass
    owners = measure(graph, leaves, scale, backward)
    if owners.samples > 2 and doubtful(graph, owners):
        confirm(owners, leaves, scale, backward)
    with backward():  # what a checkpointed region kept is computed again where it is read
        found = plan(graph, owners)
    run = _Run(graph, leaves, found, backward, scale)
    captured = run.captured(compact)
    plans.learnt += 1
    if found.lasting:
        plans.known[graph.signature] = dataclasses.replace(found, late=run.late)
    else:
        plans.known.pop(graph.signature, None)
    return captured


def _check_apart(graph: Graph) -> None:
    """Refuse what torch computes over the whole batch, though vmap says that there is none."""
    for node, name in zip(graph.nodes, graph.names, strict=True):
        if name == "EmbeddingBackward0" and node._saved_scale_grad_by_freq:
            got = "an embedding with scale_grad_by_freq=True, for which torch counts the frequencies of the whole batch"
            do = "Pass engine='loop'."
            raise NotImplementedError(message("vmap", got=got, expected="an operation on one sample", do=do))


class _Run:
    """One backward pass by a plan."""

    def __init__(self, graph: Graph, leaves: Tensors, plan: Plan, backward: Backward, scale: float) -> None:
        self.graph, self.leaves, self.plan = graph, leaves, plan
        self.backward, self.scale = backward, scale
        self.samples = len(graph.losses)
        self.late = False  # whether the graph was read after the backward pass

    def captured(self, compact: bool) -> Captured:
        """Rows of every parameter."""
        arrived: dict[str, list[Factor]] = {name: [] for name in self.leaves}
        uses: dict[str, list[Used]] = {name: [] for name in self.leaves}
        stopped: list[tuple[Edge, Factor, Used]] = []
        with torch.no_grad():
            for use, factor, used in self._factors():
                back = pulled(self.graph, use.edge, factor, self.backward)
                through = ", ".join(self.graph.names[node] for node in sorted(back.through))
                for name, rows in back.arrived:
                    arrived[name].append(rows)
                    uses[name].append(used._replace(kind=rows.kind, through=through))
                stopped += [(edge, rows, used) for edge, rows in back.stopped]
                self.late |= not back.through.isdisjoint(self.plan.passed)
            for name, rows, used in self._pulled_back(stopped):
                arrived[name].append(rows)
                uses[name].append(used)
            gradients = {}
            for name, leaf in self.leaves.items():
                gradient = Gradient.of(leaf.detach(), self.samples, arrived.pop(name))
                gradients[name] = gradient.compact() if compact else gradient
        return Captured(gradients, self.plan.unused, uses, hash(self.graph.signature))

    def _factors(self) -> list[tuple[Use, Factor, Used]]:
        """The cotangents of the uses by one backward pass, and what the rules make of them."""
        graph, plan = self.graph, self.plan
        with self.backward():
            makers = [self._maker(use) for use in plan.uses]
            summed, made, grads = self._run_backward(makers)
        self._check_asleep([grads[edge] for edge in plan.sentinels])
        out = []
        for i, use in enumerate(plan.uses):
            if i not in summed:
                cotangents = [grads[Edge(use.node, k)] for k in range(graph.outputs(use.node))]
                factor = self._made(use, makers[i][0], cotangents)
                if factor is not None:
                    made[i] = factor
                makers[i] = (None, makers[i][1])
            if i in made:
                out.append((use, made[i], Used(graph.names[use.node], makers[i][1])))
        return out

    def _run_backward(
        self, makers: list[tuple[Maker | None, str]]
    ) -> tuple[set[int], dict[int, Factor], dict[Edge, Tensor | None]]:
        """The uses that are summed while the pass runs, their factors, and the cotangents of all others."""
        graph, plan = self.graph, self.plan
        early, made = self._early(makers), dict[int, Factor]()
        summed = {i for uses in early.values() for i in uses}
        wanted = dict.fromkeys(
            [
                *(
                    Edge(use.node, k)
                    for i, use in enumerate(plan.uses)
                    if i not in summed
                    for k in range(graph.outputs(use.node))
                ),
                *plan.sentinels,
            ]
        )
        if not wanted and not early:
            return summed, made, {}

        def make(node: int, grads: tuple[Tensor | None, ...]) -> None:
            with torch._C.DisableTorchFunction():  # operations of ours, which the mode around the pass is not for
                for i in early[node]:
                    maker = makers[i][0]
                    if maker is not None and grads[0] is not None:
                        made[i] = maker(_dense(grads[0]))
                    makers[i] = (None, makers[i][1])  # which held what it read

        # Of a node that runs, torch captures a cotangent before the hooks of the tensor, so it is noted behind them.
        noted: dict[Edge, Tensor | None] = {edge: None for edge in wanted if edge.node in plan.passed}

        def note(edge: Edge, grads: tuple[Tensor | None, ...]) -> None:
            noted[edge] = grads[edge.output]

        handles = [graph.nodes[node].register_prehook(partial(make, node)) for node in early]
        handles += [graph.nodes[edge.node].register_prehook(partial(note, edge)) for edge in noted]
        ends = [edge for edge in wanted if edge not in noted]  # never empty: what is lowest does not run
        edges = [GradientEdge(graph.nodes[edge.node], edge.output) for edge in ends]
        cotangent = torch.full_like(graph.losses, self.scale)
        try:
            # a sentinel that wakes needs the graph for another reading
            lasts = plan.late or bool(plan.sentinels)
            found = torch.autograd.grad(graph.losses, edges, cotangent, retain_graph=lasts, allow_unused=True)
        finally:
            for handle in handles:
                handle.remove()
        grads: dict[Edge, Tensor | None] = {
            edge: None if g is None else _dense(g) for edge, g in [*zip(ends, found, strict=True), *noted.items()]
        }
        return summed, made, grads

    def _early(self, makers: list[tuple[Maker | None, str]]) -> dict[int, list[int]]:
        """Uses whose cotangents are summed while the pass runs, by node. What it only reaches would run no hook."""
        graph, plan = self.graph, self.plan
        groups: dict[int, list[int]] = {}
        for i, use in enumerate(plan.uses):
            outputs = graph.outputs(use.node) - sum(layout is None for layout in use.layouts)
            asked = at_once(graph.names[use.node], use.input) and outputs == 1 and use.node in plan.passed
            if asked and makers[i][0] is not None:
                groups.setdefault(use.node, []).append(i)
        return groups

    def _made(self, use: Use, maker: Maker | None, cotangents: list[Tensor | None]) -> Factor | None:
        if all(g is None for g in cotangents):
            return None
        first, *others = cotangents
        if maker is not None and first is not None and all(g is None for g in others):
            if self.graph.names[use.node] not in LATE:
                return maker(first)
            with self.backward():
                return maker(first)
        self.late = True
        node, shape = self.graph.nodes[use.node], self.graph.shape(use.edge)
        with self.backward():
            return generic(node, use.input, cotangents, use.layouts, self.samples, shape)

    def _maker(self, use: Use) -> tuple[Maker | None, str]:
        graph, layout = self.graph, use.layouts[0]
        name = graph.names[use.node]
        rule = RULES.get(name) or LATE.get(name)
        if rule is None or layout is None:
            return None, "generic"
        out, shape = graph.shape(Edge(use.node, 0)), graph.shape(use.edge)
        try:
            maker = rule(Site(graph.nodes[use.node], name, use.input, self.samples, layout, out, shape))
        except AttributeError:  # this version of torch keeps it under another name
            maker = None
        self.late |= maker is not None and name in LATE
        return maker, "generic" if maker is None else rule.__name__

    def _check_asleep(self, sentinels: list[Tensor | None]) -> None:
        awake = [g.any() for g in sentinels if g is not None]
        if awake and bool(torch.stack(awake).any()):
            raise _Awake

    def _pulled_back(self, stopped: list[tuple[Edge, Factor, Used]]) -> Iterator[tuple[str, Factor, Used]]:
        """What stopped at some values, by one vector-Jacobian product a sample."""
        if not stopped:
            return
        self.late = True
        graph = self.graph
        totals: dict[Edge, Tensor] = {}
        for edge, factor, _ in stopped:
            rows = factor.dense().to(graph.dtype(edge)).reshape(self.samples, *graph.shape(edge))
            totals[edge] = totals[edge] + rows if edge in totals else rows
        through = ", ".join(sorted({graph.names[edge.node] for edge in totals}))
        operation, rule = (", ".join(sorted({getattr(u, part) for *_, u in stopped})) for part in ("operation", "rule"))
        used = Used(operation, rule, "dense", through, stopped=True)
        outputs = [GradientEdge(graph.nodes[edge.node], edge.output) for edge in totals]
        with self.backward():
            found = vjp(outputs, list(self.leaves.values()), list(totals.values()))
        for name, grads in zip(self.leaves, found, strict=True):
            if grads is not None:
                yield name, Dense(grads), used
