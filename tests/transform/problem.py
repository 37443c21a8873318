"""One small problem for the tests of stages: weights, an idle parameter, rows of very different norms."""

from __future__ import annotations

import torch
from oracle import truth

import gradfunc as gf

F64 = torch.float64
B = 7
KINDS = {"kept": None, "streamed": 3, "one by one": 1}


def loss(p, x, y):
    out = torch.tanh(x @ p["w"]) @ p["v"] + 0 * p["idle"].sum()
    return gf.Weighted((out - y).square().sum() * (1 + x[0].abs()), 1 + x[0].abs())


def problem(dtype=F64, seed=3):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"w": (3, 4), "v": (4, 2), "idle": (2,)}
    params = {k: torch.randn(s, generator=generator, dtype=F64).to(dtype) for k, s in shapes.items()}
    x, y = (torch.randn(B, n, generator=generator, dtype=F64) for n in (3, 2))
    x[2], y[2] = 0, 0  # gradient 0
    y *= torch.logspace(-2, 2, B, dtype=F64)[:, None]
    return params, (x.to(dtype), y.to(dtype))


def rows(kind="kept", dtype=F64, engine="vmap"):
    """Per-sample gradients of this problem, and the truth."""
    params, batch = problem(dtype)
    g = gf.per_sample_grads(loss, engine=engine, chunk_size=KINDS[kind])(params, *batch)
    return g, truth(loss, params, B, batch)


def plain(matrix, weights=None, dtype=F64, chunk_size=None):
    """Rows that are those of `matrix`, `[B, P]`, with these weights."""
    params = {"a": torch.zeros(1, dtype=dtype), "b": torch.zeros(matrix.shape[1] - 1, dtype=dtype)}
    weights = torch.ones(len(matrix), dtype=dtype) if weights is None else weights

    def linear(p, row, w):
        return gf.Weighted((torch.cat([p["a"], p["b"]]) * row).sum(), w)

    f = gf.per_sample_grads(linear, verify=False, chunk_size=chunk_size)
    return f(params, matrix.to(dtype), weights), params


def ran(step, g, *, report=False):
    """One update from the first state."""
    update = step.update_with_report if report else step.update
    return update(g, step.init({}))


class Sgd:
    """A rule as a user writes it."""

    takes, gives = gf.Grads, gf.Updates

    def __init__(self, lr=0.1):
        self.lr = lr

    def init(self, params):
        return (torch.zeros(()), {"steps": 0})

    def update(self, grads, state, params=None, /):
        norm, counted = state
        total = sum(float(v.square().sum()) for v in grads.values())
        updates = gf.Updates({name: -self.lr * value for name, value in grads.items()})
        return updates, (norm + total, {"steps": counted["steps"] + 1})


class Doubled:
    """A user's stage without declarations."""

    def init(self, params):
        return {"calls": 0}

    def update(self, g, state, params=None, /):
        return g.scaled(torch.full((g.batch_size,), 2.0)), {"calls": state["calls"] + 1}
