"""The capture itself: one backward pass to the uses of what samples share, and factors from what arrives there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from .._errors import message
from .._factors import Factor, Gradient, Gradients, formed
from .._tree import Tensors
from ._arrivals import Arrivals, Used
from ._follows import doubtful
from ._graph import Edge, Graph
from ._owners import Backward, confirm, measure
from ._plan import Plan, Use, plan
from ._rules import LATE, RULES, Maker, Site, generic
from ._vjp import dense


@dataclass
class Plans:
    """What graphs have shown, by signature; shared by all calls of one function."""

    known: dict[Any, Plan] = field(default_factory=dict)
    alike: dict[Any, Plan] = field(default_factory=dict)  # of graphs in any precision
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
    form: bool = True,
) -> Captured:
    """The gradients of `scale * losses[i]` with respect to the leaves. The graph behind the losses is used up.

    Args:
        losses: `[B]` with a graph.
        leaves: the parameters.
        plans: what is known of such graphs, and will be.
        backward: a context around a backward pass.
        scale: what the losses are multiplied by.
        vmapped: whether samples were run by vmap, and mean nothing to each other.
        form: whether rows are formed where that is quicker and memory allows it.

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
            return _Run(graph, leaves, known, backward, scale).captured()
        except _Awake:
            pass
    structure = graph.structure
    found = plans.alike.get(structure) if known is None else None  # what has just failed would fail again
    if found is not None and found.fits(graph):
        try:
            return _formed(_Run(graph, leaves, found, backward, scale), plans, form)
        except _Awake:
            pass
    owners = measure(graph, leaves, scale, backward)
    if owners.samples > 2 and (doubts := doubtful(graph, owners)):
        confirm(owners, leaves, scale, backward, doubts)
    with backward():  # what a checkpointed region kept is computed again where it is read
        found = plan(graph, owners)
    plans.learnt += 1
    for memory, key in ((plans.known, graph.signature), (plans.alike, structure)):
        memory.pop(key, None)
    if found.lasting:
        plans.alike[structure] = found
    return _formed(_Run(graph, leaves, found, backward, scale), plans, form)


def _formed(run: _Run, plans: Plans, form: bool) -> Captured:
    """What the first run in a precision gives, some of the rows formed then: later runs form them as they arrive."""
    captured = run.captured()
    chosen = formed(captured.gradients) if form else frozenset[str]()
    for name in chosen:
        captured.gradients[name] = captured.gradients[name].formed()
    if run.plan.lasting:
        plans.known[run.graph.signature] = dataclasses.replace(run.plan, late=run.late, formed=chosen)
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

    def captured(self) -> Captured:
        """Rows of every parameter."""
        arrivals = Arrivals(self.graph, self.leaves, self.plan, self.backward)
        with torch.no_grad():
            self._run_backward(arrivals)
            self.late |= arrivals.stopped
            gradients, uses = arrivals.gradients()
        return Captured(gradients, self.plan.unused, uses, hash(self.graph.signature))

    def _run_backward(self, arrivals: Arrivals) -> None:
        """The cotangents of the uses by one backward pass, and what the rules make of them: at once where they can."""
        graph, plan = self.graph, self.plan
        with self.backward():
            makers = {i: self._maker(use) for i, use in enumerate(plan.uses)}
            early = self._early(makers)

            def make(node: int, grads: tuple[Tensor | None, ...]) -> None:
                with torch._C.DisableTorchFunction():  # operations of ours, which the mode around the pass is not for
                    for i in early[node]:
                        arrivals.take(i, *self._made(i, *makers.pop(i), grads))

            done = {i for uses in early.values() for i in uses}
            grads = self._cotangents([use for i, use in enumerate(plan.uses) if i not in done], early, make)
        self._check_asleep([grads[edge] for edge in plan.sentinels])
        for i in [i for i in makers if i not in done]:
            use = plan.uses[i]
            cotangents = tuple(grads[Edge(use.node, k)] for k in range(graph.outputs(use.node)))
            through = arrivals.take(i, *self._made(i, *makers.pop(i), cotangents))
            self.late |= not through.isdisjoint(plan.passed)

    def _cotangents(
        self, uses: list[Use], early: Iterable[int], make: Callable[[int, tuple[Tensor | None, ...]], None]
    ) -> dict[Edge, Tensor | None]:
        """One backward pass: `make` is called with those of the early nodes, of the uses they are returned."""
        graph, plan = self.graph, self.plan
        ends = [Edge(use.node, k) for use in uses for k in range(graph.outputs(use.node))]
        wanted = dict.fromkeys([*ends, *plan.sentinels])
        # Of a node that runs, torch captures a cotangent before the hooks of the tensor, so it is noted behind them.
        noted: dict[Edge, Tensor | None] = {edge: None for edge in wanted if edge.node in plan.passed}

        def note(edge: Edge, grads: tuple[Tensor | None, ...]) -> None:
            noted[edge] = grads[edge.output]

        ends = [edge for edge in wanted if edge not in noted]  # none only without uses: what is lowest does not run
        if not ends:
            return {}
        edges = [GradientEdge(graph.nodes[edge.node], edge.output) for edge in ends]
        cotangent = torch.full_like(graph.losses, self.scale)
        handles = []
        try:
            handles += [graph.nodes[node].register_prehook(partial(make, node)) for node in early]
            handles += [graph.nodes[edge.node].register_prehook(partial(note, edge)) for edge in noted]
            # a sentinel that wakes needs the graph for another reading
            lasts = plan.late or bool(plan.sentinels)
            found = torch.autograd.grad(graph.losses, edges, cotangent, retain_graph=lasts, allow_unused=True)
        finally:
            for handle in handles:
                handle.remove()
        return {edge: None if g is None else dense(g) for edge, g in [*zip(ends, found, strict=True), *noted.items()]}

    def _early(self, makers: dict[int, tuple[Maker | None, str]]) -> dict[int, list[int]]:
        """Uses whose rows are made while the pass runs, by node.

        Not those of nodes that the pass only reaches, which would run no hook; nor where several cotangents come, or
        what an operation kept is read beside the cotangent or on the way back.
        """
        graph, plan = self.graph, self.plan
        groups: dict[int, list[int]] = {}
        for i, use in enumerate(plan.uses):
            outputs = graph.outputs(use.node) - sum(layout is None for layout in use.layouts)
            late = makers[i][0] is None or graph.names[use.node] in LATE or use.kept
            if use.node in plan.passed and outputs == 1 and not late:
                groups.setdefault(use.node, []).append(i)
        return groups

    def _made(
        self, i: int, maker: Maker | None, rule: str, cotangents: tuple[Tensor | None, ...]
    ) -> tuple[Factor | None, Used]:
        use = self.plan.uses[i]
        used = Used(self.graph.names[use.node], rule)
        if all(g is None for g in cotangents):
            return None, used
        first, *others = cotangents
        if maker is not None and first is not None and all(g is None for g in others):
            if self.graph.names[use.node] not in LATE:
                return maker(dense(first)), used
            with self.backward():
                return maker(dense(first)), used
        self.late = True
        node, shape = self.graph.nodes[use.node], self.graph.shape(use.edge)
        with self.backward():
            return generic(node, use.input, list(cotangents), use.layouts, self.samples, shape), used

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
