"""Norms where squares overflow, underflow or cancel, and of rows that are not finite."""

from __future__ import annotations

import math

import pytest
import torch
from oracle import close, flat

from gradfunc import _factors as F
from gradfunc._factors import Dense, Gradient, Outer, Rows
from gradfunc._factors._products import squares_by_gram
from gradfunc._rounding import gamma, unit_roundoff
from gradfunc._tree import row_norms
from gradfunc.testing.strategies._factors import products

U = unit_roundoff(torch.float32)


def gradient(*factors):
    like = torch.empty((), dtype=factors[0].tensors[-1].dtype, device=factors[0].tensors[-1].device)
    return {"w": Gradient.of(like.expand(factors[0].shape), factors[0].size, factors)}


def outer(x, g):
    return Outer(x, g, (g.shape[2], x.shape[2]))


def cancelling(device, size=4, t=48, inputs=128, outputs=160, mean=1000.0):
    """Inputs of mean/std 1000 and cotangents that sum to 0 over the positions, as before a layer norm."""
    x = torch.randn(size, t, inputs) + mean
    g = torch.randn(size, t, outputs)
    return x.to(device), (g - g.mean(1, keepdim=True)).to(device)


def test_a_cancelling_product_form_is_computed_again(device):
    x, g = cancelling(device)
    factor = outer(x, g)
    want = flat({"": products(x, g)}).norm(dim=1).to(device)
    # Of the direct form: each entry is off by gamma_T sum_t |g||x|, the norm by their norm, and its own roundings.
    spread = flat({"": products(x.abs(), g.abs())}).norm(dim=1).to(device)
    bound = gamma(x.shape[1], U) * spread + gamma(x.shape[2] * g.shape[2] + 2, U) * want
    assert factor.method(2**16).name == "gram"
    naive = squares_by_gram(x, g, torch.float32, 2**16).value.clamp_min(0).sqrt().double()
    assert bool(((naive - want).abs() > 1e-2 * want).any()), "the plain product form is no trap here"
    for got in (F.norms(gradient(factor)), F.norms_each(gradient(factor))["w"]):
        assert bool(((got.double() - want).abs() <= bound).all())


def test_only_samples_that_cancel_are_computed_again(device, monkeypatch):
    x, g = cancelling(device)
    x[1:3] -= 1000
    taken = []
    select = Gradient.select
    monkeypatch.setattr(Gradient, "select", lambda self, at: taken.append(at) or select(self, at))
    F.norms(gradient(outer(x, g)))
    assert [at.tolist() for at in taken] == [[0, 3]]


def test_a_cancelling_gram_is_computed_again(device):
    x, g = cancelling(device, size=3, t=2, inputs=64, outputs=64, mean=3e4)
    factor = outer(x, g)
    assert factor.gram(factor, 2**16).magnitude is not None
    rows, spread = flat({"": products(x, g)}).to(device), flat({"": products(x.abs(), g.abs())}).to(device)
    norms, spread = rows.norm(dim=1), spread.norm(dim=1)
    error = gamma(2, U) * spread
    bound = norms[:, None] * error + error[:, None] * norms + error[:, None] * error
    bound += gamma(rows.shape[1] + 1, U) * (norms + error)[:, None] * (norms + error)
    naive = (factor.gram(factor, 2**16).value.double() - rows @ rows.T).abs()
    assert bool((naive > bound).any()), "the plain product form is no trap here"
    assert bool(((F.gram(gradient(factor), gradient(factor))["w"].double() - rows @ rows.T).abs() <= bound).all())


def test_a_use_that_cancels_another(device):
    """Of tied weights: the head's rows take away what the embedding's add, but for one part in 10^5."""
    size, t, d, count = 3, 4, 5, 6
    index = torch.stack([torch.randperm(count)[:t] for _ in range(size)])
    received = torch.randn(size, t, d, dtype=torch.float64)
    g = -torch.nn.functional.one_hot(index, count).double() * (1 - 1e-5)
    factors = [Rows(index.to(device), received.to(device), (count, d)), outer(received.to(device), g.to(device))]
    want = flat({"": Rows(index, received, (count, d)).dense()}).norm(dim=1) * 1e-5
    got = F.norms(gradient(*factors)).cpu()
    assert bool(((got - want).abs() <= gamma(8, 2**-53) * want * 1e5).all())


@pytest.mark.parametrize("scale", [1e20, 1e-25, 1e-37, 1e37])
@pytest.mark.parametrize("kind", ["dense", "rows", "outer", "outer over time", "tied", "halves apart"])
def test_finite_rows_have_finite_norms(device, kind, scale):
    size, t, d, count = 3, 1 if kind == "outer" else 4, 5, 6
    index = torch.randint(count, (size, t)).to(device)
    x, g = torch.randn(size, t, d).to(device), torch.randn(size, t, count).to(device)
    root = math.sqrt(scale)
    split = {"halves apart": (scale, 1.0)}.get(kind, (root, root))
    made = {
        "dense": [Dense(torch.randn(size, count, d).to(device) * scale)],
        "rows": [Rows(index, x * scale, (count, d))],
        "tied": [Rows(index, x * scale, (count, d)), outer(x * root, g * root)],
    }.get(kind, [outer(x * split[0], g * split[1])])
    rows = gradient(*made)
    want = row_norms({k: v.double() for k, v in F.dense(rows).items()})
    assert bool((want > 0).all())
    for got in (F.norms(rows), F.norms_each(rows)["w"]):
        assert bool(((got.double() - want).abs() <= gamma(200, U) * want).all()), (got, want)
    assert bool((F.norms({**rows, "b": gradient(Dense(torch.ones(size, 2, device=device)))["w"]}) >= 1).all())


def test_halves_of_opposite_scales(device):
    """Products of one half underflow while those of the other are large: the sum itself looks fine."""
    x, g = torch.randn(3, 4, 50), torch.randn(3, 4, 60)
    for a, b in ((1e-22, 1e19), (1e19, 1e-22), (1e-30, 1e30)):
        factor = outer((x * a).to(device), (g * b).to(device))
        want = flat({"": products(factor.x, factor.g)}).norm(dim=1).to(device)
        got = F.norms(gradient(factor)).double()
        assert bool(((got - want).abs() <= gamma(4000, U) * want).all()), (a, b)


@pytest.mark.parametrize("spoiled", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("t", [1, 3])
def test_what_is_not_finite_is_as_in_the_rows(device, spoiled, t):
    for half, zeros in ((0, False), (1, False), (0, True), (1, True)):
        x, g = torch.rand(4, t, 3) + 1, torch.rand(4, t, 5) + 1
        (x, g)[half][1, 0, 1] = spoiled
        if zeros:
            (g, x)[half][1, 0, 2] = 0
        rows = gradient(outer(x.to(device), g.to(device)))
        want = row_norms(F.dense(rows))
        for got in (F.norms(rows), F.norms_each(rows)["w"]):
            assert torch.equal(got.isnan(), want.isnan())
            assert torch.equal(got.isinf(), want.isinf())
            assert bool(got[[0, 2, 3]].isfinite().all())


def test_zeros_and_nothing(device):
    rows = gradient(outer(torch.zeros(3, 4, 5, device=device), torch.randn(3, 4, 2, device=device)))
    assert F.norms(rows).tolist() == [0, 0, 0]
    assert F.norms({"w": Gradient(torch.zeros(2), 3, ())}).tolist() == [0, 0, 0]


def test_samples_without_a_loss_cost_no_product(device, monkeypatch):
    x, g = torch.randn(5, 4, 6), torch.randn(5, 4, 7)
    g[[0, 2]] = 0
    g[3] *= 1e30
    x[4], x[2, 0, 0] = 0, torch.nan
    rows, taken = gradient(outer(x.to(device), g.to(device))), []
    pieces = Outer.pieces
    monkeypatch.setattr(Outer, "pieces", lambda self, width: taken.append(self.size) or pieces(self, width))
    got = F.norms(rows)
    assert taken == [2]  # the NaN and what overflows
    want = row_norms(F.dense(rows))
    assert torch.equal(got == 0, want == 0)
    assert torch.equal(got.isnan(), want.isnan())
    assert want.isnan().tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("t", [1, 6])
def test_float64_norms_are_exact_on_their_scale(device, t):
    x, g = torch.randn(5, t, 7, dtype=torch.float64), torch.randn(5, t, 11, dtype=torch.float64)
    rows = gradient(outer(x.to(device), g.to(device)))
    want = flat({"": products(x, g)}).norm(dim=1)
    close(F.norms(rows).cpu(), want, want, "norms")
