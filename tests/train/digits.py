"""A small training on scikit-learn's digits, as gradfunc and as torch write it."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits

import gradfunc as gf

F64 = torch.float64
X, Y = load_digits(return_X_y=True)
X = X / 16
MODEL = gf.stateless(gf.models.mlp([64, 16, 10], activation=torch.tanh, dtype=F64))


def loss(params, x, y):
    return gf.losses.cross_entropy(MODEL.sample(params, x), y)


def right(params, x, y):
    return MODEL(params, x).argmax(-1) == y


def train(step=None, *, data=(X[:200], Y[:200]), loss=loss, params=MODEL.params, **options):
    options = {"epochs": 2, "batch_size": 32, **options}
    return gf.train.fit(loss, gf.mean() >> gf.adam(1e-2) if step is None else step, params, data, **options)


def same(a, b):
    """Whether two nests of tensors and numbers are the same, bit by bit."""
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def same_fit(a, b):
    """Whether two trainings ended alike, bit by bit."""
    return (
        same(a.params, b.params)
        and same(a.state, b.state)
        and a.steps == b.steps
        and repr(a.history.to_dict()) == repr(b.history.to_dict())
    )
