"""`g.rescaled`: gradients alone times numbers, or times a function of their norms, against the oracle's rows."""

from __future__ import annotations

import pytest
import torch
from oracle import check_queries
from test_derived import F64, KINDS, B, given, joined, taken, times
from test_scales import C, rescaled
from tiers import quick

import gradfunc as gf
from gradfunc._per_sample import _indices
from gradfunc._per_sample._scales import Scales

SOME = quick(["factors", "streamed"], KINDS)


def smooth(norms):
    """A clip without a corner: norms n / (1 + n)."""
    return 1 / (1 + norms)


def check_numbers(kind, device="cpu"):
    g, want = given(kind, device)
    c = C.to(device)
    out = g.rescaled(c)
    check_queries(out, rescaled(want, c))
    assert torch.equal(out.losses, g.losses)
    assert torch.equal(out.weights, g.weights)


def check_function(kind, device="cpu"):
    g, want = given(kind, device)
    out = g.rescaled(smooth)
    check_queries(out, rescaled(want, smooth))
    assert torch.equal(out.losses, g.losses)
    assert torch.equal(out.weights, g.weights)
    check_queries(g.scaled(C.to(device)).rescaled(smooth), rescaled(times(want, C.to(device)), smooth))


def check_made_of_it(kind, device="cpu"):
    """Selections and joins keep each row's own function; equal functions stay one step."""
    g, want = given(kind, device)
    one, truth = g.rescaled(smooth), rescaled(want, smooth)
    index = torch.tensor([4, 0, 3])
    check_queries(one.select(index), taken(truth, index))
    whole = gf.concatenate([one, g, g.rescaled(smooth)])
    every = joined(joined(truth, want), truth)
    check_queries(whole, every)
    index = torch.tensor([7, 1, 15, 10])
    check_queries(whole.select(index), taken(every, index))
    assert sum(len(step.functions) for step in whole._scales.steps) <= 1


@pytest.mark.parametrize("law", [check_numbers, check_function, check_made_of_it])
@pytest.mark.parametrize("kind", SOME)
def test_laws(law, kind, device):
    law(kind, device)


def test_a_clip_is_clip_per_sample():
    g, _ = given("factors, streamed")
    bound = float(g.norms().median())
    ours = g.rescaled(lambda norms: torch.where(norms > bound, bound / norms, 1.0))
    theirs, _ = gf.clip_per_sample(bound).update(g, ())
    for name, value in theirs.sum().items():
        assert torch.allclose(ours.sum()[name], value, rtol=1e-14, atol=0)


def test_a_zero_leaves_a_nan_out():
    g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())(
        {"w": torch.ones(2)}, torch.tensor([[1.0, 2.0], [torch.nan, 0.0]])
    )
    for c in (torch.tensor([2.0, 0.0]), lambda norms: torch.where(norms.isfinite(), 2.0, 0.0)):
        assert torch.equal(g.rescaled(c).sum()["w"], torch.tensor([2.0, 4.0]))


@pytest.mark.parametrize("query", ["sum", "mean", "norms", "materialize"])
def test_a_function_costs_no_pass_of_its_own(query):
    calls = []

    def counted(p, x):
        calls.append(1)
        return (p["w"] * x).sum()

    g = gf.per_sample_grads(counted, engine="loop", chunk_size=2)({"w": torch.ones(2)}, torch.randn(6, 2))
    calls.clear()
    out = g.rescaled(smooth)
    assert not calls
    getattr(out, query)()
    assert len(calls) == 6


# --- derivatives ----------------------------------------------------------------------------------------------------


def loss(p, x):
    return (x @ p["w"]).tanh().square().sum()


def attached():
    generator = torch.Generator().manual_seed(1)
    p = {"w": torch.randn(3, 2, generator=generator, dtype=F64).requires_grad_()}
    return p, torch.randn(4, 3, generator=generator, dtype=F64)


def by_hand(p, x, c):
    rows = torch.func.vmap(torch.func.grad(loss), (None, 0))(p, x)["w"]
    c = c if isinstance(c, torch.Tensor) else c(rows.flatten(1).norm(dim=1))
    return (rows * c[:, None, None]).sum(0)


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("engine", quick(["factored"], ["factored", "vmap", "loop"]))
def test_derivatives_of_higher_order(engine, chunk_size):
    p, x = attached()
    g = gf.per_sample_grads(loss, engine=engine, chunk_size=chunk_size)(p, x)
    got, want = g.rescaled(smooth).sum()["w"].square().sum(), by_hand(p, x, smooth).square().sum()
    for _ in range(2):
        (got,), (want,) = (torch.autograd.grad(v, p["w"], create_graph=True) for v in (got, want))
        assert torch.allclose(got, want, rtol=1e-11, atol=1e-13)
        got, want = got.square().sum(), want.square().sum()


def test_coefficients_have_a_derivative_also_at_0():
    p, x = attached()
    g = gf.per_sample_grads(loss)(p, x)
    rows = g.materialize()["w"].detach()
    c = torch.tensor([0.0, 1.0, 2.0, 0.0], dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(g.rescaled(c).sum()["w"].sum(), c)
    assert torch.allclose(slope, rows.sum((1, 2)), rtol=1e-12)


def test_inside_a_transform():
    p, x = attached()
    p = {"w": p["w"].detach()}

    def mine(p, c):
        return gf.per_sample_grads(loss)(p, x).rescaled(c).sum()["w"]

    for c in (smooth, torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=F64)):
        got, want = (
            torch.func.jacrev(fn)(p)["w"] for fn in (lambda p, c=c: mine(p, c), lambda p, c=c: by_hand(p, x, c))
        )
        assert torch.allclose(got, want, rtol=1e-11, atol=1e-13)


def test_it_is_named_where_torch_cannot():
    p, x = attached()

    def asked(p):
        return gf.per_sample_grads(loss)(p, x).rescaled(lambda n: n if float(n[0]) > 0 else -n).sum()["w"]

    with pytest.raises(RuntimeError, match=r"g\.rescaled"):
        torch.func.vmap(asked)({"w": p["w"].detach().expand(2, 3, 2)})


# --- errors ---------------------------------------------------------------------------------------------------------

BAD = {
    "a number": (2.0, TypeError, r"g\.rescaled\(c\): got a float"),
    "a list": ([1.0] * B, TypeError, r"g\.rescaled\(c\): got a list"),
    "another size": (torch.ones(B + 1), ValueError, "expected one number a sample"),
    "NaN": (torch.full((B,), torch.nan), ValueError, "coefficient nan for sample 0"),
    "no tensor": (lambda norms: 1.0, TypeError, "a function that gives a float"),
    "one for all": (lambda norms: norms.sum(), ValueError, "one number a row"),
    "infinite": (lambda norms: norms / 0, ValueError, "a function that gives inf for a norm of"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("kind", ["factors", "streamed"])
def test_bad_coefficients(name, kind):
    c, error, says = BAD[name]
    g, _ = given(kind)
    with pytest.raises(error, match=says):
        g.rescaled(c).sum()


# --- mistakes -------------------------------------------------------------------------------------------------------


def losses_too(self, c):
    return self.scaled(c if isinstance(c, torch.Tensor) else c(self.norms()))


MUTANTS = {
    "losses too": (gf.PerSampleGrads, "rescaled", losses_too, check_numbers),
    "a function twice": (
        _indices.ByNorms,
        "__call__",
        lambda self, norms, given: self.function(norms) ** 2,
        check_function,
    ),
    "a function of no norms": (
        _indices.ByNorms,
        "__call__",
        lambda self, norms, given: self.function(given),
        check_function,
    ),
    "no two functions are equal": (_indices.ByNorms, "__eq__", lambda self, other: False, check_made_of_it),
    "a selection keeps the steps": (Scales, "select", lambda self, index: self, check_made_of_it),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_mistake_is_noticed(name, monkeypatch):
    where, attribute, mistake, law = MUTANTS[name]
    law("streamed")
    monkeypatch.setattr(where, attribute, mistake)
    with pytest.raises((AssertionError, IndexError)):
        law("streamed")
