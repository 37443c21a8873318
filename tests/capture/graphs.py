"""Graphs made by hand, what is measured on them, and the truth: one backward pass a sample."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from oracle import close_rows
from torch import Tensor

from gradfunc._capture import Captured, Plans, _follows, _owners, capture
from gradfunc._capture._graph import Edge, Graph
from gradfunc._capture._owners import Owners

F64 = torch.float64
Losses = Callable[..., Tensor]
Params = dict[str, Tensor]


class Model(NamedTuple):
    """`losses(params, *batch) -> [B]`, parameters and a batch."""

    losses: Losses
    params: Params
    batch: tuple[Any, ...]


def run(model: Model) -> tuple[Graph, Params]:
    """The graph behind the losses, on fresh leaves."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in model.params.items()}
    return Graph(model.losses(leaves, *model.batch), leaves), leaves


def measured(graph: Graph, leaves: Params) -> Owners:
    """As a learning call measures them."""
    owners = _owners.measure(graph, leaves, 1.0, contextlib.nullcontext)
    if owners.samples > 2 and (doubts := _follows.doubtful(graph, owners)):
        _owners.confirm(owners, leaves, 1.0, contextlib.nullcontext, doubts)
    return owners


def captured(model: Model, plans: Plans | None = None) -> Captured:
    """What the engine makes of it."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in model.params.items()}
    return capture(
        model.losses(leaves, *model.batch), leaves, Plans() if plans is None else plans, contextlib.nullcontext
    )


def rows(model: Model) -> Params:
    """The gradient of every sample, each by a backward pass of its own."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in model.params.items()}
    losses = model.losses(leaves, *model.batch)
    each = [
        torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, materialize_grads=True) for loss in losses
    ]
    dense = [[g.to_dense() if g.layout != torch.strided else g for g in grads] for grads in each]
    return {name: torch.stack(column) for name, column in zip(leaves, zip(*dense, strict=True), strict=True)}


def exact(model: Model, plans: Plans | None = None) -> None:
    """Rows equal the truth, on the scale of each sample's whole gradient; so they do, bit for bit, by a known plan."""
    known = Plans() if plans is None else plans
    first = captured(model, known).gradients
    close_rows({name: gradient.dense() for name, gradient in first.items()}, rows(model))
    again = captured(model, known).gradients if plans is None else first
    for name, gradient in first.items():
        kinds = [[factor.kind for factor in one.factors] for one in (gradient, again[name])]
        assert kinds[0] == kinds[1], (name, kinds)
        assert torch.equal(gradient.dense(), again[name].dense()), name


def touched(graph: Graph, leaves: Params) -> dict[Edge, Tensor]:
    """For every value `[B, *shape]`: whether an entry has a gradient of this sample's loss (that is finite)."""
    samples = len(graph.losses)
    found: dict[Edge, Tensor] = {}

    def note(i: int, b: int, grads: tuple[Tensor | None, ...]) -> None:
        for k, grad in enumerate(grads):
            if grad is not None:
                whole = found.setdefault(Edge(i, k), torch.zeros(samples, *grad.shape, dtype=torch.bool))
                whole[b] = (grad != 0) & grad.isfinite()

    for b in range(samples):
        inner = [i for i in range(len(graph.nodes)) if i not in graph.leaves]
        handles = [graph.nodes[i].register_prehook(partial(note, i, b)) for i in inner]
        torch.autograd.grad(graph.losses[b], list(leaves.values()), retain_graph=True, allow_unused=True)
        for handle in handles:
            handle.remove()
    return found


def along(touch: Tensor, d: int) -> Tensor:
    """`[B, slots]`: which slots along a dimension have a gradient of which sample."""
    return touch.movedim(d + 1, 1).flatten(2).any(2) if touch.dim() > 2 else touch


def judged(graph: Graph, owners: Owners, touch: dict[Edge, Tensor], *, tight: bool = True) -> dict[str, int]:
    """Hold the readings against the truth; how many of each state there were.

    Nothing is called owned that two samples touch, and every slot that is touched has its true owner. If `tight`,
    nothing is called shared either of which some dimension tells the samples apart.
    """
    counts = dict.fromkeys(("owned", "shared", "zero", "absent"), 0)
    for edge, each in touch.items():
        if not each[0].dim():
            each = each[:, None]
        reading, name = owners.of(edge), graph.names[edge.node]
        counts[reading.state] += 1
        if reading.state == "owned":
            for layout in reading.layouts:
                by = along(each, layout.dim)
                owner = layout.owners(by.shape[1], len(by), by.device)
                claimed = torch.arange(len(by))[:, None] == owner
                assert not bool((by & ~claimed).any()), f"{name}: {layout} gives slots to others than who has them"
        elif reading.state == "shared" and tight:
            apart = [bool((along(each, d).sum(0) <= 1).all()) for d in range(each.dim() - 1)]
            assert not any(apart), f"{name}: shared, although samples are apart along {apart}"
        elif reading.state != "shared":
            assert not bool(each.any()), f"{name}: {reading.state}, although there is a gradient"
    return counts


def judge(model: Model, *, tight: bool = True) -> dict[str, int]:
    """Measure, and hold against the truth."""
    graph, leaves = run(model)
    owners = measured(graph, leaves)
    # what a plain indexing of the losses adds to the graph is not in the list, so the edges are the same
    return judged(graph, owners, touched(graph, leaves), tight=tight)
