"""Reports to draw, made once; and what can be read off a figure."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import nn

import gradfunc as gf
from gradfunc.audit._demo import digits


@functools.cache
def flow_of(depth=6, activation=torch.sigmoid, width=16):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(32, width, generator=generator)
    model = gf.stateless(gf.models.block(width, layers=depth - 1, width=width, activation=activation, outputs=width))
    return gf.diagnose.gradient_flow(model, nn.MSELoss(), (x, x), theory=True)


@functools.cache
def linear(kind="transient"):
    w = {
        "transient": torch.tensor([[0.9, 10.0], [0.0, 0.9]], dtype=torch.float64),
        "explodes": torch.diag(torch.tensor([1.5, 0.5], dtype=torch.float64)),
        "turns": torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64),
    }[kind]
    return gf.diagnose.recurrence(w, steps=200 if kind == "transient" else 50)


@functools.cache
def recurrent():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.LSTM(3, 4, batch_first=True)
        xs = torch.randn(5, 20, 3)
    return gf.diagnose.recurrence(net, lambda out, y: (out[0][:, -1] - y).square().sum(1), (xs, torch.zeros(5, 4)))


@functools.cache
def grid():
    inits = {"He": gf.init.kaiming_normal(nonlinearity="relu"), "small": gf.init.normal(0.01)}
    return gf.diagnose.flow_grid(["relu", "sigmoid"], inits=inits, norms=[None, "layer"], widths=[20], samples=50)


@functools.cache
def audited(weighted=False):
    model, _, batch = digits(12)
    weight = torch.linspace(0.5, 2.0, 10) if weighted else None
    return gf.audit.reductions(model, nn.CrossEntropyLoss(weight=weight), batch)


@functools.cache
def trained():
    """Three steps a clip acts in, three it does not; flow captured at each."""
    model = gf.stateless(gf.models.mlp([4, 6, 1], activation=torch.tanh))
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 4, generator=generator), 3 * torch.randn(12, 1, generator=generator)

    def loss(params, x, y):
        return gf.losses.mse(model.sample(params, x), y)

    def flow(snapshot):
        return gf.diagnose.gradient_flow(model.bind(snapshot.params), nn.MSELoss(), (x, y))

    step = gf.mean() >> gf.clip_by_global_norm(4.0) >> gf.sgd(0.05)
    capture = {"flow": flow, "clip": lambda snapshot: snapshot.report["clip_by_global_norm"]}
    return gf.train.fit(loss, step, model.params, (x, y), batch_size=6, epochs=3, capture=capture).history


def benched():
    def row(contender, verdict, *ratios, quantity="clip-and-sum", failure=None, peer=False):
        return gf.bench.BenchRow("mlp", contender, quantity, verdict, ratios=ratios, failure=failure, peer=peer)

    rows = (
        row("plain", "", 1.0, 1.0, 1.0),
        row("gradfunc", "rounding", 1.2, 1.3, 1.25),
        row("opacus", "wrong", 40.0, 44.0, 41.0, peer=True),
        row("backpack", "refused", failure="no", peer=True),
    )
    return gf.bench.BenchReport(rows, {"mlp": "784-10, B = 4"}, 3, 1, {})


def title(figure):
    """On one line."""
    return " ".join(figure.get_suptitle().split())


def of(axes, gid):
    """Artists of an axes by the beginning of their name."""
    return [artist for artist in axes.get_children() if str(artist.get_gid()).startswith(gid)]


def corners(collection):
    return [path.vertices for path in collection.get_paths()]


def series(axes, label):
    """x and y of the signs with this label."""
    line = next(line for line in axes.lines if line.get_label() == label)
    return np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)


FIGURES = {
    "flow": lambda: gf.plot.flow(flow_of()),
    "flow of many": lambda: gf.plot.flow(flow_of(60, torch.tanh)),
    "gradient_norms": lambda: gf.plot.gradient_norms(flow_of()),
    "schemes": lambda: gf.plot.schemes({"sigmoid": flow_of(), "tanh": flow_of(6, torch.tanh)}),
    "factors": lambda: gf.plot.factors(grid()),
    "flow_over_training": lambda: gf.plot.flow_over_training(trained()),
    "losses": lambda: gf.plot.losses(trained()),
    "through_time": lambda: gf.plot.through_time(linear()),
    "through_time of a model": lambda: gf.plot.through_time(recurrent()),
    "through_time of two": lambda: gf.plot.through_time({"W": linear(), "LSTM": recurrent()}),
    "eigenvalues": lambda: gf.plot.eigenvalues(linear()),
    "remedies": lambda: gf.plot.remedies(gf.diagnose.remedies(steps=10, hidden=3, forget_biases=(1.0,))),
    "clip_geometry": lambda: gf.plot.clip_geometry(),
    "discrepancies": lambda: gf.plot.discrepancies(audited()),
    "costs": lambda: gf.plot.costs(benched()),
    "checks": lambda: gf.plot.checks(certified()),
}


@functools.cache
def certified():
    return gf.testing.check_gradients(*digits(4))
