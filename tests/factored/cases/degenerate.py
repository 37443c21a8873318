"""Samples without gradient, and batches that say less of the model than the next one will."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ._case import add, inputs, tokens, weights

layer = weights(w=(6, 4), b=(4,), v=(4, 1))
half = weights(w=(6, 4), b=(4,))
OUTER = {"w": "outer", "b": "dense", "v": "outer"}


def margins(p, x, y):
    return 1 - y * ((x @ p["w"] + p["b"]).tanh() @ p["v"]).squeeze(-1)


def hinge(p, x, y):
    """`y` of 0 puts a sample on the margin's active side, a large one far beyond it."""
    return torch.where(y.abs() > 50, margins(p, x, y) * 0, margins(p, x, y).square()).clamp_min(0)


def targets(draw, size, length):
    return draw(size, 6), torch.where(draw.flags(size), 1.0, -0.5).double()


def one_active(params, batch):
    x, y = batch
    return params, (x, torch.where(torch.arange(len(y)) == len(y) // 2, y, 100.0))


def none_active(params, batch):
    return params, (batch[0], torch.full_like(batch[1], 100.0))


def relu(p, x):
    return F.linear(F.linear(x, p["w"].T, p["b"]).relu(), p["v"].T)


def dead(params, batch):
    return {**params, "b": torch.full_like(params["b"], -1e6)}, batch


def one_alive(params, batch):
    return {**params, "b": torch.full_like(params["b"], -1e6)}, (torch.cat([batch[0][:-1], 0 * batch[0][-1:]]),)


def masked(p, x, seen):
    """Positions of which the data says that they count."""
    return ((x @ p["w"] + p["b"]).exp() * seen.unsqueeze(-1)).sum(-2)


def seen(draw, size, length):
    return draw(size, length, 6), draw.flags(size, length).double()


def first_position_only(params, batch):
    mask = torch.zeros_like(batch[1])
    mask[:, 0] = 1
    return params, (batch[0], mask)


def first_sample_only(params, batch):
    mask = torch.zeros_like(batch[1])
    mask[0] = 1
    return params, (batch[0], mask)


def ignoring(p, i, y):
    """The sum over targets that are not ignored; a sample may have none."""
    logits = F.embedding(i, p["e"]).tanh() @ p["w"] + p["b"]
    chance = logits.log_softmax(-1).gather(-1, y.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return -(chance * (y >= 0)).sum(-1)


def labels(draw, size, length):
    y = draw.ints(4, size, length)
    return draw.ints(5, size, length), torch.where(draw.flags(size, length), y, -100)


def all_ignored_but_one(params, batch):
    i, y = batch
    kept = torch.full_like(y, -100)
    kept[-1, 0] = 1
    return params, (i, kept)


def same_samples(params, batch):
    return params, tuple(t[:1].expand_as(t).clone() for t in batch)


add("hinge, one active at first", layer, targets, hinge, "alike", OUTER, scored=False, degenerate=one_active)
add("hinge, none active at first", layer, targets, hinge, "alike", OUTER, scored=False, degenerate=none_active)
add("relus, all dead at first", layer, inputs((6,)), relu, "alike", OUTER, degenerate=dead)
add("relus, dead and a zero input at first", layer, inputs((6,)), relu, "alike", OUTER, degenerate=one_alive)
add(
    "mask, first positions at first",
    half,
    seen,
    masked,
    "alike",
    {"w": "outer", "b": "dense"},
    degenerate=first_position_only,
)
add(
    "mask, one sample at first",
    half,
    seen,
    masked,
    "alike",
    {"w": "outer", "b": "dense"},
    degenerate=first_sample_only,
)
add(
    "targets ignored, all but one at first",
    weights(e=(5, 6), w=(6, 4), b=(4,)),
    labels,
    ignoring,
    "alike",
    {"e": "rows", "w": "outer", "b": "dense"},
    scored=False,
    degenerate=all_ignored_but_one,
)
add(
    "samples all the same at first",
    layer,
    inputs(("T", 6)),
    lambda p, x: (x @ p["w"] + p["b"]).tanh() @ p["v"],
    "alike",
    OUTER,
    degenerate=same_samples,
)
add(
    "tokens all the same at first",
    weights(e=(5, 6)),
    tokens(5, ("T",)),
    lambda p, i: F.linear(F.embedding(i, p["e"]).tanh(), p["e"]),
    "alike",
    {"e": "outer+rows"},
    degenerate=lambda params, batch: (params, (torch.zeros_like(batch[0]),)),
)
add(
    "zero weights at first",
    weights(w=(6, 4), v=(4, 3), u=(6, 3)),
    inputs(("T", 6)),
    lambda p, x: (x @ p["w"]).tanh() @ p["v"] + x @ p["u"],
    "alike",
    {"w": "outer", "v": "outer", "u": "outer"},
    degenerate=lambda params, batch: ({**params, "w": params["w"] * 0, "v": params["v"] * 0}, batch),
)
add(
    "gate closed at first",
    weights(w=(6, 6), g=()),
    inputs(("T", 6)),
    lambda p, x: x + p["g"] * (x @ p["w"]).tanh(),
    "alike",
    {"w": "outer"},
    degenerate=lambda params, batch: ({**params, "g": torch.zeros_like(params["g"])}, batch),
)
add(
    "second use silent at first",
    weights(w=(6, 6), g=(6,)),
    inputs(("T", 6)),
    lambda p, x: x @ p["w"] + ((x @ p["w"]).exp() * p["g"]) @ p["w"].T,
    "alike",
    degenerate=lambda params, batch: ({**params, "g": torch.zeros_like(params["g"])}, batch),
)
