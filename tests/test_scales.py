"""Rows that are multiplied: by known numbers and by functions of their norms, in order, against the oracle's rows."""

from __future__ import annotations

import pytest
import torch
from oracle import Truth, check_queries, close, flat
from test_derived import F64, KINDS, B, given, joined, taken, times
from tiers import every

import gradfunc as gf
from gradfunc._per_sample import _scales
from gradfunc._per_sample._scales import Scales, Step

C = torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0, 1e-3], dtype=F64)
STREAMED = ["streamed", "batched, streamed"]


def clip(norms, given=None):
    return (1 / norms).clamp(max=1.0)


def short(norms, given=None):
    return (0.3 / norms).clamp(max=1.0)


def unit(norms, given=None):
    return 1 / norms


def rescaled(want: Truth, c) -> Truth:
    """Gradients alone times numbers, or times a function of their norms."""
    c = c if isinstance(c, torch.Tensor) else c(flat(want.rows).norm(dim=1))
    return times(want, c)._replace(losses=want.losses)


def check_clip(kind, device="cpu"):
    g, want = given(kind, device)
    clipped = g._rescaled(clip)
    check_queries(clipped, rescaled(want, clip))
    assert torch.equal(clipped.losses, g.losses)
    assert torch.equal(clipped.weights, g.weights)
    assert float(clipped.norms().max()) <= 1 + 1e-12 < float(g.norms().max())


def check_order(kind, device="cpu"):
    g, want = given(kind, device)
    c = C.to(device)
    check_queries(g._rescaled(clip).scaled(c), times(rescaled(want, clip), c))
    check_queries(g.scaled(c)._rescaled(clip), rescaled(times(want, c), clip))
    check_queries(g._rescaled(c)._rescaled(clip), rescaled(rescaled(want, c), clip))
    check_queries(
        g._rescaled(clip).weighted(c.abs())._rescaled(short).scaled(-c),
        times(rescaled(times(rescaled(want, clip), c.abs(), weights=True), short), -c),
    )


def check_join(kind, device="cpu"):
    """Every sample keeps the steps of the value it came from."""
    g, want = given(kind, device)
    c = C.to(device)
    parts = [
        (g._rescaled(clip), rescaled(want, clip)),
        (g, want),
        (g._rescaled(short)._rescaled(c)._rescaled(clip), rescaled(rescaled(rescaled(want, short), c), clip)),
        (g.scaled(c)._rescaled(short), rescaled(times(want, c), short)),
    ]
    whole, truth = parts[0]
    for other, rows in parts[1:]:
        whole, truth = gf.concatenate([whole, other]), joined(truth, rows)
    check_queries(whole, truth)
    check_queries(gf.concatenate([other for other, _ in parts]), truth)
    index = torch.randperm(4 * B, generator=torch.Generator().manual_seed(0))[:15]
    check_queries(whole.select(index)._rescaled(unit), rescaled_where(taken(truth, index), unit))


def rescaled_where(want, function):
    """A row of zeros stays one, whatever the function gives for it."""
    c = function(flat(want.rows).norm(dim=1))
    return rescaled(want, torch.where(c.isfinite(), c, torch.zeros_like(c)))


def check_select(kind, device="cpu"):
    g, want = given(kind, device)
    index = torch.tensor([4, 0, 3])
    c = C.to(device)
    clipped, truth = g.scaled(c)._rescaled(clip).scaled(c), times(rescaled(times(want, c), clip), c)
    check_queries(clipped.select(index), taken(truth, index))
    mixed, both = gf.concatenate([clipped, g]), joined(truth, want)
    index = torch.tensor([7, 1, 10, 4])
    check_queries(mixed.select(index), taken(both, index))
    check_queries(mixed.split(5)[1], taken(both, torch.arange(5, 10)))


def check_a_zero_stays(kind, device="cpu"):
    """What a step leaves out, no later step brings back: 1/norm is infinite there."""
    g, want = given(kind, device)
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 1.0], dtype=F64, device=device)
    check_queries(g._rescaled(mask)._rescaled(unit), rescaled_where(rescaled(want, mask), unit))
    check_queries(g._rescaled(unit)._rescaled(mask), rescaled(rescaled(want, unit), mask))


LAWS = [check_clip, check_order, check_join, check_select, check_a_zero_stays]


# Joins of values that are computed again take as many passes as there are parts.
AGAIN = [kind for kind, options in KINDS.items() if options["chunk_size"] is not None]


@pytest.mark.parametrize(
    ("law", "kind"),
    [
        pytest.param(law, kind, marks=[pytest.mark.slow] if law is check_join and kind in AGAIN else [])
        for law in LAWS
        for kind in KINDS
    ],
)
def test_laws(law, kind, device):
    law(kind, device)


def test_joining_again_and_again_stays_flat():
    g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum(), chunk_size=1)({"w": torch.ones(2)}, torch.ones(2, 2))
    whole = g._rescaled(clip)
    for _ in range(300):
        whole = gf.concatenate([whole, g._rescaled(clip)])
    assert [step.functions for step in whole._scales.steps] == [(clip,)]
    assert torch.allclose(whole.sum()["w"], torch.full((2,), 602 / 2**0.5))


@pytest.mark.parametrize("query", ["sum", "mean", "norms", "materialize"])
def test_clipping_a_streamed_value_costs_no_pass_of_its_own(query):
    calls = []

    def counted(p, x):
        calls.append(1)
        return (p["w"] * x).sum()

    g = gf.per_sample_grads(counted, engine="loop", chunk_size=2)({"w": torch.ones(2)}, torch.randn(6, 2))
    calls.clear()
    clipped = g._rescaled(clip).scaled(torch.ones(6))._rescaled(short)
    assert not calls
    getattr(clipped, query)()
    assert len(calls) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_a_function_sees_what_norms_says(kind):
    g, _ = given(kind)
    g = gf.concatenate([g.scaled(C), g])._rescaled(clip)
    seen = []

    def note(norms, given=None):
        seen.append(norms)
        return torch.ones_like(norms)

    g._rescaled(note).sum()
    assert torch.equal(torch.cat(seen).sort().values, g.norms().sort().values)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_a_function_sees_norms_without_the_loss_scale(chunk_size):
    seen = []

    def note(norms, given=None):
        seen.append(norms)
        return torch.ones_like(norms)

    x = torch.randn(5, 3)
    f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum(), loss_scale=2.0**8, chunk_size=chunk_size)
    f({"w": torch.ones(3)}, x)._rescaled(note).sum()
    close(torch.cat(seen), x.double().norm(dim=1), x.double().norm(dim=1) * 2**20, "norms seen")


def test_gram_with_another_value_that_is_clipped():
    (g, a), (h, b) = given("streamed"), given("kept")
    a, b = flat(rescaled(a, clip).rows), flat(rescaled(times(b, C), short).rows)
    got = g._rescaled(clip).gram(h.scaled(C)._rescaled(short))
    close(got, a @ b.T, a.norm(dim=1)[:, None] * b.norm(dim=1) + 1e-300, "gram")


# --- mistakes -------------------------------------------------------------------------------------------------------


def unordered(norms, total, groups):
    return total([norms(names) for names, _ in groups])


def first_function(steps, joined=_scales._joined):
    step = joined(steps)
    return Step(step.fixed, step.functions, step.which.clamp(max=0))


def functions_everywhere(self, at, norms, step_at=Step.at):
    return step_at(Step(self.fixed, self.functions, torch.zeros_like(self.which)), at, norms)


def last_step_only(self, c, names=None):
    return Scales((*self.steps[:-1], Step.of(c)))


MUTANTS = {
    "norms of the source": (_scales, "_by_then", unordered, check_order),
    "one function for all": (_scales, "_joined", first_function, check_join),
    "functions of other samples": (Step, "at", functions_everywhere, check_join),
    "a step forgotten": (Scales, "times", last_step_only, check_order),
    "a selection keeps the steps": (Scales, "select", lambda self, index: self, check_select),
    "0 * inf": (_scales, "_product", lambda a, b: a * b, check_a_zero_stays),
}


@pytest.mark.parametrize("name", every(3, MUTANTS))
def test_a_planted_mistake_is_noticed(name, monkeypatch):
    where, attribute, mistake, law = MUTANTS[name]
    law("streamed")
    monkeypatch.setattr(where, attribute, mistake)
    with pytest.raises(AssertionError):
        law("streamed")


# --- projections ----------------------------------------------------------------------------------------------------


class Signs:
    """Random signs for each parameter, drawn by its name."""

    size = 4

    def apply(self, name, factor):
        rows = factor.dense()
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        matrix = torch.randint(0, 2, (rows[0].numel(), self.size), generator=generator) * 2.0 - 1
        return rows.flatten(1) @ matrix.to(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_project(kind, device):
    projection = Signs()
    g, want = given(kind, device)
    c = C.to(device)
    check_projected(g, want, projection)
    check_projected(g.scaled(c)._rescaled(clip), rescaled(times(want, c), clip), projection)
    check_projected(g.select([4, 1]), taken(want, torch.tensor([4, 1])), projection)
    check_projected(gf.concatenate([g.scaled(c), g]), joined(times(want, c), want), projection)


def check_projected(g, want, projection):
    from gradfunc._factors import from_rows

    parts = [projection.apply(k, value.factors[0]) for k, value in from_rows(want.rows).items()]
    exact = torch.stack(parts).sum(0)
    entries = flat(want.rows).shape[1]
    close(g.project(projection), exact, flat(want.rows).norm(dim=1)[:, None] * entries**0.5, "project")


def test_project_leaves_out_what_is_not_finite():
    x = torch.tensor([[1.0, 2.0], [torch.nan, torch.inf]])
    g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())({"w": torch.ones(2)}, x)
    assert torch.equal(g.weighted(torch.tensor([1.0, 0.0])).project(Signs())[1], torch.zeros(4))


def test_project_an_empty_batch():
    g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())({"w": torch.ones(2)}, torch.ones(3, 2))
    assert g.select([]).project(Signs()).shape == (0, 4)


class Sized:
    size = 4


class Applied:
    size = 2.0

    def apply(self, name, factor):
        return factor


@pytest.mark.parametrize("bad", [None, torch.ones(2, 2), Sized(), Applied(), 4])
def test_project_takes_a_projection(bad):
    g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())({"w": torch.ones(2)}, torch.ones(3, 2))
    with pytest.raises(TypeError, match=r"g\.project\(projection\): got .*; expected an object with an int `size`"):
        g.project(bad)
