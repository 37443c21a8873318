"""What tries to break chains, states and results from outside: each was once wrong."""

from __future__ import annotations

import pytest
import torch
from problem import Doubled, loss, problem, rows

import gradfunc as gf

CLIP, NOISE = gf.clip_per_sample(1.0), gf.gaussian_mechanism(1.0, seed=0)


class ema_2:
    takes = gives = gf.Grads

    def init(self, params):
        return {"calls": 0}

    def update(self, grads, state, params=None, /):
        return grads, {"calls": state["calls"] + 1}


class Mixing:
    """Rows to rows, each now depending on all: whatever is known to hold before does not behind it."""

    def __init__(self, promise):
        if promise:
            self.guarantee = lambda before: before.__class__()

    def init(self, params):
        return ()

    def update(self, g, state, params=None, /):
        return g, state


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_name_that_ends_in_a_number_has_a_state_of_its_own(order):
    stages = [gf.ema(0.9), gf.ema(0.8)]
    stages.insert(order, ema_2())
    step, params = gf.chain(*stages), {"w": torch.ones(2)}
    assert len(set(step.keys)) == 3
    state = step.init(params)
    for _ in range(2):
        _, state = step.update(gf.Grads({"w": torch.ones(2)}), state, params)
    key = step.keys[order]
    assert state[key] == {"calls": 2}
    assert gf.chain(gf.chain(*stages[:1]), gf.chain(*stages[1:])).init(params).keys() == state.keys()


PRIVATE = CLIP >> gf.sum() >> NOISE
UNSAFE = {
    "a stage that says nothing, then a whole chain": lambda: Doubled() >> PRIVATE,
    "one by one": lambda: Doubled() >> CLIP >> gf.sum() >> NOISE,
    "a function, then a whole chain": lambda: gf.stateless_transform(lambda g: g) >> PRIVATE,
    "a stage that says only what holds": lambda: Mixing(True) >> PRIVATE,
    "a part that is whole itself": lambda: gf.top_k_loss(3) >> gf.partition({"a": PRIVATE}, {".*": "a"}),
    "a part of a mean": lambda: CLIP >> gf.mean() >> gf.partition({"a": NOISE >> gf.sgd()}, {".*": "a"}),
    "masked, of a mean": lambda: CLIP >> gf.mean() >> gf.masked(gf.scale(2.0) >> NOISE, "w"),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_noise_is_refused_when_built_where_nothing_bounds_a_sample(name):
    with pytest.raises(ValueError, match=r" >> gaussian_mechanism: got .*nothing bounds what one sample can move"):
        UNSAFE[name]()


def test_chains_within_parts_know_what_comes_before():
    params, _ = problem()
    g = rows()[0]
    plain = CLIP >> gf.sum() >> gf.scale(0.5) >> NOISE
    parts = CLIP >> gf.sum() >> gf.partition({"a": gf.scale(0.5) >> NOISE}, {".*": "a"})
    masked = CLIP >> gf.sum() >> gf.masked(gf.scale(0.5) >> NOISE, ".*")
    want = plain.update(g, plain.init(params), params)[0]
    for step in (parts, masked):
        got = step.update(g, step.init(params), params)[0]
        assert all(torch.equal(got[k], want[k]) for k in want)


@pytest.mark.parametrize("same", [gf.identity(), gf.scale(1.0)], ids=["identity", "scale"])
@pytest.mark.parametrize("other", [gf.adam(), gf.sum()], ids=["rule", "reduction"])
def test_gradients_are_no_updates_of_a_part(same, other):
    with pytest.raises(TypeError, match=r"gf.partition.* got 'b', which gives what it takes, beside stages that give"):
        gf.partition({"a": other, "b": same}, {"w": "a", ".*": "b"})


def _zeroed(updates):
    updates["w"].zero_()


def _replaced(updates):
    updates["w"] = torch.zeros_like(updates["w"])


def _removed(updates):
    del updates["w"]


@pytest.mark.parametrize("change", [_zeroed, _replaced, _removed])
@pytest.mark.parametrize("part", [False, True], ids=["whole", "partition"])
def test_what_is_done_to_the_updates_of_a_torch_rule_counts(change, part):
    params, _ = problem()
    rule = gf.from_torch_optim(torch.optim.Adam, lr=0.1)
    if part:
        rule = gf.partition({"a": rule, "b": gf.from_torch_optim(torch.optim.SGD)}, {"w": "a", ".*": "b"})
    updates, _ = rule.update(gf.Grads({k: torch.ones_like(v) for k, v in params.items()}), rule.init(params), params)
    want = gf.apply_updates(params, updates)
    change(updates)
    got = gf.apply_updates(params, updates)
    assert torch.equal(got["w"], params["w"])
    assert torch.equal(got["v"], want["v"])
    assert not torch.equal(want["w"], params["w"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [gf.sgd, gf.scale, gf.descend], ids=["sgd", "scale", "descend"])
def test_half_types_round_once_donated_or_not(dtype, make):
    grads = {"w": torch.linspace(-1, 1, 50).to(dtype)}
    step = gf.chain(make(0.1))
    want = grads["w"] * (0.1 if make is gf.scale else -0.1)
    for donate in (False, True):
        given = gf.Grads({"w": grads["w"].clone()})
        got, _ = step.update(given, step.init(grads), grads, donate=donate)
        assert torch.equal(got["w"], want)


@pytest.mark.parametrize(
    "make", [lambda: gf.adam(0.1), lambda: gf.from_torch_optim(torch.optim.Adam)], ids=["adam", "torch"]
)
def test_the_state_of_parameters_in_another_layout_is_stored(make):
    load = pytest.importorskip("safetensors.torch")
    params = {
        "t": torch.randn(4, 3).t(),
        "conv": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }
    rule, grads = make(), gf.Grads({k: v.clone() for k, v in params.items()})
    _, state = rule.update(grads, rule.init(params), params)
    flat = gf.flatten_state(state)
    back = gf.unflatten_state(load.load(load.save(flat)), like=rule.init(params))
    for got, want in zip(gf.flatten_state(back).values(), flat.values(), strict=True):
        assert torch.equal(got, want)
    ours, theirs = rule.update(grads, state, params), rule.update(grads, back, params)
    assert all(torch.equal(ours[0][k], theirs[0][k]) for k in params)


def test_no_two_leaves_share_a_path():
    with pytest.raises(ValueError, match=r"flatten_state.* got two leaves at 'a/b'"):
        gf.flatten_state({"a/b": torch.ones(1), "a": {"b": torch.zeros(1)}})


@pytest.mark.parametrize(
    "reduction", [gf.geometric_median(), gf.from_gram(gf.weightings.mean())], ids=["median", "gram"]
)
@pytest.mark.parametrize("clip", [CLIP, gf.normalize_per_sample()], ids=["clip", "normalize"])
def test_each_sample_is_reported_once_however_often_it_is_computed(reduction, clip):
    params, batch = problem()
    step, reports = clip >> reduction, []
    for chunk_size in (None, 2, 3):
        g = gf.per_sample_grads(loss, engine="vmap", chunk_size=chunk_size, verify=False)(params, *batch)
        reports.append(step.update_with_report(g, step.init(params), params)[2][clip.name])
    for name, fact in reports[0].items():
        for report in reports[1:]:
            assert float(report[name]) == pytest.approx(float(fact), rel=1e-12), name


def test_rows_that_a_batch_may_couple_bound_nothing():
    def losses(p, x, y):
        out = torch.tanh(x @ p["w"]) @ p["v"]
        return (out - y - out.mean()).square().sum(-1)

    f = gf.per_sample_grads(losses, batched=True)
    with pytest.raises(ValueError, match=r"sum >> gaussian_mechanism: got .*nothing bounds what one sample can move"):
        gf.make_step(f, PRIVATE)
    gf.make_step(f, CLIP >> gf.sum() >> gf.gaussian_mechanism(1.0, seed=0, sensitivity=2.0))
    gf.make_step(losses, PRIVATE)


@pytest.mark.parametrize("rule", [gf.sgd(0.1), gf.adam(0.1), gf.lion(0.1)], ids=lambda rule: rule.name)
def test_a_rule_under_vmap(rule):
    def one(grads):
        return dict(rule.update(gf.Grads(grads), rule.init(grads), grads)[0])

    many = {"w": torch.randn(3, 4)}
    got = torch.func.vmap(one)(many)["w"]
    assert torch.allclose(got, torch.stack([one({"w": row})["w"] for row in many["w"]]))


def test_the_derivative_of_a_torch_rule_is_not_silently_zero():
    rule, params = gf.from_torch_optim(torch.optim.SGD, lr=0.1), {"w": torch.ones(2)}

    def size(grads):
        return rule.update(gf.Grads(grads), rule.init(params), params)[0]["w"].square().sum()

    try:
        slope = torch.func.grad(size)({"w": torch.ones(2)})["w"]
    except (RuntimeError, ValueError):
        return
    assert torch.allclose(slope, torch.full((2,), 0.02))
