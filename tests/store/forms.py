"""Stores of rows with numbers, and of factors with names: what each appends, and what must be read back."""

from __future__ import annotations

import torch

import gradfunc as gf
from gradfunc._engines import KeptSource
from gradfunc._engines._source import Block
from gradfunc._factors import Dense, Gradient, Outer
from gradfunc._factors import Rows as Table
from gradfunc._per_sample import from_source

SIZE = 16
SHAPES = {"w": (6, 10), "table": (40, 4), "bias": (3,)}


class Rows:
    """Rows of numbers that say whose they are."""

    def create(self, path):
        return gf.store.GradientStore.create(path, size=SIZE, dtype="float32", shard_bytes=8 * SIZE * 4)

    def values(self, ids, draw=None):
        return (ids[:, None] * 31 + torch.arange(SIZE)).to(torch.float32)

    def names(self, ids):
        return ids

    def check(self, store, ids):
        assert store.ids.equal(ids)
        assert store.rows().equal(self.values(ids))


class Factors:
    """Factors whose entries say whose they are, as many a row as each append likes; samples have names."""

    def create(self, path):
        params = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
        return gf.store.GradientStore.create(path, params=params, factored=True, shard_bytes=2000)

    def values(self, ids, draw=None):
        t = 1 if draw is None else draw.randint(1, 3)
        return gradients(ids, t)

    def names(self, ids):
        return [f"{k} of ⌘{'s' * (k % 3)}" for k in ids.tolist()]

    def check(self, store, ids):
        assert store.ids.tolist() == self.names(ids)
        g = store.gradients()
        assert g.losses.equal(ids.double() / 2)
        assert g.weights.equal(ids.double() + 1)
        if not len(ids):
            return
        part = store._view.part(torch.arange(len(ids)))
        for name, halves in {
            "w/outer-10-6": ("x", "g"),
            "table/rows-4": ("index", "g"),
            "bias/dense": ("values",),
        }.items():
            ragged = part.ragged[f"factors/{name}"]
            whose = ids.repeat_interleave(ragged.lengths.long())
            t = torch.cat([torch.arange(int(length)) for length in ragged.lengths])
            for half in halves:
                assert ragged.tensors[half].equal(entries(half, whose, t, ragged.tensors[half]))


def entries(half, ids, t, like):
    """Entry t of a sample, in the shape of what is kept."""
    if half == "index":
        return (ids * 7 + t) % 40
    width = torch.arange(like.shape[1]) if like.dim() > 1 else torch.zeros(())
    base = (ids * 31 + t * 5)[:, None] if half != "g" else (ids + t * 3)[:, None]
    return (base + width).float()


def gradients(ids, t, dtype=torch.float32):
    """A value of such factors."""
    whose, place = ids.repeat_interleave(t), torch.arange(t).repeat(len(ids))

    def half(name, *shape):
        return (
            entries(name, whose, place, torch.empty(1, *shape))
            .reshape(len(ids), t, *shape)
            .to(torch.int64 if name == "index" else dtype)
        )

    factors = {
        "w": Outer(half("x", 10), half("g", 6), SHAPES["w"]),
        "table": Table(half("index"), half("g", 4), SHAPES["table"]),
        "bias": Dense(entries("values", ids, torch.zeros_like(ids), torch.empty(1, 3)).to(dtype)),
    }
    return value_of(factors, ids.double() / 2, ids.double() + 1, dtype)


def value_of(factors, losses, weights, dtype=torch.float32):
    """A value of these factors."""
    likes = {name: torch.zeros(factor.shape, dtype=dtype) for name, factor in factors.items()}
    rows = {name: Gradient(likes[name], factor.size, (factor,)) for name, factor in factors.items()}
    unused = torch.zeros(len(losses), len(rows), dtype=torch.bool)
    return from_source(KeptSource(Block(rows, losses, weights, unused), None), likes, losses, weights, "given")


FORMS = {"rows": Rows(), "factors": Factors()}
