"""Several batches reduced as one: any split, weights and empty batches; what waits, and what is refused."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import close, same_bits, storages
from problem import F64, Sgd, loss, plain, problem
from test_step import alive_at_each_sum

import gradfunc as gf
from gradfunc._transform._reductions import _accumulate

REDUCTIONS = {
    "sum": gf.sum,
    "mean": gf.mean,
    "mean over D": lambda: gf.mean(denominator=13.0),
    "mean or zero": lambda: gf.mean(on_zero_weight="zero"),
}


def numbers(seed, n):
    """Rows of very different norms and weights, of which some are 0."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(n, 4, generator=generator, dtype=F64)
    matrix *= 10 ** torch.empty(n, 1, dtype=F64).uniform_(-2, 2, generator=generator)
    weights = torch.empty(n, dtype=F64).exponential_(0.3, generator=generator)
    weights[torch.rand(n, generator=generator) < 0.3] = 0
    return matrix, weights


class Counting:
    """A stage behind the reduction that must see every result once."""

    takes = gives = gf.Grads

    def init(self, params):
        return {"seen": 0}

    def update(self, grads, state, params=None, /):
        return gf.Grads({k: 2 * v for k, v in grads.items()}), {"seen": state["seen"] + 1}


def check_split(name="mean", sizes=(3, 0, 2, 1), seed=0, chunk_size=None, clip=1.0):
    """Every batch but the last gives None; the last gives what one big batch gives, and nothing is left."""
    matrix, weights = numbers(seed, sum(sizes))
    reduction = REDUCTIONS[name]()
    whole, params = plain(matrix, weights, chunk_size=chunk_size)
    step = gf.clip_per_sample(clip) >> gf.accumulate(reduction, every=len(sizes)) >> Counting()
    state = step.init(params)
    norms = matrix.norm(dim=1).clamp(max=clip).sum()
    total = weights.sum()
    unit = {"sum": norms, "mean over D": norms / 13}.get(name, norms / total.clamp(min=1e-300))
    for time in range(2):
        for k, at in enumerate(torch.arange(sum(sizes)).split(sizes)):
            g = whole.select(at)
            assert (state["accumulate"]["count"], state["Counting"]["seen"]) == (k, time)
            if k + 1 == len(sizes) and name == "mean" and total == 0:
                with pytest.raises(ValueError, match=r"accumulate\(mean\(\), every=\d\).* total weight of 0"):
                    step.update(g, state, params)
                return
            out, state = step.update(g, state, params)
            assert (out is None) == (k + 1 < len(sizes))
        want, _ = (gf.clip_per_sample(clip) >> reduction).update(whole, {"clip_per_sample": (), reduction.name: ()})
        for key, value in want.items():
            # orders of summation differ by gamma_n of the sum of lengths, far below the oracle's tolerance
            close(out[key] / 2, value, unit, f"{name} of {key}")
        assert same_leaves(state["accumulate"], {**step.init(params)["accumulate"]})
    assert state["Counting"]["seen"] == 2


@settings(max_examples=30)
@given(
    name=st.sampled_from(list(REDUCTIONS)),
    sizes=st.lists(st.integers(0, 3), min_size=1, max_size=5),
    seed=st.integers(0, 10**6),
    chunk_size=st.sampled_from([None, 1, 2]),
    clip=st.sampled_from([0.3, 1.0, 100.0]),
)
def test_any_split_is_one_big_batch(name, sizes, seed, chunk_size, clip):
    check_split(name, tuple(sizes), seed, chunk_size, clip)


def check_flush(name="mean"):
    """What is left over, through the stages behind; None if nothing is."""
    matrix, weights = numbers(1, 5)
    reduction = REDUCTIONS[name]()
    whole, params = plain(matrix, weights)
    step = gf.accumulate(reduction, every=9) >> Counting()
    state = step.init(params)
    assert step.flush(state, params) == (None, state)
    for part in whole.split(2):
        _, state = step.update(part, state, params)
    before = copy.deepcopy(state)
    out, after = step.flush(state, params)
    want = reduction.reduced(whole)
    scale = matrix.norm(dim=1).sum()
    for key, value in want.items():
        close(out[key] / 2, value, scale, f"{name} of {key}")
    assert after["accumulate"]["count"] == 0
    assert after["Counting"]["seen"] == 1
    assert same_leaves(state, before)
    assert step.flush(after, params) == (None, after)


def same_leaves(a, b):
    if isinstance(a, dict):
        return list(a) == list(b) and all(same_leaves(a[key], b[key]) for key in a)
    return same_bits(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("name", REDUCTIONS)
def test_flush(name):
    check_flush(name)


def test_what_waits_in_parts():
    """Alone and in a chain, updated and flushed."""
    whole, params = plain(*numbers(2, 5))
    stages = {"a": gf.accumulate(gf.sum(), every=3), "b": gf.accumulate(gf.mean(), every=3)}
    parts = gf.partition(stages, {"a": "a", "b": "b"})
    want = {"a": whole.sum()["a"], "b": whole.mean()["b"]}
    for step in (parts, parts >> gf.identity(), gf.chain(parts, gf.scale(1.0))):
        state = step.init(params)
        for part in whole.split(3):
            out, state = step.update(part, state, params)
            assert out is None
        out, state = step.flush(state, params)
        for name, value in want.items():
            close(out[name], value, whole.norms().sum(), name)
        assert step.flush(state, params)[0] is None


def test_flush_needs_the_parameters():
    g, params = plain(torch.ones(2, 3))
    stage = gf.accumulate(gf.sum(), every=3)
    _, state = stage.update(g, stage.init(params), params)
    with pytest.raises(ValueError, match="got no params"):
        stage.flush(state)


def check_purity():
    """The state before stays as it is; no result shares storage with a state."""
    g, params = plain(numbers(0, 4)[0])
    for reduction in (gf.sum(), gf.mean(), gf.mean(denominator=1.0)):
        stage = gf.accumulate(reduction, every=2)
        first = stage.init(params)
        before = copy.deepcopy(first)
        out, second = stage.update(g, first, params)
        assert out is None
        assert same_leaves(first, before)
        between = copy.deepcopy(second)
        out, third = stage.update(g, second, params)
        flushed, _ = stage.flush(second, params)
        assert same_leaves(second, between)
        held = storages(second["totals"]) | storages(third["totals"]) | storages(params)
        assert not storages(out) & held
        assert not storages(flushed) & held
        assert not any(t.requires_grad for t in (*out.values(), *second["totals"].values()))


def test_purity():
    check_purity()


def check_half_types():
    """Many small numbers beside a large one: lost in bfloat16, kept in float32."""
    params = {"w": torch.zeros(1, dtype=torch.bfloat16)}
    f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())
    stage = gf.accumulate(gf.sum(), every=65)
    state = stage.init(params)
    assert state["totals"]["w"].dtype == torch.float32
    out, state = stage.update(f(params, torch.full((1, 1), 256.0, dtype=torch.bfloat16)), state, params)
    for _ in range(64):
        assert out is None
        out, state = stage.update(f(params, torch.full((1, 1), 0.5, dtype=torch.bfloat16)), state, params)
    assert out["w"].dtype == torch.bfloat16
    assert out["w"].tolist() == [288.0]


def test_half_types():
    check_half_types()


def check_some_parameters():
    """With `wrt` the others have no entry in the result, not zeros."""
    params, batch = problem()
    f = gf.per_sample_grads(loss, wrt=["v"])
    for end in ("update", "flush"):
        stage = gf.accumulate(gf.mean(), every=2 if end == "update" else 3)
        state = stage.init(params)
        for part in f(params, *batch).split(4):
            out, state = stage.update(part, state, params)
        out = stage.flush(state, params)[0] if end == "flush" else out
        assert list(out) == ["v"]
        close(out["v"], f(params, *batch).mean()["v"], f(params, *batch).norms().sum(), end)


def test_some_parameters():
    check_some_parameters()


def test_other_parameters_than_before():
    params, batch = problem()
    stage = gf.accumulate(gf.sum(), every=2)
    only = gf.per_sample_grads(loss, wrt=["v"])(params, *batch)
    every = gf.per_sample_grads(loss)(params, *batch)
    _, state = stage.update(only, stage.init(params), params)
    with pytest.raises(ValueError, match=r"gradients of \['w', 'v', 'idle'\] after gradients of \['v'\]"):
        stage.update(every, state, params)
    out, _ = stage.update(only, state, params)
    assert list(out) == ["v"]
    with pytest.raises(ValueError, match=r"gradients of 'w', shape .*expected parameters that init"):
        stage.update(every, stage.init({"v": params["v"]}), params)


@pytest.mark.parametrize("every", [1, 3])
def test_a_saved_state_goes_on_bit_by_bit(every):
    matrix, weights = numbers(4, 9)
    whole, params = plain(matrix, weights)
    step = gf.clip_per_sample(lambda count: 1.0 + count) >> gf.accumulate(gf.mean(), every=every) >> Counting()
    straight = resumed = step.init(params)
    for part in whole.split(2):
        a, straight = step.update(part, straight, params)
        flat = {name: value.clone() for name, value in gf.flatten_state(resumed).items()}
        b, resumed = step.update(part, gf.unflatten_state(flat, like=step.init(params)), params)
        assert (a is None) == (b is None)
        assert a is None or same_bits(a, b)
    assert same_leaves(straight, resumed)


def check_guarantee():
    for reduction in (gf.sum(), gf.mean(), gf.mean(denominator=8.0)):
        plain_chain = gf.clip_per_sample(2.0) >> reduction
        assert (gf.clip_per_sample(2.0) >> gf.accumulate(reduction, every=4)).guarantee() == plain_chain.guarantee()
    assert (gf.clip_per_sample(2.0) >> gf.accumulate(gf.sum(), every=4)).guarantee().sensitivity.add_remove == 2.0


def test_the_guarantee_is_that_of_the_reduction():
    check_guarantee()


def test_one_sample_moves_a_result_by_no_more_than_is_guaranteed():
    matrix, _ = numbers(5, 6)
    _, params = plain(matrix)
    step = gf.clip_per_sample(0.5) >> gf.accumulate(gf.sum(), every=3)

    def result(rows):
        state, out = step.init(params), None
        for part in rows.tensor_split(3):
            out, state = step.update(plain(part)[0], state, params)
        return torch.cat([value.flatten() for value in out.values()])

    most = step.guarantee().sensitivity.add_remove
    for i in range(6):
        without = torch.cat([matrix[:i], matrix[i + 1 :]])
        assert float((result(matrix) - result(without)).norm()) <= most * (1 + 1e-12)


# --- in a training step ----------------------------------------------------------------------------


def check_training():
    """Parameters move once every k batches, by the update of all of them together."""
    params, (x, y) = problem()
    step = gf.accumulate(gf.mean(), every=2) >> Sgd(0.1)
    for donate in (False, True):
        run, state, now = gf.make_step(loss, step, donate=donate), step.init(params), params
        first, state, report = run(now, state, x[:3], y[:3])
        assert all(first[name] is params[name] for name in params)
        assert float(report["accumulate"]["gathered_batches"]) == 1
        now, state, report = run(first, state, x[3:], y[3:])
        assert float(report["accumulate"]["gathered_weight"]) == pytest.approx(float((1 + x[:, 0].abs()).sum()))
        want = gf.per_sample_grads(loss)(params, x, y)
        for name, value in params.items():
            close(now[name], value - 0.1 * want.mean()[name], float(value.norm() + want.norms().sum()), name)
        assert state["Sgd"][1]["steps"] == 1


def test_training():
    check_training()


SUMMING = {
    "accumulate": lambda: gf.accumulate(gf.mean(), every=1),
    "from_gram": lambda: gf.from_gram(gf.weightings.mean()),
    "geometric_median": gf.geometric_median,
}


@pytest.mark.parametrize("name", SUMMING)
def test_each_layers_factors_are_free_before_the_next_is_summed(name, monkeypatch):
    assert alive_at_each_sum(gf.clip_per_sample(0.5) >> SUMMING[name](), monkeypatch) == [3, 2, 1]


def test_inside_a_transform_it_has_its_derivative():
    params, (x, y) = problem()
    step = gf.accumulate(gf.mean(), every=2)
    run = gf.make_step(loss, step)

    def gathered(w):
        p = {**params, "w": w}
        _, state, _ = run(p, step.init(params), x[:3], y[:3])
        return run(p, state, x[3:], y[3:])[0]["v"].square().sum()

    def whole(w):
        return gf.per_sample_grads(loss)({**params, "w": w}, x, y).mean()["v"].square().sum()

    got, want = torch.func.grad(gathered)(params["w"]), torch.func.grad(whole)(params["w"])
    assert float(want.norm()) > 0
    assert torch.allclose(got, want, rtol=1e-10)


# --- what is refused -------------------------------------------------------------------------------


class Own:
    takes, gives = gf.PerSampleGrads, gf.Grads

    def init(self, params):
        return ()

    def update(self, g, state, params=None, /):
        return gf.Grads(g.mean()), state


class Squares(type(gf.sum())):
    def reduced(self, g):
        return {name: value.square().sum(0) for name, value in g.materialize().items()}


REFUSED = {
    "median": (gf.median(), "got median, which does not follow from sums over parts"),
    "trimmed_mean": (gf.trimmed_mean(), "got trimmed_mean, which does not follow"),
    "geometric_median": (gf.geometric_median(), "got geometric_median, which does not follow"),
    "sign_vote": (gf.sign_vote(), "got sign_vote, which does not follow"),
    "from_gram": (gf.from_gram(gf.weightings.mean()), "got from_gram, which does not follow"),
    "accumulate": (gf.accumulate(gf.sum(), every=2), "got accumulate, which waits"),
    "a clip": (gf.clip_per_sample(1.0), "got clip_per_sample, which is no reduction"),
    "a chain": (
        gf.clip_per_sample(1.0) >> gf.sum(),
        r"clip_per_sample\(1.0\) >> sum\(\).*Stages on samples come before",
    ),
    "a user's own": (Own(), "got an Own; expected"),
    "a class made of the sum": (Squares(averaged=False), "got a Squares; expected"),
    "a number": (3, "got an int; expected"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_accumulated(name):
    reduction, match = REFUSED[name]
    with pytest.raises(TypeError, match=match):
        gf.accumulate(reduction, every=2)


@pytest.mark.parametrize(
    ("every", "error"),
    [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError), (lambda k: 2, TypeError)],
)
def test_every_is_an_int(every, error):
    with pytest.raises(error, match="every="):
        gf.accumulate(gf.sum(), every=every)


def test_how_it_reads():
    assert repr(gf.accumulate(gf.mean(), every=4)) == "accumulate(mean(), every=4)"
    assert (gf.accumulate(gf.mean(), 4) >> gf.scale(2.0)).keys == ("accumulate", "scale")


# --- planted mistakes ------------------------------------------------------------------------------

Accumulate = _accumulate.Accumulate
apply, given_, of_totals = Accumulate.apply, Accumulate._given, type(gf.sum()).of_totals


def mean_of_means(self, grads, state, params, how):
    weight = grads.weights.sum()
    return apply(self, grads.scaled((1 / weight).nan_to_num(0, 0, 0).expand(grads.batch_size)), state, params, how)


def one_too_late(self, grads, state, params, how):
    out, state = apply(dataclasses.replace(self, every=self.every + 1), grads, state, params, how)
    return out, state


def at_once(self, grads, state, params, how):
    return apply(dataclasses.replace(self, every=1), grads, state, params, how)


def never_emptied(self, call, state, dtypes):
    return given_(self, call, state, dtypes)[0], {**state, "count": 0}


def still_counting(self, call, state, dtypes):
    return given_(self, call, state, dtypes)[0], {**self.init(state["totals"]), "count": state["count"]}


def over_batches(self, call, sums, weight):
    return {name: value / 4 for name, value in of_totals(self, call, sums, weight).items()}


def shared(self, call, state, dtypes):
    return dict(state["totals"]), self.init(state["totals"])


def every_parameter(self, call, state, dtypes):
    seen = dict.fromkeys(state["seen"], True)
    return given_(self, call, {**state, "seen": seen}, dtypes | {k: v.dtype for k, v in state["totals"].items()})


def in_place(self, grads, state, params, how):
    out, after = apply(self, grads, state, params, how)
    for name, value in after["totals"].items():
        state["totals"][name].copy_(value)
    return out, after


def nothing_guaranteed(self, before=None):
    return gf._transform.Guarantee()


def zeros_in_the_own_type(params):
    return {name: torch.zeros_like(value) for name, value in params.items()}


MUTANTS = {
    "a mean of means": (Accumulate, "apply", mean_of_means, check_split),
    "one batch too late": (Accumulate, "apply", one_too_late, check_split),
    "every batch": (Accumulate, "apply", at_once, check_split),
    "totals kept": (Accumulate, "_given", never_emptied, check_split),
    "the count kept": (Accumulate, "_given", still_counting, check_split),
    "divided by batches too": (type(gf.sum()), "of_totals", over_batches, lambda: check_split("sum")),
    "one storage for result and state": (Accumulate, "_given", shared, check_purity),
    "the old state changed": (Accumulate, "apply", in_place, check_purity),
    "sums in half types": (_accumulate, "zeros", zeros_in_the_own_type, check_half_types),
    "zeros for what was not asked": (Accumulate, "_given", every_parameter, check_some_parameters),
    "nothing guaranteed": (Accumulate, "guarantee", nothing_guaranteed, check_guarantee),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_mistake_is_noticed(name, monkeypatch):
    where, attribute, mistake, law = MUTANTS[name]
    law()
    monkeypatch.setattr(where, attribute, mistake)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        law()
