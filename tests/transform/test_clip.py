"""Clipping against a plain loop over samples, its edge cases row by row, and what it costs."""

from __future__ import annotations

import math

import pytest
import torch
from oracle import Truth, close, close_sum, flat, same_bits, truth
from problem import F64, KINDS, B, loss, plain, problem, ran, rows
from tiers import quick
from torch import nn

import gradfunc as gf
from gradfunc._rounding import gamma


def clipped(g, c, **options):
    stage = gf.clip_per_sample(c, **options)
    return stage.update(g, stage.init({}))[0]


def expected(want: Truth, c, unit=None) -> torch.Tensor:
    """min(1, C u / n), as the definition has it."""
    norms = flat(want.rows).norm(dim=1)
    limit = c * (torch.ones_like(norms) if unit is None else unit)
    return torch.where(norms > limit, limit / norms, 1.0)


def check_oracle(kind, per_unit_weight=False, engine="vmap"):
    g, want = rows(kind, engine=engine)
    norms = flat(want.rows).norm(dim=1)
    for c in (1e-3, 0.7, float(norms.median()), 1e6, math.inf):
        step = gf.clip_per_sample(c, per_unit_weight=per_unit_weight)
        factors = expected(want, c, want.weights if per_unit_weight else None)
        h = clipped(g, c, per_unit_weight=per_unit_weight)
        for name, value in h.materialize().items():
            scaled = want.rows[name] * factors.reshape(-1, *[1] * (value.dim() - 1))
            close(value, scaled, norms.reshape(-1, *[1] * (value.dim() - 1)), f"rows of {name}")
        close(h.norms(), norms * factors, norms, "norms")
        assert same_bits([h.losses, h.weights, h.mean_loss], [g.losses, g.weights, g.mean_loss])
        total, _ = ran(step >> gf.sum(), g)
        close_sum(total, factors, want.rows, "sum")
        mean, _ = ran(step >> gf.mean(), g)
        close_sum(mean, factors / want.weights.sum(), want.rows, "mean")


@pytest.mark.parametrize("per_unit_weight", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_clip_and_reduce_is_the_plain_loop(kind, per_unit_weight):
    check_oracle(kind, per_unit_weight)


def test_with_the_loop_engine():
    check_oracle("streamed", engine="loop")


def check_bound(dtype, kind="kept"):
    """Norms read back are at most C, exactly; entries are, up to the rounding of one product and of a norm."""
    u = torch.finfo(dtype).eps / 2
    for seed in range(40 if kind == "kept" else 5):
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.randn(16, 5, generator=generator, dtype=F64) * 10 ** torch.empty(16, 1, dtype=F64).uniform_(
            -6, 6, generator=generator
        )
        g, _ = plain(matrix, dtype=dtype, chunk_size=KINDS[kind])
        c = float(10 ** torch.empty((), dtype=F64).uniform_(-3, 3, generator=generator))
        h = clipped(g, c)
        assert float(h.norms().double().max()) <= c
        assert float(flat(h.materialize()).norm(dim=1).max()) <= c * (1 + gamma(12, u))


@pytest.mark.parametrize("kind", quick(["kept", "streamed"], KINDS))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_bound_holds(dtype, kind):
    check_bound(dtype, kind)


def check_idempotent(dtype, kind="kept"):
    for seed in range(40 if kind == "kept" else 5):
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.randn(16, 5, generator=generator, dtype=F64) * 10
        g, _ = plain(matrix, dtype=dtype, chunk_size=KINDS[kind])
        c = float(torch.empty((), dtype=F64).uniform_(0.1, 30, generator=generator))
        once = clipped(g, c)
        twice = clipped(once, c)
        assert same_bits(once.materialize(), twice.materialize())
        assert same_bits(once.norms(), twice.norms())
        assert same_bits(once.sum(), twice.sum())


@pytest.mark.parametrize("kind", quick(["kept", "streamed"], KINDS))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_clipping_twice_is_clipping_once(dtype, kind):
    check_idempotent(dtype, kind)


def check_small_rows_stay(kind="kept", **options):
    g, want = rows(kind)
    per = want.weights if options.get("per_unit_weight") else 1.0
    c = float((flat(want.rows).norm(dim=1) / per).max()) * (1 + 1e-12)
    h = clipped(g, c, **options)
    assert same_bits(h.materialize(), g.materialize())
    assert same_bits(h.norms(), g.norms())


@pytest.mark.parametrize("options", [{}, {"per_unit_weight": True}, {"nonfinite": "skip"}, {"nonfinite": "keep"}])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_within_the_bound_stay_bit_by_bit(kind, options):
    check_small_rows_stay(kind, **options)


def check_agreement_with_torch():
    """torch adds 1e-6 to the norm: with that as eps, one sample's clip is torch's."""
    params, batch = problem()
    for c in (1e-5, 0.5, 3.0):
        h = clipped(gf.per_sample_grads(loss)(params, *batch), c, eps=1e-6).materialize()
        for i in range(B):
            leaves = {name: nn.Parameter(value.clone()) for name, value in params.items()}
            loss(leaves, batch[0][i], batch[1][i]).numerator.backward()
            nn.utils.clip_grad_norm_(leaves.values(), c)
            for name, leaf in leaves.items():
                close(h[name][i], leaf.grad, c, f"sample {i}, {name}")


def test_agreement_with_clip_grad_norm():
    check_agreement_with_torch()


def check_weights():
    """Two sequences of 10 and 1000 tokens, C = 1: what is clipped shows in the mean."""
    matrix = torch.tensor([[10.0, 0.0], [0.0, 1000.0]], dtype=F64)  # a gradient of norm 1 a token
    weights = torch.tensor([10.0, 1000.0], dtype=F64)
    g, _ = plain(matrix, weights)

    def mean(**options):
        out = clipped(g, 0.5, **options).mean()
        return torch.cat([out["a"], out["b"]])

    assert torch.allclose(mean(), torch.tensor([0.5, 0.5], dtype=F64) / 1010, rtol=1e-14)
    assert torch.allclose(mean(per_unit_weight=True), torch.tensor([5.0, 500.0], dtype=F64) / 1010, rtol=1e-14)


def test_per_unit_weight_clips_the_gradient_per_unit():
    check_weights()


EDGES = {  # row, weight, C, options, factor: the table of clip_per_sample
    "norm 0": ([0.0, 0.0], 1.0, 0.5, {}, 1.0),
    "norm 0, eps": ([0.0, 0.0], 1.0, 0.5, {"eps": 0.1}, 1.0),
    "norm 0, eps above C": ([0.0, 0.0], 1.0, 0.5, {"eps": 1.0}, 0.5),
    "at C": ([3.0, 4.0], 1.0, 5.0, {}, 1.0),
    "at C, eps": ([3.0, 4.0], 1.0, 5.0, {"eps": 1.0}, 5 / 6),
    "above C": ([3.0, 4.0], 1.0, 2.0, {}, 0.4),
    "above C, eps": ([3.0, 4.0], 1.0, 2.0, {"eps": 3.0}, 0.25),
    "C = inf": ([3.0, 4.0], 1.0, math.inf, {}, 1.0),
    "C = inf, eps": ([3.0, 4.0], 1.0, math.inf, {"eps": 1.0}, 1.0),
    "C = inf, norm 0": ([0.0, 0.0], 1.0, math.inf, {}, 1.0),
    "per unit": ([3.0, 4.0], 2.0, 1.0, {"per_unit_weight": True}, 0.4),
    "per unit, eps": ([3.0, 4.0], 2.0, 1.0, {"per_unit_weight": True, "eps": 0.5}, 2 / 6),
    "per unit, weight 0": ([3.0, 4.0], 0.0, 1.0, {"per_unit_weight": True}, 0.0),
    "per unit, weight 0, norm 0": ([0.0, 0.0], 0.0, 1.0, {"per_unit_weight": True}, 1.0),
    "per unit, weight 0, C = inf": ([3.0, 4.0], 0.0, math.inf, {"per_unit_weight": True}, 1.0),
    "a norm beyond a square": ([3e200, 4e200], 1.0, 1.0, {}, 2e-201),
    "a norm below a square": ([3e-200, 4e-200], 1.0, 1e-201, {}, 0.02),
}


def check_edge(name, kind="kept"):
    row, weight, c, options, factor = EDGES[name]
    matrix = torch.tensor([row, [1.0, 0.0]], dtype=F64)
    g, _ = plain(matrix, torch.tensor([weight, 1.0], dtype=F64), chunk_size=KINDS[kind])
    h = clipped(g, c, **options)
    want = factor * matrix[0]
    assert torch.allclose(flat(h.materialize())[0], want, rtol=1e-15, atol=0)
    assert not any(value.isnan().any() for value in h.sum().values())


@pytest.mark.parametrize("kind", ["kept", "one by one"])
@pytest.mark.parametrize("name", EDGES)
def test_edge_cases(name, kind):
    check_edge(name, kind)


# --- what is not finite ----------------------------------------------------------------------------------


def broken(kind="kept", value=math.nan):
    """Three samples of weights 1, 2, 3; sample 1 has an entry in 'b' that is not finite, and so has its loss."""
    matrix = torch.tensor([[3.0, 4.0, 0.0], [0.0, 1.0, value], [0.0, 0.5, 0.0]], dtype=F64)
    params = {"a": torch.ones(1, dtype=F64), "b": torch.ones(2, dtype=F64)}

    def linear(p, row, w):
        return gf.Weighted((torch.cat([p["a"], p["b"]]) * row).sum(), w)

    f = gf.per_sample_grads(linear, verify=False, chunk_size=KINDS[kind])
    return f(params, matrix, torch.tensor([1.0, 2.0, 3.0], dtype=F64))


def check_raise(kind="kept", value=math.nan):
    step = gf.clip_per_sample(1.0) >> gf.sum()
    with pytest.raises(ValueError, match=r"of norm (nan|inf) for sample 1 in 'b'; expected finite.*nonfinite='skip'"):
        ran(step, broken(kind, value))


def check_policy(nonfinite, kind="kept", value=math.nan):
    g = broken(kind, value)
    h = clipped(g, 1.0, nonfinite=nonfinite)
    factor = torch.tensor([0.2, 0.0, 1.0], dtype=F64)
    kept = torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, 0.0], [0.0, 0.5, 0.0]], dtype=F64)
    if nonfinite == "keep":
        assert torch.equal(flat(h.materialize())[1].nan_to_num(), flat(g.materialize())[1].nan_to_num())
        assert not h.sum()["b"].isfinite().all()
        assert torch.allclose(flat(h.materialize())[[0, 2]], kept[[0, 2]])
        assert same_bits([h.losses, h.weights], [g.losses, g.weights])
        return
    assert torch.allclose(flat(h.materialize()), kept)
    assert torch.allclose(torch.cat(list(h.sum().values())), kept.sum(0))
    weights = torch.tensor([1.0, 0.0 if nonfinite == "skip" else 2.0, 3.0], dtype=F64)
    assert torch.equal(h.weights, weights)
    assert torch.equal(h.losses, torch.tensor([7.0, 0.0, 0.5], dtype=F64))
    assert torch.allclose(torch.cat(list(h.mean().values())), kept.sum(0) / weights.sum())
    assert torch.allclose(h.norms(), kept.norm(dim=1))
    assert bool((factor[1] == 0) & h.mean_loss.isfinite())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_a_norm_that_is_not_finite_raises(kind, value):
    check_raise(kind, value)


@pytest.mark.parametrize("nonfinite", ["skip", "zero", "keep"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_policies_for_what_is_not_finite(kind, value, nonfinite):
    check_policy(nonfinite, kind, value)


def test_an_infinite_bound_turns_nothing_into_nan():
    h = clipped(broken(value=math.inf), math.inf, nonfinite="keep")
    assert not any(value.isnan().any() for value in h.materialize().values())


def test_an_infinite_norm_of_finite_entries_names_no_parameter():
    g, _ = plain(torch.tensor([[1.0, 0.0], [1.7e308, 1.7e308]], dtype=F64))
    with pytest.raises(ValueError, match=r"a gradient of norm inf for sample 1; expected"):
        clipped(g, 1.0)


# --- arguments, batches, reports -------------------------------------------------------------------------

BAD = {
    "zero": (lambda: gf.clip_per_sample(0), ValueError, "max_norm=0"),
    "negative": (lambda: gf.clip_per_sample(-1.0), ValueError, r"max_norm=-1\.0"),
    "nan": (lambda: gf.clip_per_sample(math.nan), ValueError, "max_norm=nan"),
    "text": (lambda: gf.clip_per_sample("1"), TypeError, "max_norm='1'"),
    "bool": (lambda: gf.clip_per_sample(True), TypeError, "max_norm=True"),
    "eps": (lambda: gf.clip_per_sample(1.0, eps=-1e-6), ValueError, "eps=-1e-06"),
    "infinite eps": (lambda: gf.clip_per_sample(1.0, eps=math.inf), ValueError, "eps=inf"),
    "policy": (lambda: gf.clip_per_sample(1.0, nonfinite="drop"), ValueError, "nonfinite='drop'.*'skip'"),
    "unit": (lambda: gf.clip_per_sample(1.0, per_unit_weight="yes"), TypeError, "per_unit_weight='yes'"),
    "on_zero_weight": (lambda: gf.mean(on_zero_weight="skip"), ValueError, "on_zero_weight='skip'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    call, kind, match = BAD[name]
    with pytest.raises(kind, match=match):
        call()


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch(kind):
    params, (x, y) = problem()
    g = gf.per_sample_grads(loss, chunk_size=KINDS[kind])(params, x[:0], y[:0])
    out, _, report = ran(gf.clip_per_sample(1.0) >> gf.sum(), g, report=True)
    assert not any(value.any() for value in out.values())
    assert float(report["clip_per_sample"]["clipped"]) == 0
    with pytest.raises(ValueError, match="total weight of 0"):
        ran(gf.clip_per_sample(1.0) >> gf.mean(), g)
    assert not ran(gf.clip_per_sample(1.0) >> gf.mean(on_zero_weight="zero"), g)[0]["w"].any()


def check_report(kind="kept"):
    g, want = rows(kind)
    norms = flat(want.rows).norm(dim=1)
    c = float(norms.median()) * 1.01
    step = gf.clip_per_sample(c) >> gf.mean()
    _, _, report = ran(step, g, report=True)
    said = {fact: float(value) for fact, value in report["clip_per_sample"].items()}
    assert said["clipped"] == pytest.approx(float((norms > c).double().mean()), rel=1e-15)
    factors = (c / norms).clamp(max=1)
    for name, values in {"norm": norms, "after": norms * factors, "factor": factors}.items():
        for fact, value in (("min", values.min()), ("median", values.quantile(0.5)), ("max", values.max())):
            assert said[f"{name}_{fact}"] == pytest.approx(float(value), rel=1e-12)
    assert said["nonfinite"] == 0
    assert report.ok
    assert float(report["mean"]["weight"]) == pytest.approx(float(want.weights.sum()), rel=1e-15)
    assert "clip_per_sample" in str(report)
    assert [stage["stage"] for stage in report.to_dict()["stages"]] == ["clip_per_sample", "mean"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_report(kind):
    check_report(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_of_what_is_not_finite(kind):
    _, _, report = gf.clip_per_sample(1.0, nonfinite="skip").update_with_report(broken(kind), ())
    assert not report.ok
    assert float(report["clip_per_sample"]["nonfinite"]) == pytest.approx(1 / 3)
    assert float(report["clip_per_sample"]["norm_max"]) == 5.0
    with pytest.raises(ValueError, match="stage='mean'"):
        report["mean"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_of_norms_per_unit_of_weight(kind):
    g, want = rows(kind)
    _, _, report = gf.clip_per_sample(1.0, per_unit_weight=True).update_with_report(g, ())
    per_unit = flat(want.rows).norm(dim=1) / want.weights
    assert float(report["clip_per_sample"]["norm_max"]) == pytest.approx(float(per_unit.max()), rel=1e-12)


def check_one_pass(per_unit_weight=False):
    """Where rows stream, clip >> sum runs the model as often as a plain sum does; reporting costs nothing more."""
    calls = 0

    def counted(p, x, y):
        nonlocal calls
        calls += 1
        return loss(p, x, y)

    params, batch = problem()
    g = gf.per_sample_grads(counted, chunk_size=3, verify=False)(params, *batch)

    def cost(query):
        nonlocal calls
        calls = 0
        query()
        return calls

    step = gf.clip_per_sample(0.7, per_unit_weight=per_unit_weight) >> gf.clip_per_sample(0.5) >> gf.mean()
    plain_sum = cost(g.sum)
    assert plain_sum == 3  # chunks
    assert cost(lambda: ran(step, g)) == plain_sum
    assert cost(lambda: ran(step, g, report=True)) == plain_sum


@pytest.mark.parametrize("per_unit_weight", [False, True])
def test_streamed_rows_are_clipped_and_summed_in_one_pass(per_unit_weight):
    check_one_pass(per_unit_weight)


def test_streamed_equals_kept():
    kept, streamed = (clipped(rows(kind)[0], 0.7) for kind in ("kept", "streamed"))
    assert torch.allclose(flat(kept.materialize()), flat(streamed.materialize()), rtol=1e-13, atol=0)
    picked = [4, 0, 6, 4]
    assert torch.allclose(kept.select(picked).norms(), streamed.select(picked).norms(), rtol=1e-13, atol=0)


def test_rows_that_wait_collect_nothing_once_the_report_is_out():
    g, _ = rows("streamed")
    stage = gf.clip_per_sample(0.7)
    h, _, report = stage.update_with_report(g, ())
    before = report.to_dict()
    for _ in range(3):
        h.sum()
    assert report.to_dict() == before
    assert same_bits(h.norms(), clipped(g, 0.7).norms())


def test_a_batch_of_coupled_losses():
    params, (x, y) = problem()

    def losses(p, x, y):
        out = torch.tanh(x @ p["w"]) @ p["v"] + 0 * p["idle"].sum()
        return (out - y).square().sum(1) * out.mean()

    g = gf.per_sample_grads(losses, batched=True)(params, x, y)
    norms = g.norms()
    assert torch.allclose(clipped(g, 0.5).norms(), norms.clamp(max=0.5), rtol=1e-14)


def test_the_definition_is_a_loop_over_samples():
    # the textbook, written out once: DP-SGD's clipped sum
    params, batch = problem()
    want = {name: torch.zeros_like(value) for name, value in params.items()}
    scale = 0.0
    for i in range(B):
        row = truth(loss, params, 1, tuple(t[i : i + 1] for t in batch)).rows
        norm = math.sqrt(sum(float(value.square().sum()) for value in row.values()))
        factor = min(1.0, 0.7 / norm) if norm else 1.0
        scale += factor * norm
        want = {name: want[name] + factor * row[name][0] for name in want}
    g = gf.per_sample_grads(loss)(params, *batch)
    got, _ = ran(gf.clip_per_sample(0.7) >> gf.sum(), g)
    for name, value in want.items():
        close(got[name], value, scale, name)
