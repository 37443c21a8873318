"""Rows that leave their places: sorted, permuted, routed to experts, batch elsewhere than in front."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ._case import add, inputs, weights

X = inputs(("T", 6))
flat = inputs((6,))


def experts(p, x):
    """Each row to the expert that its router chose; rows of an expert are gathered and added back."""
    rows = x.reshape(-1, 6)
    chance = (rows @ p["r"]).softmax(-1)
    chosen = chance.argmax(-1)
    out = torch.zeros_like(rows)
    for e in range(3):
        at = (chosen == e).nonzero().squeeze(1)
        out = out.index_add(0, at, (rows[at] @ p["w"][e]).tanh() * chance[at, e, None])
    return out.view_as(x)


def routed_by_data(p, x, expert):
    """The batch says which expert: the first call may send every sample to one."""
    out = torch.zeros_like(x)
    for e in range(3):
        at = (expert == e).nonzero().squeeze(1)
        out = out.index_add(0, at, x[at] @ p["w"][e] + p["b"][e])
    return out.exp()


def equal_counts(params, batch):
    """A round robin: rows of the experts look regular."""
    x, expert = batch
    return params, (x, torch.arange(len(expert)) % 3)


def one_expert(params, batch):
    return params, (batch[0], torch.zeros_like(batch[1]))


def dense_experts(p, x):
    chance = (x @ p["r"]).softmax(-1)
    return torch.einsum("...i,eio,...e->...o", x, p["w"], chance)


def capacity(p, x):
    """Each expert takes its two best positions of the sample."""
    chance = (x @ p["r"]).softmax(-1).transpose(-1, -2)
    best, at = chance.topk(min(2, x.shape[-2]), -1)
    taken = torch.gather(x.unsqueeze(-3).expand(*chance.shape, 6), -2, at.unsqueeze(-1).expand(*at.shape, 6))
    return (torch.einsum("...kpi,kio->...kpo", taken, p["w"]) * best.unsqueeze(-1)).sum((-2, -3))


def permuted(p, x, order):
    """Rows of all samples in one order, a layer, and back."""
    rows = x.reshape(-1, 6)[order]
    out = torch.empty_like(rows @ p["w"])
    return (rows @ p["w"]).tanh().index_select(0, order.argsort()).view(len(x), -1, out.shape[-1])


def shuffled(draw, size, length):
    return draw(size, length, 6), torch.randperm(size * length, generator=draw.generator)


def in_order(params, batch):
    return params, (batch[0], torch.arange(len(batch[1])))


def reversed_order(p, x):
    """The batch backwards through the layer, and back."""
    return (x.flip(0) @ p["w"]).exp().flip(0)


def masked_rows(p, x, seen):
    """Only some rows go through the layer, as many as the data says."""
    out = torch.zeros(*x.shape[:2], 4, dtype=x.dtype)
    out[seen] = x[seen] @ p["w"]
    return out.exp()


def some_rows(draw, size, length):
    seen = draw.flags(size, length)
    seen[:, 0] = True
    return draw(size, length, 6), seen


def first_rows(params, batch):
    seen = torch.zeros_like(batch[1])
    seen[:, 0] = True
    return params, (batch[0], seen)


def concatenated(p, x, owner):
    """Rows without a batch dimension: the data says whose they are (graphs, ragged sequences)."""
    out = (x @ p["w"] + p["b"]).tanh()
    return torch.zeros(int(owner.max()) + 1, 4, dtype=x.dtype).index_add(0, owner, out).sin().sum(1)


def graph(draw, size, length):
    owner = torch.cat([torch.arange(size), draw.ints(size, size * length)])
    return draw(len(owner), 6), owner[torch.randperm(len(owner), generator=draw.generator)]


def regular_graph(params, batch):
    x, owner = batch
    return params, (x, owner.sort().values)


def time_major(p, x):
    return (x.transpose(0, 1).reshape(-1, 6) @ p["w"]).exp().view(x.shape[1], len(x), 4).transpose(0, 1)


def windows(p, x):
    """Windows of a longer sequence as a batch of their own, after a shift across the border."""
    rolled = x.roll(1, 1)
    parts = rolled.reshape(len(x) * 2, -1, 6)
    mixed = (parts @ p["w"]) * (parts @ p["w"]).softmax(1)
    return mixed.view(len(x), -1, 6).roll(-1, 1)


EXPERTS = weights(w=(3, 6, 6), b=(3, 6))
one = weights(w=(6, 4))
OUTER = {"w": "outer"}


def to_expert(draw, size, length):
    return draw(size, 6), draw.ints(3, size)


add("experts, rows gathered", weights(r=(6, 3), w=(3, 6, 6)), X, experts, "native", {"r": "outer"})
add("experts chosen by the data", EXPERTS, to_expert, routed_by_data, "native", degenerate=equal_counts)
add("experts, all to one at first", EXPERTS, to_expert, routed_by_data, "native", degenerate=one_expert)
add("experts, all of them", weights(r=(6, 3), w=(3, 6, 6)), X, dense_experts, "alike", {"r": "outer"})
add("experts of bounded capacity", weights(r=(6, 3), w=(3, 6, 6)), X, capacity, "alike", {"r": "outer"})
add("rows permuted and back", one, shuffled, permuted, "native", OUTER, degenerate=in_order)
add("batch reversed and back", one, X, reversed_order, "native", OUTER)
add("some rows only", one, some_rows, masked_rows, "native", degenerate=first_rows)
add(
    "rows of graphs",
    weights(w=(6, 4), b=(4,)),
    graph,
    concatenated,
    "native",
    scored=False,
    degenerate=regular_graph,
)
add("rows time-major", one, X, time_major, "stacked", OUTER)
add("windows as a batch", weights(w=(6, 6)), inputs((4, 6)), windows, "stacked", OUTER)
add("batch in dimension 1", one, X, lambda p, x: (x.transpose(0, 1) @ p["w"]).exp().transpose(0, 1), "stacked", OUTER)
add(
    "batch in the last dimension",
    weights(w=(4, 6)),
    flat,
    lambda p, x: (p["w"] @ x.movedim(0, -1)).exp().movedim(-1, 0),
    "stacked",
    OUTER,
)
add(
    "batch split and joined", one, X, lambda p, x: torch.cat([(r @ p["w"]).exp() for r in x.split(1)]), "stacked", OUTER
)
add("a sample at a time", one, X, lambda p, x: torch.stack([(r @ p["w"]).exp() for r in x]), "native", OUTER)
add("sorted features", one, flat, lambda p, x: (x @ p["w"]).sort(-1).values.exp(), "alike", OUTER)
add("largest features", one, X, lambda p, x: (x @ p["w"]).topk(2, -1).values, "alike", OUTER)
add("max over positions", one, X, lambda p, x: (x @ p["w"]).amax(-2), "alike", OUTER)
add("median of positions", one, X, lambda p, x: (x @ p["w"]).median(-2).values, "alike", OUTER)
add("inputs by the data's own order", one, X, lambda p, x: x.gather(-2, x.argsort(-2)) @ p["w"], "alike", OUTER)
add("max pooled", weights(w=(4, 6)), inputs((6, 8)), lambda p, x: F.max_pool1d(p["w"] @ x, 2), "alike", OUTER)
