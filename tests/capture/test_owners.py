"""The owner of every slot, measured, is the true one; and nothing is called owned that two samples share."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gradfunc._capture._graph import Edge
from gradfunc._capture._owners import Layout

from .graphs import F64, Model, judge, judged, measured, run, touched
from .layouts import LAYOUTS, model

COUPLED = ["neighbours", "pairs", "two_only", "centred"]


@settings(max_examples=30)
@given(
    layout=st.sampled_from(list(LAYOUTS)),
    samples=st.integers(1, 9),
    length=st.integers(1, 5),
    inputs=st.integers(1, 5),
    outputs=st.integers(1, 4),
    seed=st.integers(0, 99),
    active=st.integers(0, 2**9 - 1),
)
def test_the_owner_of_every_slot_is_the_true_one(layout, samples, length, inputs, outputs, seed, active):
    """Of any geometry; samples whose bit is 0 have no gradient."""
    check(layout, samples, length, inputs, outputs, seed, active)


@pytest.mark.slow
@settings(max_examples=1500)
@given(
    layout=st.sampled_from(list(LAYOUTS)),
    samples=st.integers(1, 20),
    length=st.integers(1, 8),
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 9),
    seed=st.integers(0, 9999),
    active=st.integers(0, 2**20 - 1),
)
def test_the_owner_of_every_slot_is_the_true_one_always(layout, samples, length, inputs, outputs, seed, active):
    check(layout, samples, length, inputs, outputs, seed, active)


def check(layout, samples, length, inputs, outputs, seed, active):
    made = model(layout, samples, length, inputs, outputs, seed)
    mask = torch.tensor([active >> b & 1 for b in range(samples)], dtype=F64)
    judge(weighted(made, mask))


def weighted(made: Model, factor: torch.Tensor) -> Model:
    """Every loss times a number."""
    return made._replace(losses=lambda p, x: made.losses(p, x) * factor)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("samples", "length", "inputs", "outputs"),
    [(4, 4, 4, 2), (4, 3, 4, 4), (7, 7, 7, 7), (17, 2, 17, 1), (1, 3, 2, 2), (16, 2, 3, 8), (2, 2, 2, 1)],
    ids=["B = T = d", "B = d", "prime", "two digits", "one", "every code", "two"],
)
def test_sizes_that_are_easily_taken_for_each_other(layout, samples, length, inputs, outputs):
    counts = judge(model(layout, samples, length, inputs, outputs))
    assert counts["owned"] > 3
    if layout in COUPLED and samples > 1:
        assert counts["shared"]


@pytest.mark.parametrize(
    "layout",
    [
        "flat_time_first",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("batch_first", "features_first", "routed", "two_only")),
    ],
)
def test_three_digits(layout):
    judge(model(layout, 300, 2, 2, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_lower_precision(layout, dtype):
    """What a gradient that underflows leaves in doubt may be called shared, but no owner is wrong."""
    judge(model(layout, 6, 3, 4, 2, dtype=dtype), tight=False)


@pytest.mark.parametrize("layout", ["batch_first", "time_first", "flat_time_first", "features_first"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_lower_precision_is_read_all_the_same(layout, dtype):
    judge(model(layout, 6, 3, 4, 2, dtype=dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_island_of_lower_precision(layout):
    made = model(layout, 5, 2, 3, 2)
    judge(made._replace(losses=lambda p, x: made.losses({**p, "w": p["w"].float().double()}, x).float().double()))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_one_sample_that_is_not_finite(layout, bad):
    """Owners of all others are as ever."""
    made = model(layout, 5, 2, 3, 2)
    factor = torch.ones(5, dtype=F64)
    factor[2] = bad
    judge(weighted(made, factor), tight=False)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("samples", "size"),
    [
        (4, 1e30),
        *(pytest.param(n, size, marks=pytest.mark.slow) for n in (3, 6, 9) for size in (1e30, 1e9, 1e-30)),
    ],
)
def test_one_sample_beside_which_the_others_vanish(layout, samples, size):
    """In float32 a sum of both is the larger one alone, whichever two samples are weighted alike."""
    made = model(layout, samples, 2, 3, 2, dtype=torch.float32)
    for large in range(samples):
        factor = torch.ones(samples)
        factor[large] = size
        judge(weighted(made, factor), tight=False)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_losses_but_one_are_zero(layout):
    for live in range(4):
        factor = torch.zeros(4, dtype=F64)
        factor[live] = 1
        graph, leaves = run(weighted(model(layout, 4, 2, 4, 2), factor))
        owners = measured(graph, leaves)
        judged(graph, owners, touched(graph, leaves), tight=False)
        inner = [r for edge, r in owners.readings.items() if edge.node != 0 and r.state == "owned"]
        assert not any(reading.certain for reading in inner), "one sample tells nothing of the others"


def test_a_dead_value_is_zero_and_one_without_a_path_absent():
    w = {"w": torch.ones(3, dtype=F64), "s": torch.ones(3, dtype=F64)}
    x = torch.randn(4, 3, dtype=F64)
    graph, leaves = run(Model(lambda p, x: (x * p["w"]).sum(1) + (x * p["s"].exp()).sum(1) * 0, w, (x,)))
    owners = measured(graph, leaves)
    assert owners.of(Edge(graph.names.index("ExpBackward0"), 0)).state == "zero"
    assert owners.unused == ()
    graph, leaves = run(Model(lambda p, x: (x * p["w"]).sum(1), w, (x,)))
    assert measured(graph, leaves).unused == ("s",)


def test_layouts_are_those_that_were_made():
    """Named, so that a pair of mistakes in measuring and in the truth could not hide each other."""
    wanted = {"batch_first": (0, 1), "time_first": (1, 1), "flat": (0, 3), "flat_time_first": (0, 1)}
    for name, (dim, inner) in wanted.items():
        graph, leaves = run(model(name, 4, 3, 5, 3))
        owners = measured(graph, leaves)
        (layout,) = owners.of(Edge(graph.names.index("TanhBackward0"), 0)).layouts
        assert (layout.dim, layout.inner, layout.table) == (dim, inner, None)
    graph, leaves = run(model("routed", 4, 3, 5, 3))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(403))
    (layout,) = measured(graph, leaves).of(Edge(graph.names.index("TanhBackward0"), 0)).layouts
    assert torch.equal(layout.table, order // 3)


@given(samples=st.integers(1, 7), inner=st.integers(1, 4), outer=st.integers(1, 4), dim=st.integers(0, 2))
@settings(max_examples=40)
def test_splitting_and_masking_give_every_sample_its_own(samples, inner, outer, dim):
    slots = samples * inner * outer
    shape = [2, 3]
    shape.insert(dim, slots)
    x = torch.randn(shape, dtype=F64)
    regular = Layout(dim, inner)
    owner = regular.owners(slots, samples, x.device)
    shuffled = owner[torch.randperm(slots)]
    some = torch.where(torch.rand(slots) < 0.3, -1, owner)
    for layout in (regular, Layout(dim, table=owner), Layout(dim, table=shuffled), Layout(dim, table=some)):
        table = layout.owners(slots, samples, x.device)
        split, masked = layout.split(x, samples), layout.masked(x, torch.arange(samples), samples)
        for b in range(samples):
            own = x.movedim(dim, 0)[table == b]
            assert torch.equal(split[b][: len(own)], own)
            assert not split[b][len(own) :].any()
            assert torch.equal(masked[b].movedim(dim, 0)[table == b], own)
            assert not masked[b].movedim(dim, 0)[table != b].any()


def test_a_single_loss_of_many_uses_is_read_whatever_its_rank():
    """Values without dimensions, at B = 1."""
    made = Model(
        lambda p, x: (x * p["w"].sum()).sum()[None], {"w": torch.ones(3, dtype=F64)}, (torch.ones(2, dtype=F64),)
    )
    judge(made)
    judge(made._replace(losses=lambda p, x: F.linear(x, p["w"][:2]).sin()[None]))
