"""`masked`, `partition`, `identity`, `scale`, `stateless_transform`: stages on parts, and stages of any place."""

from __future__ import annotations

import math

import pytest
import torch
from oracle import check_queries, flat, same_bits
from problem import F64, KINDS, Doubled, Sgd, problem, rows
from test_derived import times
from tiers import quick

import gradfunc as gf
from gradfunc._transform import Guarantee, Sensitivity, _chain, _parts
from gradfunc._transform._guarantee import NOTHING, SAMPLES

SOME = ("v", "idle")


def grads():
    params, _ = problem()
    generator = torch.Generator().manual_seed(1)
    return {k: torch.randn(v.shape, generator=generator, dtype=F64) for k, v in params.items()}, params


def only(values, names):
    return {k: v for k, v in values.items() if k in names}


def check_masked_gradients():
    """A stage on the selected part is that stage on the part; the rest passes; state is the part's."""
    g, params = grads()
    for select in (r"v|idle", ["idle", "v"], lambda name, tensor: name != "w"):
        stage = gf.masked(gf.scale(lambda step: 0.5**step), select)
        state = stage.init(params)
        for step in range(3):
            got, state = stage.update(g, state, params)
            assert list(got) == list(g)
            assert same_bits(only(got, SOME), {k: g[k] * 0.5**step for k in SOME})
            assert torch.equal(got["w"], g["w"])
        assert state == {"count": 3}


def test_masked_gradients():
    check_masked_gradients()


def check_masked_rule():
    g, params = grads()
    stage = gf.masked(Sgd(0.5), "v")
    updates, _ = stage.update(g, stage.init(params), params)
    assert same_bits(updates, {"v": -0.5 * g["v"]})
    now = gf.apply_updates(params, updates)
    assert all(now[k] is params[k] for k in ("w", "idle"))
    assert (gf.mean() >> stage).gives is gf.Updates


def test_a_masked_rule_leaves_the_rest_alone():
    check_masked_rule()


def rescaled(want, c, names):
    scaled = times(want, c).rows
    return want._replace(rows={k: scaled[k] if k in names else v for k, v in want.rows.items()})


def check_masked_rows(kind="kept"):
    g, want = rows(kind)
    stage = gf.masked(gf.clip_per_sample(0.2) >> gf.clip_value_per_sample(0.1), SOME)
    got, _, report = stage.update_with_report(g, stage.init(problem()[0]))
    norms = flat(only(want.rows, SOME)).norm(dim=1)
    c = torch.where(norms > 0.2, 0.2 / norms, 1.0)
    truth = rescaled(want, c, SOME)
    clamped = {k: v.clamp(-0.1, 0.1) if k in SOME else v for k, v in truth.rows.items()}
    check_queries(got, truth._replace(rows=clamped))
    assert float(report["clip_per_sample"]["clipped"]) == pytest.approx(float((c < 1).double().mean()))
    check_queries(g, want)


@pytest.mark.parametrize("kind", quick(["kept", "streamed"], KINDS))
def test_masked_rows(kind):
    check_masked_rows(kind)


@pytest.mark.parametrize(
    "stage", [Doubled(), gf.normalize_weights(), gf.top_k_loss(2)], ids=["own", "weights", "top k"]
)
def test_a_masked_stage_may_not_change_samples(stage):
    g, _ = rows()
    with pytest.raises(ValueError, match="other samples, losses or weights from"):
        gf.masked(stage, "v").update(g, gf.masked(stage, "v").init(problem()[0]))


# --- partition ------------------------------------------------------------------------------------


def check_partition_gradients():
    g, params = grads()
    labels = {"w": "a", r"v|idle": "b"}
    for given in (labels, lambda name, tensor: "a" if name == "w" else "b"):
        stage = gf.partition({"a": Sgd(0.5), "b": Sgd(2.0)}, given)
        state = stage.init(params)
        updates, state = stage.update(g, state, params)
        assert list(updates) == list(g)
        for label, names in (("a", ("w",)), ("b", SOME)):
            alone = Sgd(stage.stages[label].lr)
            part, own = alone.update(only(g, names), alone.init(only(params, names)), only(params, names))
            assert same_bits(only(updates, names), part)
            assert state[label][1] == own[1]
            assert float(state[label][0]) == pytest.approx(float(own[0]), rel=1e-15)


def test_partition_of_gradients():
    check_partition_gradients()


def check_partition_rows(kind="kept"):
    """Rows into rows: a part each; rows into gradients: a reduction each."""
    g, want = rows(kind)
    stage = gf.partition(
        {"a": gf.clip_per_sample(0.3), "b": gf.normalize_per_sample(2.0, stability=0.5)}, {"w": "a", ".*": "b"}
    )
    got, _ = stage.update(g, stage.init(problem()[0]))
    a = flat(only(want.rows, ("w",))).norm(dim=1)
    b = flat(only(want.rows, SOME)).norm(dim=1)
    ca, cb = torch.where(a > 0.3, 0.3 / a, 1.0), 2.0 / (b + 0.5)
    truth = rescaled(rescaled(want, ca, ("w",)), cb, SOME)
    check_queries(got, truth)
    reduced = gf.partition({"a": gf.clip_per_sample(0.3) >> gf.sum(), "b": gf.mean()}, {"w": "a", ".*": "b"})
    assert reduced.gives is gf.Grads
    out, _ = reduced.update(g, reduced.init(problem()[0]))
    sums = {k: v.sum(0) for k, v in rescaled(want, ca, ("w",)).rows.items()}
    for k, v in sums.items():
        expected = v if k == "w" else v / want.weights.sum()
        assert torch.allclose(out[k], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", quick(["kept", "streamed"], KINDS))
def test_partition_of_rows(kind):
    check_partition_rows(kind)


def test_a_name_that_is_spelt_out_comes_first():
    g, params = grads()
    stage = gf.partition({"a": gf.scale(2.0), "b": gf.identity()}, {".*": "b", "v": "a"})
    out, _ = stage.update(g, stage.init(params))
    assert torch.equal(out["v"], 2 * g["v"])
    assert torch.equal(out["w"], g["w"])


BAD = {
    "no label": (lambda: gf.partition({"a": gf.scale(1.0)}, {"w": "a"}), ValueError, "no label for 'v'"),
    "unknown label": (
        lambda: gf.partition({"a": gf.scale(1.0)}, {".*": "c"}),
        ValueError,
        r"label 'c' for 'w'; expected one of \['a'\]",
    ),
    "a rule for nothing": (
        lambda: gf.partition({"a": gf.scale(1.0)}, {"head": "a", ".*": "a"}),
        ValueError,
        "'head', which matches nothing",
    ),
    "nothing masked": (lambda: gf.masked(gf.scale(1.0), "head"), ValueError, "select='head', which matches nothing"),
    "an unknown name": (lambda: gf.masked(gf.scale(1.0), ["head"]), ValueError, r"select with \['head'\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused_at_init(name):
    build, kind, text = BAD[name]
    g, params = grads()
    stage = build()
    with pytest.raises(kind, match=text):
        stage.init(params)
    with pytest.raises(kind, match=text):
        stage.update(g, {}, params)


REFUSED = {
    "a reduction masked": (lambda: gf.masked(gf.mean(), "w"), "mean, a reduction"),
    "no stage": (lambda: gf.masked(3, "w"), "got an int; expected a stage"),
    "no selection": (lambda: gf.masked(gf.scale(1.0), 3), "select=3"),
    "parts that take different things": (
        lambda: gf.partition({"a": gf.scale(1.0), "b": Sgd(), "c": gf.mean()}, {}),
        "'b', which takes Grads, 'c', which takes PerSampleGrads",
    ),
    "parts that give different things": (
        lambda: gf.partition({"a": gf.mean(), "b": gf.clip_per_sample(1.0)}, {}),
        "'a', which gives Grads, 'b', which gives PerSampleGrads",
    ),
    "no parts": (lambda: gf.partition({}, {}), r"stages=\{\}"),
    "no labels": (lambda: gf.partition({"a": gf.mean()}, 3), "labels=3"),
    "a number out of place": (lambda: gf.scale("2"), "factor='2'"),
    "a wrong order behind a mask": (
        lambda: gf.mean() >> gf.masked(gf.scale(1.0), "w") >> gf.clip_per_sample(1.0),
        "mean >> clip_per_sample: got Grads from mean",
    ),
    "a wrong order behind a partition": (
        lambda: gf.mean() >> gf.partition({"a": gf.scale(1.0)}, {".*": "a"}) >> gf.sum(),
        "mean >> sum: got Grads from mean",
    ),
    "scale on rows": (
        lambda: gf.clip_per_sample(1.0) >> gf.scale(2.0),
        "got PerSampleGrads from clip_per_sample; expected Grads or Updates, which scale takes",
    ),
    "a masked rule before the reduction": (
        lambda: gf.clip_per_sample(1.0) >> gf.masked(Sgd(), "w"),
        r"clip_per_sample >> masked\(Sgd\): got PerSampleGrads",
    ),
}


def check_refused(name):
    build, text = REFUSED[name]
    with pytest.raises(TypeError, match=text):
        build()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_when_built(name):
    check_refused(name)


BOUNDED = Guarantee(3.0, False, True)
SUMMED = Guarantee(sensitivity=Sensitivity(3.0, 6.0))
MEANT = Guarantee(sensitivity=Sensitivity(over_n=6.0))
PER_UNIT = Guarantee(3.0, True, True)
LEARNT = Guarantee(per_sample_independent=True, learns=True)
GUARANTEES = {
    "masked clip": (gf.masked(gf.clip_per_sample(1.0), "w"), SAMPLES, SAMPLES),
    "masked clip, bounded before": (
        gf.masked(gf.clip_per_sample(1.0), "w"),
        BOUNDED,
        Guarantee(math.hypot(1, 3), False, True),
    ),
    "masked user's stage": (gf.masked(Doubled(), "w"), BOUNDED, Guarantee()),
    "masked scale": (gf.masked(gf.scale(2.0), "w"), SUMMED, Guarantee(sensitivity=Sensitivity(*(45**0.5, 180**0.5)))),
    "clips by part": (
        gf.partition({"a": gf.clip_per_sample(3.0), "b": gf.clip_per_sample(4.0)}, {}),
        SAMPLES,
        Guarantee(5.0, False, True),
    ),
    "clips and sums by part": (
        gf.partition({"a": gf.clip_per_sample(3.0) >> gf.sum(), "b": gf.clip_per_sample(4.0) >> gf.sum()}, {}),
        SAMPLES,
        Guarantee(sensitivity=Sensitivity(5.0, 10.0)),
    ),
    "one part not clipped": (
        gf.partition({"a": gf.clip_per_sample(3.0), "b": gf.identity()}, {}),
        SAMPLES,
        SAMPLES,
    ),
    "different units": (
        gf.partition({"a": gf.clip_per_sample(3.0), "b": gf.clip_per_sample(4.0, per_unit_weight=True)}, {}),
        SAMPLES,
        NOTHING,
    ),
    "scale": (gf.scale(-2.0), SUMMED, Guarantee(sensitivity=Sensitivity(6.0, 12.0))),
    "scale of a mean": (gf.scale(-2.0), MEANT, Guarantee(sensitivity=Sensitivity(over_n=12.0))),
    "masked scale of a mean": (
        gf.masked(gf.scale(2.0), "w"),
        MEANT,
        Guarantee(sensitivity=Sensitivity(over_n=180**0.5)),
    ),
    "descent": (gf.descend(0.5), SUMMED, Guarantee(sensitivity=Sensitivity(1.5, 3.0))),
    "descent by a schedule": (gf.descend(lambda step: 0.5), SUMMED, NOTHING),
    "scaled bounds": (gf.scale(2.0), BOUNDED, SAMPLES),
    "per unit, by part": (
        gf.partition({"a": gf.clip_per_sample(4.0, per_unit_weight=True), "b": gf.identity()}, {}),
        PER_UNIT,
        Guarantee(18**0.5, True, True),
    ),
    "learnt in one part": (
        gf.partition({"a": gf.adaptive_clip_per_sample(), "b": gf.identity()}, {}),
        SAMPLES,
        LEARNT,
    ),
    "learnt, masked": (gf.masked(gf.adaptive_clip_per_sample(unit=True), "w"), SAMPLES, LEARNT),
    "learnt before": (gf.clip_per_sample(1.0), LEARNT, Guarantee(1.0, False, True, learns=True)),
    "coupled in one part": (
        gf.partition({"a": gf.top_k_loss(2), "b": gf.identity()}, {}),
        BOUNDED,
        Guarantee(18**0.5),
    ),
    "scale by a schedule": (gf.scale(lambda step: 1.0), SUMMED, NOTHING),
    "identity": (gf.identity(), BOUNDED, BOUNDED),
    "any function": (gf.stateless_transform(lambda g: g), BOUNDED, NOTHING),
}


def check_guarantee(name):
    stage, before, want = GUARANTEES[name]
    got = stage.guarantee(before)
    assert got.bound == (None if want.bound is None else pytest.approx(want.bound))
    assert (got.per_unit_weight, got.per_sample_independent) == (want.per_unit_weight, want.per_sample_independent)
    assert got.learns is want.learns
    for kind in ("add_remove", "replace_one", "over_n"):
        expected = getattr(want.sensitivity, kind)
        assert getattr(got.sensitivity, kind) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("name", GUARANTEES)
def test_guarantees(name):
    check_guarantee(name)


# --- stages of any place ------------------------------------------------------------------------------


def test_identity_is_nothing_in_a_chain():
    step = gf.clip_per_sample(1.0) >> gf.mean()
    assert gf.identity() >> step == step >> gf.identity() == step
    assert gf.clip_per_sample(1.0) >> gf.identity() >> gf.mean() == step
    assert step.init({}) == (step >> gf.identity()).init({})
    g, _ = rows()
    assert gf.identity().update(g, ())[0] is g


def test_stateless_transforms():
    g, params = grads()
    with_params = gf.stateless_transform(lambda grads, params: {k: v + params[k] for k, v in grads.items()})
    assert same_bits(with_params.update(g, (), params)[0], {k: v + params[k] for k, v in g.items()})
    step = gf.stateless_transform(lambda g: g.scaled(2 * torch.ones(g.batch_size))) >> gf.sum()
    value, _ = rows()
    assert torch.allclose(step.update(value, step.init({}))[0]["w"], 2 * value.sum()["w"])
    for bad in (3, lambda: 0, lambda a, b, c: 0, lambda a, *, k: 0):
        with pytest.raises(TypeError, match=r"gf.stateless_transform\(fn\)"):
            gf.stateless_transform(bad)


def test_a_function_that_does_not_say_what_it_takes():
    """`dict` has no signature: it is called with what comes alone."""
    g, params = grads()
    stage = gf.stateless_transform(dict)
    out, state = stage.update(g, stage.init(params), params)
    assert same_bits(out, g)
    assert out is not g
    assert state == ()
    several = gf.stateless_transform(lambda *given: given[0])
    assert several.update(g, (), params)[0] is g
    optional = gf.stateless_transform(lambda grads, factor=2.0: {k: factor * v for k, v in grads.items()})
    assert same_bits(optional.update(g, (), params)[0], {k: 2 * v for k, v in g.items()})


def test_what_a_masked_stage_gives_must_be_rows():
    g, _ = rows()
    for stage, got in ((gf.stateless_transform(lambda g: g.sum()), "a dict"), (Reducing(), "a dict")):
        step = gf.masked(stage, "v")
        name = getattr(stage, "name", "Reducing")
        with pytest.raises(TypeError) as error:
            step.update(g, step.init(problem()[0]))
        expected = f"got {got} from the stage; expected per-sample gradients."
        assert str(error.value) == f"masked({name}).update(g, state): {expected}"


class Reducing:
    """A reduction that does not say so."""

    def init(self, params):
        return ()

    def update(self, g, state, params=None, /):
        return g.sum(), state


def test_what_is_known_of_nothing():
    assert Guarantee() == Guarantee(None, False, False, Sensitivity(None, None, None), False)
    assert Guarantee() == NOTHING
    assert Guarantee(None, False, True) == SAMPLES


def check_ownership():
    """A chain overwrites what it made itself, never what it was given."""
    g, params = grads()
    before = {k: v.clone() for k, v in g.items()}
    handed = gf.stateless_transform(lambda values: values)  # gives the very tensors that it takes
    for step in (
        gf.scale(2.0) >> gf.scale(3.0),
        gf.identity() >> gf.scale(2.0),
        gf.masked(gf.scale(2.0), "w") >> gf.scale(3.0),
        gf.partition({"a": gf.scale(2.0), "b": gf.identity()}, {"w": "a", ".*": "b"}) >> gf.scale(3.0),
        handed >> gf.scale(2.0),
        gf.masked(handed, "w") >> gf.scale(2.0),
        gf.masked(handed >> gf.scale(2.0), "w") >> gf.scale(2.0),
    ):
        step.update(g, step.init(params), params)
        assert same_bits(g, before), step
    taken = {k: v.clone() for k, v in g.items()}
    out, _ = gf.scale(2.0).update(taken, (), donate=True)
    assert all(out[k] is taken[k] for k in taken)


def test_what_was_given_is_never_overwritten():
    check_ownership()


def owned_anyway(owned, stage):
    return True


def states_of_all(self, values):
    return list(values)


MUTANTS = {
    "given tensors overwritten": (_chain, "_owned_after", owned_anyway, check_ownership),
    "all parameters selected": (_parts.Masked, "_names", states_of_all, check_masked_gradients),
    "all rows selected": (_parts.Masked, "_names", states_of_all, check_masked_rows),
    "a masked stage that hides what it takes": (
        _parts.Masked,
        "transparent",
        property(lambda self: False),
        lambda: check_refused("a wrong order behind a mask"),
    ),
    "bounds of parts added as one": (
        _parts,
        "_root",
        lambda values: None if None in values else max(values),
        lambda: check_guarantee("clips by part"),
    ),
    "parts swapped": (
        _parts.Partition,
        "_groups",
        lambda self, values: {label: [n for n in values if (n == "w") == (label != "a")] for label in self.stages},
        check_partition_gradients,
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_mistake_is_noticed(name, monkeypatch):
    where, attribute, mistake, law = MUTANTS[name]
    law()
    monkeypatch.setattr(where, attribute, mistake)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        law()
