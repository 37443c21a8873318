"""Noise: whose draws are whose; what a mechanism is told; which stages keep what one sample can move."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import same_bits
from problem import F64, Doubled, plain, problem, rows

import gradfunc as gf
from gradfunc._transform._guarantee import Guarantee, Sensitivity

SHAPES = {"w": (300,), "v": (20, 30), "s": ()}


def zeros(dtype=F64):
    return {k: torch.zeros(s, dtype=dtype) for k, s in SHAPES.items()}


def noise(stage, grads=None, steps=1):
    grads = zeros() if grads is None else grads
    state, out = stage.init(grads), []
    for _ in range(steps):
        drawn, state = stage.update(grads, state)
        out.append(drawn)
    return out


MAKERS = {
    "add_noise": lambda **how: gf.add_noise(1.0, **how),
    "gaussian_mechanism": lambda **how: gf.gaussian_mechanism(1.0, sensitivity=1.0, **how),
}


def check_draws(name):
    """A function of seed, step and name, and of nothing else; the global generator stays."""
    make, state = MAKERS[name], torch.get_rng_state()
    first, second = noise(make(seed=3), steps=2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert same_bits(noise(make(seed=3), steps=2)[1], second)
    some = noise(make(seed=3), {"v": torch.ones(20, 30, dtype=F64)}, 2)
    assert torch.equal(some[1]["v"], 1 + second["v"])
    kinds = [first["w"], second["w"], noise(make(seed=4))[0]["w"], first["v"].flatten()[:300]]
    for i, a in enumerate(kinds):
        for b in kinds[:i]:
            assert abs(float(torch.dot(a, b)) / 300) < 4 / 300**0.5  # four standard deviations of a product's mean
    drawn = torch.cat([v.flatten() for step in noise(make(seed=5), steps=20) for v in step.values()])
    n = len(drawn)
    assert abs(float(drawn.mean())) < 4 / n**0.5
    assert abs(float(drawn.var()) - 1) < 4 * (2 / n) ** 0.5
    assert abs(float(drawn.pow(4).mean()) - 3) < 4 * (96 / n) ** 0.5  # of a normal number's fourth power


@pytest.mark.parametrize("name", MAKERS)
def test_draws(name):
    check_draws(name)


def check_parts():
    """Masked or partitioned, a parameter keeps its noise."""
    stage = gf.add_noise(0.5, seed=1)
    want = noise(stage)[0]
    masked = noise(gf.masked(stage, "w|s"))[0]
    assert same_bits({k: masked[k] for k in "ws"}, {k: want[k] for k in "ws"})
    assert not masked["v"].any()
    parts = gf.partition({"a": stage, "b": gf.add_noise(0.5, seed=1)}, {"v": "a", ".*": "b"})
    assert same_bits(noise(parts)[0], want)


def test_parts_keep_their_noise():
    check_parts()


def test_two_kinds_of_noise_with_one_seed_are_two():
    a, b = (noise(make(seed=7))[0]["w"] for make in MAKERS.values())
    assert abs(float(torch.dot(a, b)) / 300) < 4 / 300**0.5


def test_a_resumed_run_draws_the_same():
    stage, grads = gf.add_noise(gf.schedules.linear(1.0, 0.0, steps=5), seed=0), zeros()
    want = noise(stage, steps=4)
    _, state = stage.update(grads, stage.init(grads))
    again = gf.unflatten_state(gf.flatten_state(state), like=stage.init(grads))
    assert same_bits(stage.update(grads, again)[0], want[1])
    assert float(want[3]["w"].std()) == pytest.approx(0.4, rel=0.2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_draw_in_float32(dtype):
    half, full = (noise(gf.add_noise(0.01, seed=2), zeros(kind))[0]["w"] for kind in (dtype, torch.float32))
    assert torch.equal(half, full.to(dtype))


# --- what a mechanism is told

CLIP, MULTIPLIER = 2.0, 1.5
# what comes before -> what one sample can move: by being added or left out, by being replaced
TOLD = {
    "sum": (gf.clip_per_sample(CLIP) >> gf.sum(), CLIP, 2 * CLIP),
    "fixed denominator": (gf.clip_per_sample(CLIP) >> gf.mean(denominator=10), CLIP / 10, CLIP / 5),
    "scaled": (gf.clip_per_sample(CLIP) >> gf.sum() >> gf.scale(-3.0), 3 * CLIP, 6 * CLIP),
    "clipped again": (gf.clip_per_sample(CLIP) >> gf.sum() >> gf.clip_by_global_norm(9.0), CLIP, 2 * CLIP),
    "with an eps": (gf.clip_per_sample(CLIP) >> gf.sum() >> gf.clip_by_global_norm(9.0, eps=1.0), CLIP, 2 * CLIP),
    "clamped": (gf.clip_per_sample(CLIP) >> gf.sum() >> gf.clip_by_value(0.1), CLIP, 2 * CLIP),
    "by parameter": (gf.clip_per_sample(CLIP) >> gf.sum() >> gf.clip_by_parameter_norm(0.1), CLIP, 2 * CLIP),
    "by unit": (gf.clip_per_sample(CLIP) >> gf.sum() >> gf.adaptive_gradient_clip(), CLIP, 2 * CLIP),
    "centred": (gf.clip_per_sample(CLIP) >> gf.sum() >> gf.centralize(), CLIP, 2 * CLIP),
    "noise before": (gf.clip_per_sample(CLIP) >> gf.sum() >> gf.add_noise(1.0, seed=0), CLIP, 2 * CLIP),
    "decayed": (gf.clip_per_sample(CLIP) >> gf.sum() >> gf.add_decayed_weights(0.1), CLIP, 2 * CLIP),
    "skipping": (gf.clip_per_sample(CLIP) >> gf.sum() >> gf.skip_nonfinite() >> gf.zero_nonfinite(), CLIP, 2 * CLIP),
}


def check_told(name):
    before, one, other = TOLD[name]
    for adjacency, sensitivity in (("add_remove", one), ("replace_one", other)):
        stage = gf.gaussian_mechanism(MULTIPLIER, seed=0, adjacency=adjacency)
        step = before >> stage
        assert step.stages[-1].told == pytest.approx(sensitivity, rel=1e-15)
        g, _ = rows()
        params, _ = problem()
        out, _, report = step.update_with_report(g, step.init(params), params)
        facts = report["gaussian_mechanism"]
        assert facts["std"] == pytest.approx(MULTIPLIER * sensitivity, rel=1e-15)
        clean, _ = before.update(g, before.init(params), params)
        unit = gf.gaussian_mechanism(1.0, seed=0, sensitivity=1.0)
        drawn, _ = unit.update({k: torch.zeros_like(v) for k, v in clean.items()}, unit.init(clean))
        for k, value in out.items():
            assert torch.allclose(value, clean[k] + MULTIPLIER * sensitivity * drawn[k], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", TOLD)
def test_a_mechanism_is_told(name):
    check_told(name)


class Own:
    """A user's stage that says where it stands and guarantees nothing."""

    takes = gives = gf.Grads

    def init(self, params):
        return ()

    def update(self, grads, state, params=None, /):
        return grads, state


MECHANISM = gf.gaussian_mechanism(MULTIPLIER, seed=0)
REFUSED = {
    "a mean by weight": (lambda: gf.clip_per_sample(1.0) >> gf.mean() >> MECHANISM, "mean"),
    "no clip": (lambda: gf.sum() >> MECHANISM, "sum"),
    "a clip per weight": (lambda: gf.clip_per_sample(1.0, per_unit_weight=True) >> gf.sum() >> MECHANISM, "sum"),
    "a clip that keeps inf": (lambda: gf.clip_per_sample(1.0, nonfinite="keep") >> gf.sum() >> MECHANISM, "sum"),
    "no limit": (lambda: gf.clip_per_sample(math.inf) >> gf.sum() >> MECHANISM, "sum"),
    "a scheduled clip": (lambda: gf.clip_per_sample(lambda t: 1.0) >> gf.sum() >> MECHANISM, "sum"),
    "a user's stage": (lambda: gf.clip_per_sample(1.0) >> gf.sum() >> Own() >> MECHANISM, "Own"),
    "a user's rows": (lambda: gf.clip_per_sample(1.0) >> Doubled() >> gf.sum() >> MECHANISM, "sum"),
    "signs": (lambda: gf.clip_per_sample(1.0) >> gf.sum() >> gf.sign() >> MECHANISM, "sign"),
    "an average over steps": (lambda: gf.clip_per_sample(1.0) >> gf.sum() >> gf.ema(0.9) >> MECHANISM, "ema"),
    "moving limits": (lambda: gf.clip_per_sample(1.0) >> gf.sum() >> gf.clip_by_ema() >> MECHANISM, "clip_by_ema"),
    "a scheduled scale": (lambda: gf.clip_per_sample(1.0) >> gf.sum() >> gf.scale(lambda t: 1.0) >> MECHANISM, "scale"),
    "built the other way round": (lambda: gf.mean() >> (MECHANISM >> gf.scale(2.0)), "mean"),
    "in a mask": (lambda: gf.sum() >> gf.masked(MECHANISM, "w"), "sum"),
}  # fmt: skip


def check_refused(name):
    build, giver = REFUSED[name]
    with pytest.raises(ValueError, match=f"^{giver} >> gaussian_mechanism") as raised:
        build()
    for word in ("gf.clip_per_sample(C)", "gf.mean(denominator=D)", "sensitivity="):
        assert word in str(raised.value)


@pytest.mark.parametrize("name", REFUSED)
def test_a_mechanism_without_a_bound_is_refused_when_built(name):
    check_refused(name)


def check_told_later():
    """A chain that starts from gradients is built, refuses to run, and is told by what is put before it."""
    tail = gf.gaussian_mechanism(MULTIPLIER, seed=0) >> gf.scale(0.5)
    with pytest.raises(ValueError, match="no sensitivity"):
        tail.update(zeros(), tail.init(zeros()))
    for whole in (
        gf.clip_per_sample(CLIP) >> gf.sum() >> tail,
        gf.clip_per_sample(CLIP) >> (gf.sum() >> gf.identity()) >> tail,
        gf.chain(gf.clip_per_sample(CLIP), gf.sum(), tail),
    ):
        assert whole.stages[2].told == CLIP
        assert whole.guarantee().sensitivity.add_remove == CLIP / 2
    assert tail.stages[0].told is None  # building changes nothing that was built before
    tighter = gf.clip_per_sample(CLIP / 4) >> gf.sum() >> (gf.scale(1.0) >> tail)
    assert tighter.stages[3].told == CLIP / 4
    own = gf.clip_per_sample(1.0) >> gf.mean() >> gf.gaussian_mechanism(2.0, seed=0, sensitivity=0.5)
    g, params = plain(torch.randn(5, 3, dtype=F64))
    assert float(own.update_with_report(g, own.init(params))[2]["gaussian_mechanism"]["std"]) == 1.0


def test_a_mechanism_is_told_later():
    check_told_later()


# --- what a stage keeps: a search for two inputs that leave it farther apart than they came

KEEPERS = {
    "value": gf.clip_by_value(0.7),
    "global": gf.clip_by_global_norm(1.0),
    "global, eps": gf.clip_by_global_norm(1.0, eps=0.3),
    "global, eps above C": gf.clip_by_global_norm(1.0, eps=5.0),
    "global, no limit": gf.clip_by_global_norm(math.inf),
    "parameter": gf.clip_by_parameter_norm(0.5),
    "agc": gf.adaptive_gradient_clip(0.5),
    "skip": gf.skip_nonfinite(),
    "zero": gf.zero_nonfinite(),
    "noise": gf.add_noise(1.0, seed=0),
    "gaussian": gf.gaussian_mechanism(1.0, seed=0, sensitivity=1.0),
    "weights": gf.add_decayed_weights(0.3),
    "centralize": gf.centralize(),
    "scale": gf.scale(-0.5),
}
NUMBERS = st.floats(-3.0, 3.0, allow_nan=False, width=32)


def spread(stage, a, b):
    """How far two inputs are apart, before and behind."""

    def tensors(numbers):
        return {"w": torch.tensor(numbers[:4], dtype=F64).reshape(2, 2), "b": torch.tensor(numbers[4:], dtype=F64)}

    params = tensors([0.5, -1.0, 0.0, 2.0, 1.0, 0.1])
    one, two = (stage.update(tensors(x), stage.init(params), params)[0] for x in (a, b))
    behind = torch.cat([(one[k] - two[k]).flatten() for k in one])
    return math.dist(a, b), float(behind.norm())


def check_keeper(stage):
    """The stage's own word, if it gives it, against random pairs and steps on the way from one to the other."""
    stated = stage.guarantee(Guarantee(sensitivity=Sensitivity(add_remove=1.0))).sensitivity.add_remove
    if stated is None:
        return

    @settings(max_examples=40)
    @given(st.lists(NUMBERS, min_size=6, max_size=6), st.lists(NUMBERS, min_size=6, max_size=6))
    def search(a, b):
        way = [[x + k / 10 * (y - x) for x, y in zip(a, b, strict=True)] for k in range(11)]
        for one, two in [(a, b), *itertools.pairwise(way)]:
            came, left = spread(stage, one, two)
            assert left <= stated * came * (1 + 1e-9) + 1e-12

    search()


@pytest.mark.parametrize("name", KEEPERS)
def test_what_a_stage_keeps_has_no_counterexample(name):
    assert KEEPERS[name].guarantee(Guarantee(sensitivity=Sensitivity(add_remove=1.0))).sensitivity.add_remove
    check_keeper(KEEPERS[name])


LOSERS = {"sign": gf.sign(), "ema": gf.ema(0.9), "clip by ema": gf.clip_by_ema()}


@pytest.mark.parametrize("name", LOSERS)
def test_what_may_move_more_states_nothing(name):
    before = Guarantee(sensitivity=Sensitivity(1.0, 2.0, 2.0))
    assert LOSERS[name].guarantee(before).sensitivity == Sensitivity()


def test_signs_do_move_more():
    came, left = spread(gf.sign(), [1e-9, 0, 0, 0, 0, 0], [-1e-9, 0, 0, 0, 0, 0])
    assert left > 1e6 * came


def test_a_chain_within_a_stage_is_told_what_holds_there():
    within = gf.clip_per_sample(1.0) >> gf.sum() >> gf.gaussian_mechanism(1.0, seed=0)
    parts = gf.partition({"all": within}, {r".*": "all"})
    step = gf.focal_weights() >> parts
    assert step.stages[-1].stages["all"].stages[-1].told == 1.0
    with pytest.raises(ValueError, match=r"sum >> gaussian_mechanism: got sum, behind which nothing bounds"):
        gf.top_k_loss(2) >> parts  # which row stays depends on all
    step = gf.clip_per_sample(3.0) >> gf.sum() >> gf.masked(gf.scale(0.5) >> gf.gaussian_mechanism(1.0, seed=0), "w")
    assert step.stages[-1].inner.stages[-1].told == 1.5


def test_a_limit_that_is_learnt_moves_later_batches_of_one_result():
    clip = gf.adaptive_clip_per_sample(1.0, unit=True, learning_rate=1.0)
    assert (clip >> gf.accumulate(gf.sum(), 1)).guarantee() == (clip >> gf.sum()).guarantee()
    step = clip >> gf.clip_value_per_sample(2.0) >> gf.accumulate(gf.sum(), 2)
    assert step.guarantee().sensitivity == Sensitivity()
    later, sums = torch.full((100, 2), 0.5, dtype=F64), []
    for first in (0.1, 10.0):
        g, params = plain(torch.full((1, 2), first, dtype=F64))
        _, state = step.update(g, step.init(params), params)
        sums.append(step.update(plain(later)[0], state, params)[0])
    moved = math.dist(*(torch.cat(list(s.values())).tolist() for s in sums))
    assert moved > 2  # what one sample of norm at most 1 could do in a single batch
