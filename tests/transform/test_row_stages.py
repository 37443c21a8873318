"""Per-sample stages against the oracle's rows; every row of the tables in their docstrings."""

from __future__ import annotations

import math

import pytest
import torch
from oracle import check_queries, flat
from problem import F64, KINDS, B, plain, rows
from test_derived import times
from tiers import quick

import gradfunc as gf
from gradfunc._transform import Guarantee
from gradfunc._transform._guarantee import NOTHING, SAMPLES
from gradfunc._transform._noise import gaussian

ROWS = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.0], [1e20, 0.0, 1e20]], dtype=F64)


def out(stage, matrix=ROWS, weights=None, dtype=F64, chunk_size=None):
    g, params = plain(matrix, weights, dtype, chunk_size)
    return stage.update(g, stage.init(params), params)[0]


def rows_of(g):
    return torch.cat([v.reshape(g.batch_size, -1) for v in g.materialize().values()], 1)


def rescaled(want, c):
    return times(want, c)._replace(losses=want.losses)


# --- against the oracle -----------------------------------------------------------------------------


def by_norm(factor):
    def change(want):
        return rescaled(want, factor(flat(want.rows).norm(dim=1), want.weights))

    return change


def by_entry(fn):
    return lambda want: want._replace(rows={k: fn(v) for k, v in want.rows.items()})


def chosen(keep):
    def change(want):
        return times(want, keep(want).double(), weights=True)

    return change


def hardest(want, k):
    per = want.losses / want.weights
    return per >= per.sort(descending=True).values[k - 1]


def grouped(want):
    """`v` with a norm of its own, the others together."""
    own, others = flat({"v": want.rows["v"]}), flat({k: v for k, v in want.rows.items() if k != "v"})
    a, b = (0.3 / own.norm(dim=1)).clamp(max=1), (0.2 / others.norm(dim=1)).clamp(max=1)
    parts = {k: rescaled(want, a if k == "v" else b).rows[k] for k in want.rows}
    return want._replace(rows={k: torch.where(v == 0, 0.0, parts[k]) for k, v in want.rows.items()})


def each_alone(want):
    parts = {}
    for k, v in want.rows.items():
        norms = flat({k: v}).norm(dim=1)
        c = torch.where(norms > 0.3, 0.3 / norms, 1.0)
        parts[k] = rescaled(want, c).rows[k]
    return want._replace(rows=parts)


STAGES = {
    "clip by parameter": (gf.clip_per_sample(0.3, groups="parameter"), each_alone),
    "clip by groups": (gf.clip_per_sample(0.2, groups={"v": 0.3}), grouped),
    "normalise": (gf.normalize_per_sample(2.0, stability=0.1), by_norm(lambda n, w: 2.0 / (n + 0.1))),
    "normalise per weight": (
        gf.normalize_per_sample(2.0, stability=0.1, per_unit_weight=True),
        by_norm(lambda n, w: 2.0 * w / (n + 0.1 * w)),
    ),
    "adaptive clip": (gf.adaptive_clip_per_sample(0.7), by_norm(lambda n, w: (0.7 / n).clamp(max=1).nan_to_num(1.0))),
    "adaptive clip, unit": (
        gf.adaptive_clip_per_sample(0.7, unit=True),
        by_norm(lambda n, w: (1 / n).clamp(max=1 / 0.7).nan_to_num(1.0)),
    ),
    "clip by value": (gf.clip_value_per_sample(0.2), by_entry(lambda v: v.clamp(-0.2, 0.2))),
    "sign": (gf.sign_per_sample(), by_entry(torch.sign)),
    "mask": (gf.mask_per_sample(lambda g: g.losses < 1), chosen(lambda want: want.losses < 1)),
    "top k": (gf.top_k_loss(3), chosen(lambda want: hardest(want, 3))),
    "top share": (gf.top_k_loss(0.4), chosen(lambda want: hardest(want, math.ceil(0.4 * B)))),
    "reweight": (
        gf.reweight_per_sample(lambda g: 1 / (1 + g.losses)),
        lambda want: times(want, 1 / (1 + want.losses), weights=True),
    ),
    "reweight, numerators": (
        gf.reweight_per_sample(lambda g: 1 / (1 + g.losses), weights=False),
        lambda want: times(want, 1 / (1 + want.losses)),
    ),
    "focal": (
        gf.focal_weights(1.5),
        lambda want: times(want, (1 - torch.exp(-want.losses / want.weights)) ** 1.5),
    ),
    "normalise weights": (
        gf.normalize_weights(),
        lambda want: times(want, 1 / want.weights)._replace(weights=torch.ones_like(want.weights)),
    ),
    "policy": (gf.nonfinite_per_sample("raise"), lambda want: want),
}


def check_stage(name, kind="kept", engine="vmap"):
    stage, change = STAGES[name]
    g, want = rows(kind, engine=engine)
    state = stage.init({})
    made, _ = stage.update(g, state)
    check_queries(made, change(want))
    again, _, report = stage.update_with_report(g, state)
    assert all(torch.equal(again.sum()[k], v) for k, v in made.sum().items())
    assert str(report) is not None
    check_queries(g, want)  # what was given stays as it is


@pytest.mark.parametrize("kind", quick(["kept", "streamed"], KINDS))
@pytest.mark.parametrize("name", STAGES)
def test_stages(name, kind):
    check_stage(name, kind)


@pytest.mark.parametrize("name", STAGES)
def test_stages_of_factors(name):
    check_stage(name, "kept", "factored")


def check_permutation(name):
    """Rows that depend on themselves alone move with the samples; so does a choice without ties."""
    stage, _ = STAGES[name]
    g, _ = rows("kept")
    index = torch.randperm(B, generator=torch.Generator().manual_seed(0))
    state = stage.init({})
    one, _ = stage.update(g.select(index), state)
    other = stage.update(g, state)[0].select(index)
    scale = other.norms().max()
    for k, v in one.materialize().items():
        assert bool(((v - other.materialize()[k]).abs() <= 1e-13 * scale).all())
    assert torch.allclose(one.losses, other.losses, rtol=1e-14)
    assert torch.equal(one.weights, other.weights)


@pytest.mark.parametrize("name", STAGES)
def test_permuting_the_samples_permutes_the_rows(name):
    check_permutation(name)


# --- the tables ---------------------------------------------------------------------------------------

INF, NAN = math.inf, math.nan
BROKEN = torch.tensor([[3.0, 4.0, 0.0], [INF, 0.0, 1.0], [NAN, 0.0, 1.0]], dtype=F64)


def check_normalize_table():
    got = rows_of(out(gf.normalize_per_sample(1.0, stability=0.5)))
    assert torch.allclose(got[0], ROWS[0] / 5.5, rtol=1e-15)
    assert torch.allclose(got[1], ROWS[1] / 1.0, rtol=1e-15)
    assert not got[2].any()
    assert float(got[3].norm()) == pytest.approx(1.0, rel=1e-15)
    tiny = torch.tensor([[1e-200, 0.0, 0.0]], dtype=F64)
    assert float(rows_of(out(gf.normalize_per_sample(1.0, stability=0.0), tiny))[0, 0]) == pytest.approx(1.0, rel=1e-15)
    absent = out(gf.normalize_per_sample(1.0, per_unit_weight=True), ROWS[:1], torch.zeros(1, dtype=F64))
    assert not rows_of(absent).any()


def test_the_table_of_normalize_per_sample():
    check_normalize_table()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_what_is_normalised_is_bounded(dtype):
    torch.manual_seed(0)
    matrix = torch.randn(200, 5, dtype=F64) * torch.logspace(-9, 9, 200)[:, None]
    g = out(gf.normalize_per_sample(0.7, stability=0.0), matrix, dtype=dtype)
    assert float(g.norms().max()) <= 0.7 * (1 + 4 * torch.finfo(dtype).eps)


def check_entries_table(name):
    stage = {"clip": gf.clip_value_per_sample(1.0), "sign": gf.sign_per_sample()}[name]
    matrix = torch.tensor([[0.0, -0.0, 0.5], [1e20, -1e20, 1e-300]], dtype=F64)
    want = {"clip": matrix.clamp(-1, 1), "sign": matrix.sign()}[name]
    assert torch.equal(rows_of(out(stage, matrix)), want)


@pytest.mark.parametrize("name", ["clip", "sign"])
def test_the_tables_of_entrywise_stages(name):
    check_entries_table(name)
    assert torch.equal(rows_of(out(gf.clip_value_per_sample(INF), ROWS)), ROWS)


NONFINITE = {
    "normalise": gf.normalize_per_sample,
    "adaptive clip": lambda **o: gf.adaptive_clip_per_sample(1.0, **o),
    "clip by value": lambda **o: gf.clip_value_per_sample(1.0, **o),
    "sign": gf.sign_per_sample,
    "clip by groups": lambda **o: gf.clip_per_sample(1.0, groups={"a": 1.0}, **o),
    "clip by parameter": lambda **o: gf.clip_per_sample(1.0, groups="parameter", **o),
    "policy": lambda nonfinite: gf.nonfinite_per_sample(nonfinite),
}


def check_nonfinite(name, policy, chunk_size=None):
    stage = NONFINITE[name](nonfinite=policy) if name != "policy" else gf.nonfinite_per_sample(policy)
    if policy == "raise":
        with pytest.raises(ValueError, match=r"got a gradient of norm inf for sample 1 in 'a'"):
            out(stage, BROKEN, chunk_size=chunk_size).sum()
        return
    g = out(stage, BROKEN, chunk_size=chunk_size)
    got = rows_of(g)
    assert bool(got[0].isfinite().all())
    if policy == "keep":
        assert bool(got[2].isnan().any())
        assert g.weights.tolist() == [1, 1, 1]
    else:
        assert not got[1:].any()
        assert g.losses[1:].tolist() == [0, 0]
        assert g.weights.tolist() == ([1, 0, 0] if policy == "skip" else [1, 1, 1])


@pytest.mark.parametrize("chunk_size", [None, 1])
@pytest.mark.parametrize("policy", ["raise", "skip", "zero", "keep"])
@pytest.mark.parametrize("name", NONFINITE)
def test_rows_that_are_not_finite(name, policy, chunk_size):
    check_nonfinite(name, policy, chunk_size)


def test_entries_that_are_not_finite_and_kept():
    got = rows_of(out(gf.clip_value_per_sample(2.0, nonfinite="keep"), BROKEN))
    assert got[1].tolist() == [2.0, 0.0, 1.0]
    assert bool(got[2, 0].isnan())
    assert rows_of(out(gf.sign_per_sample(nonfinite="keep"), BROKEN))[1].tolist() == [1.0, 0.0, 1.0]


def test_a_norm_that_is_not_finite_is_a_samples_whole():
    """Group `a` of sample 1 is infinite: all of the sample is left out, `b` too."""
    g = out(gf.clip_per_sample(1.0, groups={"a": 1.0}, nonfinite="skip"), BROKEN)
    assert not rows_of(g)[1].any()


def check_mask_table():
    weights = torch.tensor([1.0, 2.0, 0.0], dtype=F64)
    g = out(gf.mask_per_sample(lambda g: torch.tensor([True, False, True])), BROKEN, weights)
    got = rows_of(g)
    assert torch.equal(got[0], BROKEN[0])
    assert not got[1].any()
    assert bool(got[2].isnan().any())
    assert g.weights.tolist() == [1, 0, 0]
    assert float(g.losses[1]) == 0.0


def test_the_table_of_masks():
    check_mask_table()


def losses_of(values, weights=None):
    """Rows whose losses are these numbers."""
    values = torch.tensor(values, dtype=F64)
    weights = torch.ones(len(values), dtype=F64) if weights is None else torch.tensor(weights, dtype=F64)

    def loss(p, v, w):
        return gf.Weighted(p["a"].sum() * w.clamp_min(1) + v, w)

    return gf.per_sample_grads(loss, verify=False)({"a": torch.zeros(1, dtype=F64)}, values, weights)


def kept(stage, *given):
    return stage.update(losses_of(*given), ())[0].weights.bool().tolist()


def check_top_k_table():
    assert kept(gf.top_k_loss(2), [1.0, 3.0, 3.0, 3.0]) == [False, True, True, False]  # ties: first in the batch
    assert kept(gf.top_k_loss(2), [1.0, 9.0, 3.0, 4.0], [1.0, 0.0, 1.0, 1.0]) == [False, False, True, True]
    assert kept(gf.top_k_loss(5), [1.0, 2.0]) == [True, True]
    assert kept(gf.top_k_loss(0.5), [1.0, 2.0, 3.0, 4.0, 5.0]) == [False, False, True, True, True]
    assert kept(gf.top_k_loss(0.5), [1.0, 2.0, 3.0], [1.0, 0.0, 0.0]) == [True, False, False]  # of those with weight
    assert kept(gf.top_k_loss(1), [4.0, 6.0], [1.0, 2.0]) == [True, False]  # losses per weight
    with pytest.raises(ValueError, match="a loss that is NaN"):
        kept(gf.top_k_loss(1), [1.0, NAN])


def test_the_table_of_top_k_loss():
    check_top_k_table()


def check_focal_table():
    g = losses_of([0.0, 1000.0, math.log(2), 0.0], [1.0, 1.0, 1.0, 0.0])
    assert gf.focal_weights(2.0).update(g, ())[0].norms().tolist() == pytest.approx([0.0, 1.0, 0.25, 0.0], rel=1e-14)
    assert gf.focal_weights(0.0).update(g, ())[0].norms().tolist() == [1.0, 1.0, 1.0, 0.0]
    assert gf.focal_weights(2.0).update(g, ())[0].weights.tolist() == [1, 1, 1, 0]
    with pytest.raises(ValueError, match=r"loss -1.0 per weight for sample 1"):
        gf.focal_weights().update(losses_of([1.0, -1.0]), ())


def test_the_table_of_focal_weights():
    check_focal_table()


def test_the_table_of_reweight_per_sample():
    stage = gf.reweight_per_sample(lambda g: torch.tensor([1.0, 0.0, 2.0], dtype=F64))
    g = out(stage, BROKEN[[0, 1, 0]])
    assert torch.equal(rows_of(g), torch.stack([BROKEN[0], torch.zeros(3, dtype=F64), 2 * BROKEN[0]]))
    assert g.weights.tolist() == [1, 0, 2]
    for bad in (-1.0, NAN, INF):
        with pytest.raises(ValueError, match="expected finite coefficients >= 0"):
            out(gf.reweight_per_sample(lambda g, bad=bad: torch.full((4,), bad)))
    with pytest.raises(ValueError, match=r"shape \(2,\) from its function; expected a tensor \[4\]"):
        out(gf.mask_per_sample(lambda g: torch.ones(2).bool()))
    with pytest.raises(ValueError, match="got a list from its function"):
        out(gf.reweight_per_sample(lambda g: [1.0]))


BAD = {
    "normalize 0": (lambda: gf.normalize_per_sample(0.0), ValueError, "max_norm=0.0"),
    "normalize inf": (lambda: gf.normalize_per_sample(INF), ValueError, "max_norm=inf"),
    "normalize NaN": (lambda: gf.normalize_per_sample(NAN), ValueError, "max_norm=nan"),
    "stability": (lambda: gf.normalize_per_sample(stability=-1.0), ValueError, "stability=-1.0"),
    "value 0": (lambda: gf.clip_value_per_sample(0.0), ValueError, "limit=0.0"),
    "value negative": (lambda: gf.clip_value_per_sample(-1.0), ValueError, "limit=-1.0"),
    "value NaN": (lambda: gf.clip_value_per_sample(NAN), ValueError, "limit=nan"),
    "value text": (lambda: gf.clip_value_per_sample("1"), TypeError, "limit='1'"),
    "policy": (lambda: gf.sign_per_sample(nonfinite="drop"), ValueError, "nonfinite='drop'"),
    "policy alone": (lambda: gf.nonfinite_per_sample("drop"), ValueError, "policy='drop'"),
    "adaptive 0": (lambda: gf.adaptive_clip_per_sample(0.0), ValueError, "initial=0.0"),
    "quantile": (lambda: gf.adaptive_clip_per_sample(quantile=1.5), ValueError, "quantile=1.5"),
    "k 0": (lambda: gf.top_k_loss(0), ValueError, "k=0"),
    "k 1.5": (lambda: gf.top_k_loss(1.5), ValueError, "k=1.5"),
    "k True": (lambda: gf.top_k_loss(True), TypeError, "k=True"),
    "gamma": (lambda: gf.focal_weights(-1.0), ValueError, "gamma=-1.0"),
    "no function": (lambda: gf.mask_per_sample(3), TypeError, "keep=3"),
    "groups": (lambda: gf.clip_per_sample(1.0, groups="layer"), ValueError, "groups='layer'"),
    "groups of 0": (lambda: gf.clip_per_sample(1.0, groups={"a": 0.0}), ValueError, r"groups\['a'\]=0.0"),
    "groups, no regex": (lambda: gf.clip_per_sample(1.0, groups={"(": 1.0}), ValueError, "regular expression"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused_when_built(name):
    build, kind, text = BAD[name]
    with pytest.raises(kind, match=text):
        build()


def test_a_group_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match=r"groups with 'head.\*', which matches nothing; expected a match among"):
        out(gf.clip_per_sample(1.0, groups={"head.*": 1.0}))


@pytest.mark.parametrize("name", STAGES)
def test_gradients_are_no_rows(name):
    with pytest.raises(TypeError, match="got a dict; expected per-sample gradients"):
        STAGES[name][0].update({"w": torch.ones(2)}, STAGES[name][0].init({}))


# --- the quantile -------------------------------------------------------------------------------------


def check_quantile():
    """C comes to the quantile of a fixed set of norms, and moves by exp(-eta (b - q)) each time."""
    g, params = plain(torch.arange(1.0, 102.0, dtype=F64)[:, None] * torch.tensor([[1.0, 0.0]], dtype=F64))
    clip = gf.adaptive_clip_per_sample(0.1, quantile=0.8, learning_rate=0.2)
    state = clip.init(params)
    want = 0.1
    for _ in range(200):
        clipped, state = clip.update(g, state)
        share = float((g.norms() <= want).double().mean())
        assert float(clipped.norms().max()) <= want * (1 + 1e-15)
        want *= math.exp(-0.2 * (share - 0.8))
        assert float(state["max_norm"]) == pytest.approx(want, rel=1e-13)
    assert 79 <= want <= 82
    assert state["count"] == 200


def test_the_threshold_follows_the_quantile():
    check_quantile()


def test_the_noisy_count_is_a_function_of_seed_and_count():
    g, params = plain(ROWS)
    one, other = (gf.adaptive_clip_per_sample(1.0, count_noise_std=0.5, seed=s) for s in (0, 1))
    first, again, differs = (float(s.update(g, s.init(params))[1]["max_norm"]) for s in (one, one, other))
    assert first == again != differs
    state = torch.get_rng_state()
    one.update(g, one.init(params))
    assert torch.equal(state, torch.get_rng_state())
    noise = -(math.log(first) / 0.2) * 4 + 0.5 * 4 - 2  # log C = -eta (b - q), b = (2 + noise) / 4
    assert 0 < abs(noise) < 4 * 0.5


NEXT = {  # rows, weights: of norms at C = 1, below it and above it, infinite; with a weight, with little, and without
    "all": ([1.0, 0.5, 2.0, INF, 0.0, 0.9, 0.1], [1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.0]),
    "one": ([0.5], [0.25]),
    "one above": ([2.0], [3.0]),
    "none finite": ([INF], [1.0]),
    "none of weight": ([0.5], [0.0]),
    "none": ([], []),
}
DP = {"quantile": 0.25, "learning_rate": 0.7, "count_noise_std": 3.0, "batch_size": 5.5, "seed": 4}


def check_next(name, options, dtype=F64, policy="skip"):
    """`C exp(-eta (b - q))`, b the share of finite rows with a weight that are at most C long; and again from there."""
    norms, weights = (torch.tensor(given, dtype=dtype) for given in NEXT[name])
    g, params = plain(norms[:, None] * torch.tensor([[0.6, 0.8]], dtype=dtype), weights, dtype)
    clip = gf.adaptive_clip_per_sample(1.0, nonfinite=policy, **options)
    state, want = clip.init(params), 1.0
    assert state["max_norm"].dtype == F64
    assert state["count"] == 0
    q, eta = options.get("quantile", 0.5), options.get("learning_rate", 0.2)
    for count in range(2):
        state = clip.update(g, state)[1]
        counted = norms.isfinite() & (weights > 0)
        below = float((counted & (g.norms() <= want)).sum())
        if std := options.get("count_noise_std", 0.0):
            draw = gaussian(torch.zeros((), dtype=F64), "adaptive_clip_per_sample", options["seed"], count)
            below += std * float(draw)
        size = options.get("batch_size", float(counted.sum()))
        want *= math.exp(-eta * ((below / size if size else q) - q))
        assert state["max_norm"].dtype == F64
        assert float(state["max_norm"]) == pytest.approx(want, rel=1e-14)
        assert state["count"] == count + 1


@pytest.mark.parametrize("options", [{}, DP], ids=["plain", "private"])
@pytest.mark.parametrize("name", NEXT)
def test_the_next_threshold(name, options):
    for dtype in (F64, torch.float32):
        for policy in ("skip", "zero", "keep"):
            check_next(name, options, dtype, policy)


def test_no_samples_move_no_threshold():
    g, params = plain(ROWS[:0])
    clip = gf.adaptive_clip_per_sample(0.5)
    assert float(clip.update(g, clip.init(params))[1]["max_norm"]) == 0.5


def test_schedules():
    """A clip whose C halves with every update, and its count in the state."""
    g, params = plain(ROWS)
    for build in (
        gf.clip_per_sample,
        gf.normalize_per_sample,
        gf.clip_value_per_sample,
        lambda c: gf.clip_per_sample(c, groups="parameter"),
        lambda c: gf.clip_per_sample(1e9, groups={"a": c, "b": c}),
    ):
        stage = build(lambda step: 2.0**-step)
        state = stage.init(params)
        for step in range(3):
            assert state == {"count": step}
            got, state = stage.update(g, state)
            fixed = build(2.0**-step)
            assert torch.equal(rows_of(got), rows_of(fixed.update(g, fixed.init(params))[0]))
        assert stage.guarantee() == Guarantee(per_sample_independent=True)


def test_a_schedule_out_of_range_is_named():
    g, params = plain(ROWS)
    stage = gf.clip_per_sample(lambda step: -1.0)
    with pytest.raises(ValueError, match=r"got -1.0 from max_norm\(step=0\); expected a norm > 0"):
        stage.update(g, stage.init(params))


# --- guarantees ---------------------------------------------------------------------------------------

BOUNDED, PER_UNIT = Guarantee(3.0, False, True), Guarantee(3.0, True, True)
GUARANTEES = {
    "groups": (gf.clip_per_sample(3.0, groups={"a": 4.0}), SAMPLES, Guarantee(5.0, False, True)),
    "parameter": (gf.clip_per_sample(3.0, groups="parameter"), SAMPLES, SAMPLES),
    "normalise": (gf.normalize_per_sample(2.0), BOUNDED, Guarantee(2.0, False, True)),
    "normalise, keep": (gf.normalize_per_sample(2.0, nonfinite="keep"), BOUNDED, SAMPLES),
    "normalise per unit": (gf.normalize_per_sample(2.0, per_unit_weight=True), BOUNDED, Guarantee(2.0, True, True)),
    "adaptive": (gf.adaptive_clip_per_sample(), BOUNDED, Guarantee(3.0, False, True, learns=True)),
    "adaptive, unit": (gf.adaptive_clip_per_sample(unit=True), SAMPLES, Guarantee(1.0, False, True, learns=True)),
    "value": (gf.clip_value_per_sample(1.0), BOUNDED, BOUNDED),
    "sign": (gf.sign_per_sample(), BOUNDED, SAMPLES),
    "mask": (gf.mask_per_sample(lambda g: g.losses > 0), BOUNDED, Guarantee(3.0)),
    "mask, promised": (
        gf.mask_per_sample(lambda g: g.losses > 0, per_sample_independent=True),
        BOUNDED,
        BOUNDED,
    ),
    "top k": (gf.top_k_loss(2), BOUNDED, Guarantee(3.0)),
    "reweight": (gf.reweight_per_sample(lambda g: g.losses), BOUNDED, NOTHING),
    "reweight per unit": (gf.reweight_per_sample(lambda g: g.losses), PER_UNIT, Guarantee(3.0, True)),
    "focal": (gf.focal_weights(), BOUNDED, BOUNDED),
    "policy": (gf.nonfinite_per_sample("skip"), BOUNDED, BOUNDED),
    "weights": (gf.normalize_weights(), BOUNDED, SAMPLES),
    "weights per unit": (gf.normalize_weights(), PER_UNIT, BOUNDED),
}


def check_guarantee(name):
    stage, before, want = GUARANTEES[name]
    assert stage.guarantee(before) == want


@pytest.mark.parametrize("name", GUARANTEES)
def test_guarantees(name):
    check_guarantee(name)


def check_honest(name):
    """No rows, weights or neighbours are found that break what a stage says of its output."""
    stage, before, _ = GUARANTEES[name]
    generator = torch.Generator().manual_seed(7)
    said = stage.guarantee(before)
    for trial in range(12):
        matrix = torch.randn(5, 3, generator=generator, dtype=F64) * 10.0 ** float(trial - 6)
        weights = torch.rand(5, generator=generator, dtype=F64) * 3 + (0.01 if trial % 2 else 0.5)
        weights = torch.ones_like(weights) if before == BOUNDED and trial % 3 == 0 else weights
        if before.bound is not None:  # data of which what is given holds
            unit = weights if before.per_unit_weight else torch.ones_like(weights)
            matrix = matrix * (before.bound * unit / matrix.norm(dim=1)).clamp(max=1)[:, None]
        got = out(stage, matrix, weights)
        if said.bound is not None:
            unit = got.weights if said.per_unit_weight else torch.ones_like(got.weights)
            assert bool((rows_of(got).norm(dim=1) <= said.bound * unit * (1 + 1e-14)).all())
        if said.per_sample_independent:
            other = matrix.clone()
            other[1:] = other[1:].flip(0) * 0.5
            again = out(stage, other, weights)
            assert torch.equal(rows_of(got)[0], rows_of(again)[0])
            assert float(got.weights[0]) == float(again.weights[0])


@pytest.mark.parametrize("name", GUARANTEES)
def test_guarantees_are_honest(name):
    check_honest(name)


@pytest.mark.parametrize("kept", [[math.nan, 1.0, 1.0], [-1.0, 1.0, 0.0]])
def test_a_mask_is_of_bools(kept):
    g, _ = plain(torch.eye(3, dtype=F64))
    with pytest.raises(ValueError, match=r"got dtype torch.float32 from keep; expected bools"):
        gf.mask_per_sample(lambda g: torch.tensor(kept)).update(g, ())


@pytest.mark.parametrize(("samples", "share", "number"), [(25, 0.6, 15), (50, 0.3, 15), (50, 0.54, 27), (3, 0.5, 2)])
def test_a_share_is_of_the_decimal_that_was_written(samples, share, number):
    g, _ = plain(torch.ones(samples, 2, dtype=F64))
    assert int(gf.top_k_loss(share).update(g, ())[0].weights.sum()) == number


def test_an_adaptive_limit_divides_by_the_batch_size_itself():
    g, params = plain(torch.eye(3, dtype=F64))
    clip = gf.adaptive_clip_per_sample(2.0, batch_size=3.3)
    _, state = clip.update(g, clip.init(params))
    assert float(state["max_norm"]) == pytest.approx(2 * math.exp(-0.2 * (3 / 3.3 - 0.5)), rel=1e-14)


def test_absent_samples_count_for_no_quantile():
    matrix = torch.full((10, 2), 5.0, dtype=F64)
    clip = gf.adaptive_clip_per_sample(1.0)
    g, params = plain(matrix)
    some, _ = plain(matrix[:2])
    masked = g.weighted(torch.arange(10) < 2)
    assert clip.update(masked, clip.init(params))[1] == clip.update(some, clip.init(params))[1]
