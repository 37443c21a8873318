"""Rules that read the rows: against plain loops over samples, and their mistakes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from oracle import same_bits, storages, truth
from problem import B, loss, problem, rows
from rules import F64, agree
from test_update_rules import halving, saved
from torch.utils._python_dispatch import TorchDispatchMode

import gradfunc as gf
from gradfunc._transform._rules import _adam_per_sample, _noise_scaled_step

RULES = {
    "squares": lambda: gf.adam_per_sample(halving, betas=(0.8, 0.95), eps=1e-6),
    "variance": lambda: gf.adam_per_sample(halving, eps=1e-3, second_moment="variance"),
    "noise": lambda: gf.noise_scaled_step(halving, beta=0.7),
}


def units(want):
    """Rows over weights, and shares of the weights."""
    weights = want.weights.double()
    per_unit = {k: v / weights.reshape(-1, *[1] * (v.dim() - 1)) for k, v in want.rows.items()}
    return per_unit, weights / weights.sum()


def loop(name, params, batches):
    """The rule by hand: one autograd call a sample, Adam's two lines, or the two estimates."""
    m = {k: torch.zeros_like(v) for k, v in params.items()}
    v = {k: torch.zeros_like(x) for k, x in params.items()}
    trace = squared = 0.0
    out = []
    for step, batch in enumerate(batches):
        u, p = units(truth(loss, params, B, batch))
        mean = {k: torch.tensordot(p, x, 1) for k, x in u.items()}
        if name == "noise":
            whole = torch.cat([x.flatten(1) for x in u.values()], 1)
            center = p @ whole
            q = float(p.square().sum())
            now = float(p @ (whole - center).square().sum(1)) / (1 - q)
            trace = 0.7 * trace + 0.3 * now
            squared = 0.7 * squared + 0.3 * (float(center @ center) - q * now)
            good = max(squared, 0.0)
            params = {k: x - halving(step) * good / (good + q * trace) * mean[k] for k, x in params.items()}
        else:
            b1, b2, eps = (0.8, 0.95, 1e-6) if name == "squares" else (0.9, 0.999, 1e-3)
            second = {k: torch.tensordot(p, x.square(), 1) for k, x in u.items()}
            if name == "variance":
                second = {k: torch.tensordot(p, (x - mean[k]).square(), 1) for k, x in u.items()}
            m = {k: b1 * x + (1 - b1) * mean[k] for k, x in m.items()}
            v = {k: b2 * x + (1 - b2) * second[k] for k, x in v.items()}
            a, b = 1 - b1 ** (step + 1), 1 - b2 ** (step + 1)
            params = {k: x - halving(step) * (m[k] / a) / ((v[k] / b).sqrt() + eps) for k, x in params.items()}
        out.append(params)
    return out


def batches(count=4):
    return [problem(seed=seed)[1] for seed in range(count)]


def ours(rule, params, given, *, engine="factored", chunk_size=None, state=None, donate=False):
    f = gf.per_sample_grads(loss, engine=engine, chunk_size=chunk_size)
    state, out = rule.init(params) if state is None else state, []
    for batch in given:
        updates, state = rule.update(f(params, *batch), state, params, donate=donate)
        params = gf.apply_updates(params, updates)
        out.append(params)
    return out, state


def check_by_hand(name, engine="factored", chunk_size=None):
    params, _ = problem()
    got, _ = ours(RULES[name](), params, batches(), engine=engine, chunk_size=chunk_size)
    agree(got, loop(name, params, batches()), 1e-10)


@pytest.mark.parametrize(("engine", "chunk_size"), [("factored", None), ("vmap", 3)])
@pytest.mark.parametrize("name", RULES)
def test_as_by_hand(name, engine, chunk_size):
    check_by_hand(name, engine, chunk_size)


@pytest.mark.parametrize("name", RULES)
def test_pure_donated_and_resumed(name):
    rule, (params, _) = RULES[name](), problem()
    whole, last = ours(rule, params, batches())
    first, state = ours(rule, params, batches()[:2])
    g, _ = rows()
    before = copy.deepcopy(state)
    updates, new = rule.update(g, state, params)
    assert same_bits(gf.flatten_state(before), gf.flatten_state(state))
    assert same_bits(updates, rule.update(g, state, params)[0])
    assert not storages(updates) & (storages(new) | storages(params) | storages(state))
    assert not storages(new) & storages(state)
    assert same_bits(ours(rule, params, batches(), donate=True)[0], whole)
    for back in saved(state, rule.init(params)):
        rest, end = ours(rule, first[-1], batches()[2:], state=back)
        assert same_bits(first + rest, whole)
        assert same_bits(gf.flatten_state(end), gf.flatten_state(last))


def test_one_sample_is_plain_adam():
    params, (x, y) = problem()
    g = gf.per_sample_grads(loss)(params, x[:1], y[:1])
    rule, plain = gf.adam_per_sample(0.1), gf.mean() >> gf.adam(0.1)
    got = rule.update(g, rule.init(params), params)[0]
    want = plain.update(g, plain.init(params), params)[0]
    for k, value in want.items():
        torch.testing.assert_close(got[k], value, rtol=1e-12, atol=1e-15)


def test_a_sample_of_weight_0_is_as_none():
    g, _ = rows()
    mask = torch.ones(B, dtype=F64)
    mask[4] = 0
    kept = torch.arange(B) != 4
    for name in RULES:
        rule, (params, _) = RULES[name](), problem()
        got = rule.update(g.weighted(mask), rule.init(params), params)[0]
        want = rule.update(g.select(kept), rule.init(params), params)[0]
        agree([got], [want], 1e-12)


def check_never_whole():
    """B x P of one wide layer is 48 MB; the squares are formed within a small part of it."""
    params = {"w": torch.zeros(300, 200)}
    x, y = torch.randn(200, 300), torch.randn(200, 200)
    f = gf.per_sample_grads(lambda p, x, y: (x @ p["w"] - y).square().sum(), verify=False)
    rule = gf.adam_per_sample()
    g, state = f(params, x, y), rule.init(params)
    largest = Largest()
    with largest:
        rule.update(g, state, params)
    assert largest.numbers < 200 * 300 * 200 / 8


class Largest(TorchDispatchMode):
    """The most numbers that one operation gave."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, torch.Tensor):
                self.numbers = max(self.numbers, value.untyped_storage().nbytes() // value.element_size())
        return out


def test_squares_are_never_held_whole():
    check_never_whole()


def flat_rows(values):
    params = {"w": torch.zeros(1, dtype=F64)}
    f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum(), verify=False)
    return f(params, torch.tensor(values, dtype=F64)[:, None]), params


EDGES = {  # of noise_scaled_step(1.0, beta=0): rows, and the update
    "all alike": ([2.0, 2.0, 2.0], -2.0),
    "an estimate below 0": ([1.0, -1.0, 0.3], 0.0),
    "all 0": ([0.0, 0.0], 0.0),
    "noise": ([1.0, 3.0], -1.5),
}


def check_edge(name):
    values, want = EDGES[name]
    g, params = flat_rows(values)
    rule = gf.noise_scaled_step(1.0, beta=0.0)
    updates, _, report = rule.update_with_report(g, rule.init(params), params)
    assert abs(float(updates["w"]) - want) < 1e-12
    assert 0 <= float(report["noise_scaled_step"]["step"]) <= 1


@pytest.mark.parametrize("name", EDGES)
def test_edges_of_the_noise_scaled_step(name):
    check_edge(name)


def test_norms_that_are_not_finite():
    g, params = flat_rows([1.0, math.inf, 3.0])
    for policy, want in (("skip", -1.5), ("zero", None)):
        rule = gf.noise_scaled_step(1.0, nonfinite=policy)
        got = float(rule.update(g, rule.init(params), params)[0]["w"])
        zeroed, _ = flat_rows([1.0, 0.0, 3.0])
        want = float(rule.update(zeroed, rule.init(params), params)[0]["w"]) if want is None else want
        assert abs(got - want) < 1e-12
    rule = gf.noise_scaled_step(1.0)
    with pytest.raises(ValueError, match="norm inf for sample 1 in 'w'"):
        rule.update(g, rule.init(params), params)
    rule = gf.noise_scaled_step(1.0, nonfinite="keep")
    assert not rule.update(g, rule.init(params), params)[0]["w"].isfinite()


def test_the_noise_scaled_step_scales_with_the_gradient():
    g, _ = rows()
    rule, (params, _) = gf.noise_scaled_step(0.1), problem()
    once = rule.update(g, rule.init(params), params)[0]
    twice = rule.update(g.scaled(torch.full((B,), 2.0)), rule.init(params), params)[0]
    agree([twice], [{k: 2 * v for k, v in once.items()}])


def test_what_is_refused():
    g, params = flat_rows([1.0])
    rule = gf.noise_scaled_step(1.0)
    with pytest.raises(ValueError, match="1 samples of weight above 0"):
        rule.update(g, rule.init(params), params)
    for call, kind, text in (
        (lambda: gf.noise_scaled_step(-1.0), ValueError, "lr=-1.0"),
        (lambda: gf.noise_scaled_step(1.0, beta=1.0), ValueError, "beta=1.0"),
        (lambda: gf.noise_scaled_step(1.0, nonfinite="drop"), ValueError, "nonfinite='drop'"),
        (lambda: gf.adam_per_sample(second_moment="fourth"), ValueError, "'squares', 'variance'"),
        (lambda: gf.mean() >> gf.adam_per_sample(), TypeError, "mean >> adam_per_sample"),
        (lambda: rule.update({"w": torch.ones(1)}, {}), TypeError, "expected per-sample gradients"),
    ):
        with pytest.raises(kind, match=text):
            call()
    none, rule = g.weighted(torch.zeros(1)), gf.adam_per_sample()
    with pytest.raises(ValueError, match="total weight"):
        rule.update(none, rule.init(params))


def test_how_they_look():
    assert repr(gf.clip_per_sample(1.0) >> gf.adam_per_sample(0.1)) == "clip_per_sample(1.0) >> adam_per_sample(0.1)"
    assert repr(gf.noise_scaled_step(0.1, beta=0.5)) == "noise_scaled_step(0.1, beta=0.5)"


# --- mistakes ------------------------------------------------------------------------------------------


def square_of_the_mean(old, new, beta):
    return averages(old, [x * x for x in new] if beta == 0.95 else new, beta)


def uncorrected(first, second, betas, eps, count, factor):
    return direction(first, second, betas, eps, 10**6, factor)


def without_noise(trace, squared, q):
    return torch.ones_like(trace)


def per_sample_noise(trace, squared, q):
    return share(trace, squared, torch.ones_like(q))


def unclamped(trace, squared, q):
    return squared / (squared + q * trace)


averages, direction, share = _adam_per_sample.averages, _adam_per_sample.direction, _noise_scaled_step._share
MUTANTS = {
    "squares of squares": (_adam_per_sample, "averages", square_of_the_mean, lambda: check_by_hand("squares")),
    "bias correction lost": (_adam_per_sample, "direction", uncorrected, lambda: check_by_hand("variance")),
    "numerators in the place of rows per weight": (
        gf.PerSampleGrads,
        "_per_unit",
        lambda g: g,
        lambda: check_by_hand("squares"),
    ),
    "noise left out": (_noise_scaled_step, "_share", without_noise, lambda: check_by_hand("noise")),
    "the batch left out": (_noise_scaled_step, "_share", per_sample_noise, lambda: check_edge("noise")),
    "an estimate below 0 believed": (
        _noise_scaled_step,
        "_share",
        unclamped,
        lambda: check_edge("an estimate below 0"),
    ),
    "squares formed whole": (
        gf.PerSampleGrads,
        "_mapped",
        lambda g, fn: gf.per_sample_grads(lambda p, r: sum((p[k] * r[k]).sum() for k in r), verify=False)(
            {k: v[0] for k, v in g.materialize().items()}, {k: fn(v) for k, v in g.materialize().items()}
        ),
        check_never_whole,
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_mistake_is_noticed(name, monkeypatch):
    where, attribute, mistake, law = MUTANTS[name]
    law()
    monkeypatch.setattr(where, attribute, mistake)
    with pytest.raises(AssertionError):
        law()


def test_a_variance_of_half_types_is_none_of_a_rounded_mean():
    x = torch.tensor([[1.0], [1.0078125]], dtype=torch.bfloat16)  # neighbours: the mean is none of bfloat16
    params = {"w": torch.zeros(1, dtype=torch.bfloat16)}
    g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())(params, x)
    rule = gf.adam_per_sample(1.0, betas=(0.0, 0.0), second_moment="variance")
    updates, state = rule.update(g, rule.init(params), params)
    assert float(state["exp_avg_sq"]["w"]) == pytest.approx(float(x.float().var(correction=0)), rel=0.01)
    assert updates["w"].dtype == torch.bfloat16


def test_small_squares_of_half_types_are_not_lost():
    params = {"w": torch.zeros(1, dtype=torch.float16)}
    g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())(params, torch.tensor([[1e-4], [1e-4]]).half())
    rule = gf.adam_per_sample(1.0)
    updates, _ = rule.update(g, rule.init(params), params)
    assert float(updates["w"]) == pytest.approx(-1, rel=1e-3)
