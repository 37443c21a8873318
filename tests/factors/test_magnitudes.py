"""How far a sum is trusted: the magnitudes of what was summed, term by term, and what may have underflowed."""

from __future__ import annotations

import math

import pytest
import torch
from oracle import close, flat

from gradfunc import _factors as F
from gradfunc._factors import Dense, Gradient, Grouped, Mapped, Outer, Rows, Steps, Unfolded
from gradfunc._factors._norms import TRUST, _doubted, squares
from gradfunc._factors._pairs import cross, cross_gram
from gradfunc._rounding import gamma, unit_roundoff
from gradfunc._tree import row_norms

F64 = torch.float64
SCRATCH = (1, 40, 2**16)
SIZE, T, D, COUNT = 3, 4, 9, 8
TINY = torch.finfo(F64).tiny / unit_roundoff(F64)  # of one product that underflows, in units of roundoff


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def outer(t=T, seed=0, size=SIZE):
    return Outer(drawn(size, t, D, seed=seed), drawn(size, t, COUNT, seed=seed + 1), (COUNT, D))


def rows(t=T, seed=5, size=SIZE, count=COUNT):
    index = torch.randint(count, (size, t), generator=torch.Generator().manual_seed(seed))
    return Rows(index, drawn(size, t, D, seed=seed), (count, D))


def grouped():
    index = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 1, 0]])
    return Grouped(index, drawn(3, 4, 30), drawn(3, 4, 40, seed=1), (2, 40, 30))


def convolution():
    """Few positions of many channels."""
    steps = Steps((20, 30, 2), (1,), (1,), (1,))
    return Unfolded(drawn(SIZE, 2, 30, 3), drawn(SIZE, 2, 20, 4, seed=1), steps.weight, steps)


def position_rows(factor):
    """`[B, T, O, I]`: the part of each position."""
    if isinstance(factor, Rows):
        parts = torch.zeros(*factor.index.shape, *factor.shape, dtype=F64)
        for b in range(factor.size):
            for t in range(factor.index.shape[1]):
                parts[b, t, factor.index[b, t]] = factor.g[b, t]
        return parts
    if isinstance(factor, Unfolded):
        windows = torch.nn.functional.pad(factor.x, (1, 1)).unfold(3, 2, 1)  # [B, images, C, positions, 2]
        return torch.einsum("bnop,bncpk->bnpock", factor.g, windows).flatten(1, 2)
    return factor.g[..., :, None] * factor.x[..., None, :]


def pairs(a, b):
    """`[B, B']`: magnitudes of the products of every position with every other, summed."""
    a, b = (position_rows(factor).flatten(2) for factor in (a, b))
    return torch.einsum("btk,csk->btcs", a, b).abs().sum((1, 3))


@pytest.mark.parametrize("scratch", SCRATCH)
@pytest.mark.parametrize("make", [outer, convolution])
def test_squares_by_positions(make, scratch):
    factor = make()
    want = pairs(factor, factor).diagonal()
    assert factor.method(scratch).name == "gram"
    found = factor.squares(scratch)
    close(found.magnitude, want, want, "magnitude")
    close(found.value, factor.dense().flatten(1).square().sum(1), want, "value")


@pytest.mark.parametrize("scratch", [2**12, 2**18])
def test_squares_by_blocks_of_positions(scratch):
    """More than are multiplied at once."""
    factor = Outer(drawn(2, 150, 400), drawn(2, 150, 410, seed=1), (410, 400))
    terms = (factor.x @ factor.x.mT) * (factor.g @ factor.g.mT)
    assert factor.method(scratch).name == "gram"
    value, magnitude = factor.squares(scratch)
    want = terms.abs().sum((1, 2))
    close(magnitude, want, want, "magnitude")
    close(value, terms.sum((1, 2)), want, "value")


@pytest.mark.parametrize("scratch", SCRATCH)
def test_squares_of_experts(scratch):
    """Of each matrix, the positions that meet it."""
    factor, want = grouped(), torch.zeros(3, dtype=F64)
    for e in range(2):
        own = (factor.index == e)[..., None]
        part = Outer(factor.x * own, factor.g * own, (40, 30))
        want += pairs(part, part).diagonal()
    close(factor.squares(scratch).magnitude, want, want, "magnitude")


@pytest.mark.parametrize(
    ("factor", "entries"),
    [
        (Dense(drawn(SIZE, 3, 5)), 15),
        (rows(), T * D),
        (Outer(drawn(SIZE, 60, 2), drawn(SIZE, 60, 3), (3, 2)), 6),
        (Unfolded(drawn(SIZE, 9, 2, 3), drawn(SIZE, 9, 3, 2), (3, 2, 2), Steps((3, 2, 2), (1,), (0,), (1,))), 12),
        (Mapped(Gradient(torch.zeros(COUNT, D, dtype=F64), SIZE, (outer(),)), None, torch.sin), COUNT * D),
    ],
    ids=["dense", "rows", "outer", "convolution", "mapped"],
)
def test_sums_of_squares_are_off_by_what_underflows_alone(factor, entries):
    for scratch in SCRATCH:
        assert factor.squares(scratch).magnitude.tolist() == [entries * TINY] * SIZE


def test_one_position_is_off_by_what_underflows_alone():
    factor = outer(1)
    x, g = (half.square().sum((1, 2)) for half in (factor.x, factor.g))
    want = (D * g + COUNT * x + 1) * TINY
    close(factor.squares(1).magnitude, want, want, "magnitude")


@pytest.mark.parametrize("scratch", SCRATCH)
@pytest.mark.parametrize("kind", ["outer", "rows", "tied", "tied, turned"])
def test_products_of_positions(kind, scratch):
    a, b = {
        "outer": (outer(2), outer(3, seed=9, size=2)),
        "rows": (rows(2), rows(3, seed=9, size=2)),
        "tied": (outer(), rows(2, size=2)),
        "tied, turned": (rows(), outer(2, size=2)),
    }[kind]
    found, want = cross_gram(a, b, scratch), pairs(a, b)
    assert found.magnitude is not None
    close(found.magnitude, want, want, "magnitude")
    close(found.value, flat({"": a.dense()}) @ flat({"": b.dense()}).T, want, "value")


@pytest.mark.parametrize("scratch", SCRATCH)
def test_products_of_one_factor_with_itself(scratch):
    factor = Outer(drawn(5, 2, 40), drawn(5, 2, 50, seed=1), (50, 40))
    want = pairs(factor, factor)
    close(factor.gram(factor, scratch).magnitude, want, want, "magnitude")


@pytest.mark.parametrize("scratch", SCRATCH)
def test_row_by_row(scratch):
    """Of tied weights by positions, of others entry by entry."""
    a, b, c = outer(), rows(), Dense(drawn(SIZE, COUNT, D, seed=3))
    want = pairs(a, b).diagonal()
    for found in (cross(a, b, scratch), cross(b, a, scratch)):
        close(found.magnitude, want, want, "magnitude")
        close(found.value, (a.dense() * b.dense()).sum((1, 2)), want, "value")
    want = (a.dense() * c.values).abs().sum((1, 2))
    found = cross(a, c, scratch)
    close(found.magnitude, want, want, "magnitude")
    close(found.value, (a.dense() * c.values).sum((1, 2)), want, "value")


@pytest.mark.parametrize("scratch", SCRATCH)
def test_squares_of_several_factors(scratch):
    """They may cancel each other: their own, both products of every two, and the sum."""
    a, b = outer(), rows()
    found = squares(Gradient(torch.zeros(COUNT, D, dtype=F64), SIZE, (a, b)), scratch)
    own = a.squares(scratch).magnitude + b.squares(scratch).magnitude
    want = own + 2 * pairs(a, b).diagonal() + (a.dense() + b.dense()).square().sum((1, 2))
    close(found.magnitude, want, want, "magnitude")


def test_rows_that_are_summed_entry_by_entry_need_no_second_look():
    for factor in (grouped(), Outer(drawn(2, 60, 2), drawn(2, 60, 3), (3, 2)), Dense(drawn(2, 3))):
        assert factor.gram(factor, 2**16).magnitude is None
        assert factor.gram(factor.select(slice(0, 1)), 2**16).magnitude is None
    for a, b in ((outer(2), outer(2)), (outer(), rows()), (rows(), outer()), (rows(2), rows(2))):
        assert cross_gram(a, b, 2**16).magnitude is not None
        assert cross_gram(a, b, 2**16, by_rows=True).magnitude is None
    one = outer(1)
    assert one.gram(one, 2**16, by_rows=True).magnitude is None


def test_what_is_doubted():
    value = torch.tensor([1.0, 1.0, 0.0, 0.0, -1.0, math.inf, math.nan])
    magnitude = torch.tensor([TRUST, 1001.0, 0.0, 1e-30, 1.0, 1.0, 1.0])
    assert _doubted(value, magnitude).tolist() == [False, True, False, True, True, True, True]


U = unit_roundoff(torch.float32)


@pytest.mark.parametrize("scales", [(1e-22, 1e19), (1e19, 1e-22), (1e-30, 1e30), (1e30, 1e-30)])
@pytest.mark.parametrize("kind", ["one position", "one input", "convolution", "experts", "gram, one position", "tied"])
def test_halves_of_opposite_scales_of_every_kind(kind, scales):
    """Products of one half underflow while those of the other are large: what is lost is known, and computed again."""
    a, b = scales
    factor = {
        "one position": lambda: Outer(drawn(3, 1, 50), drawn(3, 1, 60, seed=1), (60, 50)),
        "one input": lambda: Outer(drawn(3, 4, 1), drawn(3, 4, 60, seed=1), (60, 1)),
        "convolution": convolution,
        "experts": grouped,
        "gram, one position": lambda: Outer(drawn(3, 1, 5), drawn(3, 1, 6, seed=1), (6, 5)),
        "tied": outer,
    }[kind]()
    made = iter([a, b] if len(factor.tensors) == 2 else [1, a, b])
    factor = factor.mapped(lambda t: (t * next(made)).float() if t.is_floating_point() else (t, next(made))[0])
    factors = (factor, Rows(rows().index, rows().g.float() * a * b, factor.shape)) if kind == "tied" else (factor,)
    gradient = {"w": Gradient(torch.empty(()).expand(factor.shape), 3, factors)}
    want = row_norms({k: v.double() for k, v in F.dense(gradient).items()})
    assert bool((want > 0).all())
    for got in (F.norms(gradient), F.norms_each(gradient)["w"]):
        assert bool(((got.double() - want).abs() <= gamma(20000, U) * want).all()), (got, want)
