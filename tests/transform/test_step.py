"""`make_step` and `apply_updates`."""

from __future__ import annotations

import weakref

import pytest
import torch
from oracle import same_bits
from problem import KINDS, Doubled, Sgd, loss, problem
from test_entries_and_groups import Largest
from torch.nn import functional as F

import gradfunc as gf
from gradfunc._factors import Outer


def by_hand(params, batch, lr=0.1):
    g = gf.per_sample_grads(loss)(params, *batch)
    step = gf.clip_per_sample(0.7) >> gf.mean()
    grads, _ = step.update(g, step.init(params), params)
    return {name: value - lr * grads[name] for name, value in params.items()}


def check_training(kind="kept"):
    params, batch = problem()
    step = gf.clip_per_sample(0.7) >> gf.mean() >> Sgd(0.1)
    run = gf.make_step(gf.per_sample_grads(loss, chunk_size=KINDS[kind]), step)
    state, want, before = step.init(params), params, {k: v.clone() for k, v in params.items()}
    now = params
    for i in range(3):
        now, state, report = run(now, state, *batch)
        want = by_hand(want, batch)
        assert all(torch.allclose(now[name], want[name], rtol=1e-12) for name in want)
        assert state["Sgd"][1]["steps"] == i + 1
        assert float(report["clip_per_sample"]["clipped"]) > 0
    assert same_bits(params, before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_chain_that_ends_in_updates_gives_parameters(kind):
    check_training(kind)


def test_a_chain_without_a_rule_gives_gradients():
    params, batch = problem()
    for step in (gf.mean(), gf.clip_per_sample(1e9) >> gf.mean()):
        grads, state, report = gf.make_step(loss, step)(params, step.init(params), *batch)
        want = gf.per_sample_grads(loss)(params, *batch).mean()
        assert all(torch.allclose(grads[name], want[name], rtol=1e-12) for name in want)
        assert state == step.init(params)
        assert float(report["mean"]["samples"]) == len(batch[0])


def test_a_users_own_stage_alone():
    class Whole:
        takes, gives = gf.PerSampleGrads, gf.Updates

        def init(self, params):
            return 0

        def update(self, g, state, params=None, /):
            return gf.Updates({name: -value for name, value in g.mean().items()}), state + 1

    params, batch = problem()
    now, state, report = gf.make_step(loss, Whole())(params, 0, *batch)
    mean = gf.per_sample_grads(loss)(params, *batch).mean()
    assert all(torch.equal(now[name], params[name] - mean[name]) for name in params)
    assert state == 1
    assert report.stages == ()


def check_draws():
    """`step` and `index` name the draws, and reach no loss."""

    def noisy(p, x, y):
        return loss(p, F.dropout(x, 0.5), y)

    params, (x, y) = problem()
    run = gf.make_step(noisy, gf.sum())
    a, _, _ = run(params, (), x, y, step=3, index=torch.arange(10, 17))
    b, _, _ = run(params, (), x.flip(0), y.flip(0), step=3, index=torch.arange(10, 17).flip(0))
    c, _, _ = run(params, (), x, y, step=4, index=torch.arange(10, 17))
    assert all(torch.allclose(a[name], b[name], rtol=1e-12) for name in a)
    assert not torch.allclose(a["w"], c["w"])
    with pytest.raises(ValueError, match="an index and no step"):
        run(params, (), x, y, index=torch.arange(7))


def test_draws_are_named_by_step_and_index():
    check_draws()


def test_keywords_reach_the_loss():
    params, (x, y) = problem()
    run = gf.make_step(lambda p, *, x, target: loss(p, x, target), gf.sum())
    got, _, _ = run(params, (), x=x, target=y)
    want = gf.per_sample_grads(loss)(params, x, y).sum()
    assert same_bits(got, want)


def check_rows_are_free_when_the_rule_runs():
    alive = []

    class Watching(Sgd):
        def update(self, grads, state, params=None, /):
            alive.append(rows() is not None)
            return super().update(grads, state, params)

    class Noting:
        takes = gives = gf.PerSampleGrads

        def init(self, params):
            return ()

        def update(self, g, state, params=None, /):
            nonlocal rows
            rows = weakref.ref(g._source)
            return g, state

    rows = None
    params, batch = problem()
    step = Noting() >> gf.clip_per_sample(0.7) >> gf.mean() >> Watching()
    gf.make_step(loss, step)(params, step.init(params), *batch)
    assert alive == [False]


def test_rows_are_free_when_the_rule_runs():
    check_rows_are_free_when_the_rule_runs()


REFUSED = {
    "no stage": (3, "got an int; expected a stage"),
    "no reduction": (gf.clip_per_sample(1.0), "clip_per_sample, which gives PerSampleGrads; expected Grads or Updates"),
    "a rule alone": (Sgd(), "Sgd, which takes Grads; expected a chain that takes per-sample gradients"),
    "an end that does not say": (gf.sum() >> Doubled(), "sum >> Doubled, which does not say what it gives"),
    "nothing": (gf.chain(), "does not say what it gives"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_step(name):
    step, text = REFUSED[name]
    with pytest.raises(TypeError, match=text):
        gf.make_step(loss, step)
    with pytest.raises(TypeError, match="a function loss"):
        gf.make_step(3, gf.sum())


def check_updates_are_added():
    params = {"w": torch.ones(2, dtype=torch.bfloat16, requires_grad=True), "v": torch.ones(3)}
    new = gf.apply_updates(params, gf.Updates({"w": torch.tensor([0.5, -0.25])}))
    assert new["w"].dtype == torch.bfloat16
    assert not new["w"].requires_grad
    assert new["w"].tolist() == [1.5, 0.75]
    assert new["v"] is params["v"]
    assert params["w"].tolist() == [1.0, 1.0]


def test_updates_are_added():
    check_updates_are_added()


def test_no_updates_yet():
    params, _ = problem()
    assert same_bits(gf.apply_updates(params, None), params)


@pytest.mark.parametrize(
    ("updates", "match"),
    [({"u": torch.ones(2)}, "update of 'u'.*one of"), ({"w": torch.ones(3)}, r"update of 'w'.*shape \(2,\)")],
)
def test_updates_of_something_else(updates, match):
    with pytest.raises(ValueError, match=match):
        gf.apply_updates({"w": torch.ones(2)}, gf.Updates(updates))


class Passing:
    """A per-sample stage of the user's own, which may keep what it is given."""

    takes = gives = gf.PerSampleGrads

    def __init__(self):
        self.kept = []

    def init(self, params):
        return ()

    def update(self, g, state, params=None, /):
        self.kept.append(g)
        return g, state


def alive_at_each_sum(step, monkeypatch):
    """How many parameters' factors are alive when each is summed."""
    alive, counts = weakref.WeakSet(), []
    squares, summed = Outer.squares, Outer.weighted_sum

    def seen(self, scratch):
        alive.add(self)
        return squares(self, scratch)

    def counted(self, c, scratch):
        counts.append(len(alive))
        return summed(self, c, scratch)

    monkeypatch.setattr(Outer, "squares", seen)
    monkeypatch.setattr(Outer, "weighted_sum", counted)
    module = torch.nn.Sequential(*[torch.nn.Linear(4, 4, bias=False) for _ in range(3)])
    model = gf.stateless(module)
    f = gf.per_sample_grads(lambda p, x: model(p, x).square().sum(1), batched=True, engine="factored", verify=False)
    run, batch = gf.make_step(f, step), torch.randn(5, 4)
    first, _, _ = run(model.params, step.init(model.params), batch)
    again, _, _ = run(model.params, step.init(model.params), batch)
    assert same_bits(first, again)
    want, _ = step.update(f(model.params, batch), step.init(model.params))
    assert same_bits(first, want)
    return counts[:3]


@pytest.mark.parametrize("reduction", [gf.sum, gf.mean])
def test_each_layers_factors_are_free_before_the_next_is_summed(reduction, monkeypatch):
    assert alive_at_each_sum(gf.clip_per_sample(0.5) >> reduction(), monkeypatch) == [3, 2, 1]


def test_rows_that_a_users_stage_may_hold_are_not_given_up(monkeypatch):
    stage = Passing()
    assert alive_at_each_sum(gf.clip_per_sample(0.5) >> stage >> gf.mean(), monkeypatch) == [3, 3, 3]
    assert all(g.norms().shape == (5,) for g in stage.kept)


def test_a_class_made_of_a_stage_may_keep_rows(monkeypatch):
    class Keeping(type(gf.clip_per_sample(0.5))):
        def apply(self, g, state, params, how, /):
            kept.append(g)
            return super().apply(g, state, params, how)

    kept = []
    assert alive_at_each_sum(Keeping(0.5) >> gf.mean(), monkeypatch) == [3, 3, 3]
    assert all(torch.isfinite(g.norms()).all() for g in kept)


def test_inside_a_transform_a_step_has_its_derivative():
    params, batch = problem()
    step = gf.clip_per_sample(1e9) >> gf.mean()
    run, state = gf.make_step(loss, step), step.init(params)

    def through(grads_of):
        return torch.func.grad(lambda w: grads_of({**params, "w": w})["v"].square().sum())(params["w"])

    whole = through(lambda p: run(p, state, *batch)[0])
    assert float(whole.norm()) > 0
    assert torch.allclose(whole, through(lambda p: gf.per_sample_grads(loss)(p, *batch).mean()), rtol=1e-12)


def test_a_report_that_nobody_asks_for_is_empty():
    params, batch = problem()
    step = gf.clip_per_sample(0.7) >> gf.mean() >> Sgd(0.1)
    with_report = gf.make_step(loss, step)(params, step.init(params), *batch)
    without = gf.make_step(loss, step, report=False)(params, step.init(params), *batch)
    assert same_bits(with_report[0], without[0])
    assert without[2].stages == ()
    with pytest.raises(TypeError, match="report=1; expected True or False"):
        gf.make_step(loss, step, report=1)


LEAN = {
    "clip": lambda: gf.clip_per_sample(0.1) >> gf.mean() >> gf.adam(1e-3),
    "clip by groups": lambda: gf.clip_per_sample(0.1, groups="parameter") >> gf.sum() >> gf.sgd(0.1, momentum=0.9),
    "normalise and gather": lambda: gf.normalize_per_sample() >> gf.accumulate(gf.mean(), every=1) >> gf.lion(1e-3),
    "adaptive clip": lambda: gf.adaptive_clip_per_sample(0.1) >> gf.mean() >> gf.ema(0.9),
    "masked clip": lambda: gf.masked(gf.clip_per_sample(0.1), "w1") >> gf.mean(),
    "weights": lambda: gf.top_k_loss(8) >> gf.focal_weights() >> gf.normalize_weights() >> gf.mean(),
    "private": lambda: gf.clip_per_sample(0.1) >> gf.sum() >> gf.gaussian_mechanism(1.0, seed=0) >> gf.adamw(1e-3),
    "Gram": lambda: gf.from_gram(gf.weightings.mgda()) >> gf.sgd(0.1),
    "geometric median": lambda: gf.geometric_median() >> gf.from_torch_optim(torch.optim.Adam, lr=0.1),
    "noise scale": lambda: gf.noise_scaled_step(0.1),
}


def check_lean(name):
    """Rows of 2 x 128 x 128 entries, 32 of them: no tensor of a step is larger than a parameter."""
    torch.manual_seed(0)
    params = {"w1": torch.randn(128, 128) / 11, "w2": torch.randn(128, 128) / 11}

    def mlp(p, x, y):
        return F.cross_entropy(torch.relu(x @ p["w1"]) @ p["w2"], y)

    batch = torch.randn(32, 128), torch.randint(128, (32,))
    step = LEAN[name]()
    f = gf.per_sample_grads(mlp, engine="factored", verify=False)
    run, state = gf.make_step(f, step), step.init(params)
    run(params, state, *batch)  # what is learnt of a graph is learnt once
    with Largest() as largest:
        run(params, state, *batch)
    assert largest.entries <= 128 * 128 + 128
    with Largest() as whole:
        f(params, *batch).materialize()
    assert whole.entries >= 32 * 128 * 128


@pytest.mark.parametrize("name", LEAN)
def test_what_needs_norms_or_the_gram_matrix_forms_no_rows(name):
    check_lean(name)


DONATED = {
    "adam": lambda: gf.adam(1e-2),
    "adam, amsgrad": lambda: gf.adam(1e-2, amsgrad=True, weight_decay=0.1),
    "adamw": lambda: gf.adamw(1e-2),
    "sgd": lambda: gf.sgd(1e-2, momentum=0.9),
    "torch's": lambda: gf.from_torch_optim(torch.optim.RMSprop, lr=1e-2),
}


def check_landing(name):
    """Steps that land at once are updates added; donated ones are the same bits; others leave what they are given."""
    params, batch = problem()
    step = gf.clip_per_sample(0.7) >> gf.mean() >> DONATED[name]()
    pure, donated = gf.make_step(loss, step), gf.make_step(loss, step, donate=True)
    kept, state = [params], step.init(params)
    copies = {k: v.clone() for k, v in params.items()}
    own, own_state = {k: v.clone() for k, v in params.items()}, step.init(params)
    hand, hand_state = params, step.init(params)
    for _ in range(4):
        now, state, _ = pure(kept[-1], state, *batch)
        own, own_state, _ = donated(own, own_state, *batch)
        g = gf.per_sample_grads(loss)(hand, *batch)
        updates, hand_state = step.update(g, hand_state, hand)
        hand = gf.apply_updates(hand, updates)
        kept.append(now)
        assert same_bits(now, own)
        assert all(torch.allclose(now[k], hand[k], rtol=1e-13, atol=1e-13) for k in now)
    assert same_bits(kept[0], copies)
    again, _, _ = pure(params, step.init(params), *batch)
    assert same_bits(again, kept[1])


REUSED = {
    "adam": (lambda: gf.adam(1e-2), True),
    "adam, decayed": (lambda: gf.adam(1e-2, weight_decay=0.1), True),
    "adamw": (lambda: gf.adamw(1e-2), False),  # the decay reads the parameters once more
    "adamw without decay": (lambda: gf.adamw(1e-2, weight_decay=0.0), True),
}


@pytest.mark.parametrize("name", REUSED)
def test_donated_parameters_become_the_next_ones(name):
    """No tensor is made for them, unless the rule reads the old ones once more."""
    make, reused = REUSED[name]
    params, batch = problem()
    step = gf.mean() >> make()
    for donate in (False, True):
        own = {k: v.clone() for k, v in params.items()}
        run, state = gf.make_step(loss, step, donate=donate), step.init(own)
        now, after, _ = run(own, state, *batch)
        assert [now[k].data_ptr() == own[k].data_ptr() for k in own] == [donate and reused] * len(own)
        moments = [gf.flatten_state(one) for one in (state, after)]
        assert [moments[0][k].data_ptr() == v.data_ptr() for k, v in moments[1].items() if v.dim()] == [donate] * 6


@pytest.mark.parametrize("name", DONATED)
def test_a_step_is_its_updates_added(name):
    check_landing(name)
