"""Stages on the batch's gradient: their formulas, edge cases row by row, purity, what they ask of a device."""

from __future__ import annotations

import math

import pytest
import torch
from oracle import close, same_bits, storages
from problem import F64
from torch import nn

import gradfunc as gf

inf, nan = math.inf, math.nan
SHAPES = {"w": (3, 4), "k": (2, 3, 2, 2), "b": (4,), "s": ()}


def tensors(seed=0, scale=1.0, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    return {k: (torch.randn(s, generator=generator, dtype=F64) * scale).to(dtype) for k, s in SHAPES.items()}


def flat(values):
    return torch.cat([value.double().flatten() for value in values.values()])


def once(stage, grads, params=None):
    """One update from the first state."""
    return stage.update(grads, stage.init(grads if params is None else params), params)


# Every stage, and whether one needs parameters.
STAGES = {
    "value": gf.clip_by_value(0.5),
    "global": gf.clip_by_global_norm(1.0),
    "global, skip": gf.clip_by_global_norm(1.0, eps=1e-6, nonfinite="skip"),
    "parameter": gf.clip_by_parameter_norm(1.0),
    "agc": gf.adaptive_gradient_clip(0.1),
    "clip by ema": gf.clip_by_ema(1.5, warmup=1),
    "z score": gf.clip_by_ema(z_score=1.0, warmup=2),
    "skip": gf.skip_nonfinite(),
    "zero": gf.zero_nonfinite(),
    "noise": gf.add_noise(0.3, seed=1),
    "gaussian": gf.gaussian_mechanism(0.3, seed=1, sensitivity=2.0),
    "ema": gf.ema(0.9),
    "ema, debiased": gf.ema(0.9, debias=True),
    "weights": gf.add_decayed_weights(0.1),
    "centralize": gf.centralize(),
    "sign": gf.sign(),
}
ASKS = {"global", "parameter", "agc", "clip by ema", "z score"}  # nonfinite="raise"


def check_pure(name, stages=STAGES):
    """Inputs and states stay, no tensor is shared, and donated tensors change nothing but where results lie."""
    stage, params = stages[name], tensors(9)
    state = kept = stage.init(params)
    for step in range(4):
        grads = tensors(step, 3.0)
        before, was = {k: v.clone() for k, v in grads.items()}, gf.flatten_state(state)
        was = {k: v.clone() for k, v in was.items()}
        out, after = stage.update(grads, state, params)
        assert same_bits(grads, before)
        assert same_bits(gf.flatten_state(state), was)
        assert storages(out).isdisjoint(storages(grads) | storages(state) | storages(params) | storages(after))
        assert storages(after).isdisjoint(storages(grads) | storages(params))
        again, other = stage.update(grads, state, params)
        assert same_bits(out, again)
        assert same_bits(gf.flatten_state(after), gf.flatten_state(other))
        assert {k: (v.dtype, v.shape) for k, v in out.items()} == {k: (v.dtype, v.shape) for k, v in grads.items()}
        donated, kept = stage.update({k: v.clone() for k, v in grads.items()}, kept, params, donate=True)
        assert same_bits(out, donated)
        state = after
    assert same_bits(gf.flatten_state(state), gf.flatten_state(kept))
    assert same_bits(params, tensors(9))


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_pure(name):
    check_pure(name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", STAGES)
def test_smaller_types(name, dtype):
    """The output has the gradient's type, and is what float64 gives, up to that type's rounding."""
    small = {k: v.to(dtype) for k, v in tensors(1).items()}
    params = {k: v.to(dtype) for k, v in tensors(2).items()}
    wide = [{k: v.double() for k, v in values.items()} for values in (small, params)]
    if name in ("noise", "gaussian"):  # drawn in float32
        wide = [{k: v.float() for k, v in values.items()} for values in wide]
    out, _ = once(STAGES[name], small, params)
    want, _ = once(STAGES[name], *wide)
    for k, value in out.items():
        assert value.dtype == dtype
        close(value, want[k], want[k].abs().double() + 0.1, k, 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", sorted(set(STAGES) - ASKS))
def test_the_device_is_not_asked(name, monkeypatch):
    """Nothing becomes a number of Python in an update."""
    stage, params = STAGES[name], tensors(9)
    state = stage.init(params)

    def refused(*_):
        raise AssertionError("a number was read")

    for read in ("item", "__bool__", "__float__", "__int__", "tolist"):
        monkeypatch.setattr(torch.Tensor, read, refused)
    for step in range(3):
        _, state = stage.update(tensors(step), state, params)


@pytest.mark.parametrize("name", STAGES)
def test_some_of_the_parameters(name):
    """Gradients of some: state of the others is carried along."""
    stage, params = STAGES[name], tensors(9)
    _, state = stage.update(tensors(1), stage.init(params), params)
    out, after = stage.update({"b": tensors(2)["b"]}, state, params)
    assert list(out) == ["b"]
    assert list(gf.flatten_state(after)) == list(gf.flatten_state(state))
    if name.startswith("ema"):
        assert same_bits(after["ema"]["w"], state["ema"]["w"])
    empty, _ = stage.update({}, after, params)
    assert empty == {}


@pytest.mark.parametrize("name", STAGES)
def test_a_state_survives_storage(name):
    stage, params = STAGES[name], tensors(9)
    _, state = stage.update(tensors(1), stage.init(params), params)
    again = gf.unflatten_state(gf.flatten_state(state), like=stage.init(params))
    left, right = (stage.update(tensors(2), one, params)[0] for one in (state, again))
    assert same_bits(left, right)


def test_in_a_chain_with_a_report():
    params = tensors(9)
    step = gf.chain(*(stage for name, stage in STAGES.items() if name != "gaussian"))
    _, _, report = step.update_with_report(tensors(0, 5.0), step.init(params), params)
    assert set(report["clip_by_global_norm"]) == {"norm", "factor", "clipped", "nonfinite"}
    assert report.ok
    assert "skip_nonfinite" in str(report)


# --- clips


def check_global(dtype=F64):
    for scale in (1e-3, 1.0, 1e3):
        for limit in (0.01, 1.0, 50.0, inf):
            grads = tensors(3, scale, dtype)
            whole = flat(grads)
            want = whole * min(1.0, limit / float(whole.norm()))
            out, _ = once(gf.clip_by_global_norm(limit), grads)
            close(flat(out), want, float(want.norm()), "clipped", 4 * torch.finfo(dtype).eps)
            if float(whole.norm()) <= limit:
                assert same_bits(out, grads)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_the_global_norm(dtype):
    check_global(dtype)


def check_torchs():
    """With torch's eps the norm clips are torch's, and the clamp is without."""
    for limit in (0.05, 2.0, 1e3):
        grads = tensors(4, 2.0)
        leaves = {k: nn.Parameter(torch.zeros_like(v)) for k, v in grads.items()}

        def theirs(clip, grads=grads, leaves=leaves):
            for k, leaf in leaves.items():
                leaf.grad = grads[k].clone()
            clip(list(leaves.values()))
            return {k: leaf.grad for k, leaf in leaves.items()}

        want = theirs(lambda p, limit=limit: nn.utils.clip_grad_norm_(p, limit))
        out, _ = once(gf.clip_by_global_norm(limit, eps=1e-6), grads)
        close(flat(out), flat(want), float(flat(want).norm()), "clip_grad_norm_", 1e-14)
        plain, _ = once(gf.clip_by_global_norm(limit), grads)
        if limit < 10:
            assert float((flat(plain) - flat(want)).norm()) > 1e-9 * limit  # torch's factor is another
        want = theirs(lambda p, limit=limit: nn.utils.clip_grad_value_(p, limit))
        assert same_bits(once(gf.clip_by_value(limit), grads)[0], want)


def test_agreement_with_torch():
    check_torchs()


def check_seed_facts():
    """[2.5, 0.8]: by value 20.92 degrees off, by norm in its direction."""
    g = {"w": torch.tensor([2.5, 0.8], dtype=F64)}
    by_value, by_norm = once(gf.clip_by_value(1.0), g)[0]["w"], once(gf.clip_by_global_norm(1.0), g)[0]["w"]
    assert by_value.tolist() == [1.0, 0.8]
    angle = math.degrees(math.acos(float(torch.cosine_similarity(by_value, g["w"], dim=0))))
    assert angle == pytest.approx(20.92, abs=5e-3)
    assert by_norm.tolist() == pytest.approx([0.9524, 0.3048], abs=5e-5)
    assert float(torch.cosine_similarity(by_norm, g["w"], dim=0)) == pytest.approx(1.0, abs=1e-15)


def test_by_value_turns_and_by_norm_does_not():
    check_seed_facts()


def check_parameter_norms():
    grads = tensors(5, 3.0)
    out, _ = once(gf.clip_by_parameter_norm(2.0), grads)
    for k, value in grads.items():
        close(out[k], value * min(1.0, 2.0 / float(value.norm())), 2.0, k)


def test_parameter_norms():
    check_parameter_norms()


def units(value):
    return value.reshape(len(value), -1) if value.dim() > 1 else value.reshape(1, -1)


def check_agc():
    """Brock et al., unit by unit, in a plain loop."""
    grads, params = tensors(6), tensors(7, 0.5)
    params["w"][1] = 0  # counts as eps
    grads["w"][2] *= 1e-4  # is not clipped
    out, _ = once(gf.adaptive_gradient_clip(0.05, 1e-2), grads, params)
    for k, value in grads.items():
        want = value.clone()
        for row, weight in zip(units(want), units(params[k]), strict=True):
            most = 0.05 * max(float(weight.norm()), 1e-2)
            if float(row.norm()) > most:
                row *= most / float(row.norm())
        close(out[k], want, float(want.norm()), k)
    assert same_bits(out["w"][2], grads["w"][2])


def test_adaptive_gradient_clip():
    check_agc()


def by_hand(norms, factor, decay, z, warmup):
    """Limits and averages by their definition."""
    mean = variance = 0.0
    out = []
    for t, n in enumerate(norms):
        limit = factor * mean if z is None else mean + z * math.sqrt(variance)
        known = t >= warmup and (mean > 0 if z is None else variance > 0)
        left = min(n, limit) if known else n
        share = max(1 - decay, 1 / (t + 1))
        step = left - mean
        mean += share * step
        variance = (1 - share) * (variance + share * step**2)
        out.append(left)
    return out, mean, variance


def check_ema_clip():
    norms = [1.0, 2.0, 1.5, 0.5, 60.0, 1.0, 3.0, 0.0, 2.0, 40.0]
    for factor, z in ((2.0, None), (1.0, None), (None, 1.5), (None, 0.0)):
        for decay in (0.0, 0.5, 0.9, 0.99):
            for warmup in (1, 3):
                stage = gf.clip_by_ema(factor, decay=decay, z_score=z, warmup=warmup)
                state, got = stage.init({"w": torch.zeros(2, dtype=F64)}), []
                for n in norms:
                    out, state = stage.update({"w": torch.tensor([0.6, 0.8], dtype=F64) * n}, state)
                    got.append(float(out["w"].norm()))
                want, mean, variance = by_hand(norms, factor, decay, z, warmup)
                assert got == pytest.approx(want, rel=1e-12)
                assert float(state["mean"]) == pytest.approx(mean, rel=1e-12)
                assert float(state["variance"]) == pytest.approx(variance, rel=1e-10, abs=1e-12)
                assert int(state["seen"]) == len(norms)


def test_clip_by_ema():
    check_ema_clip()


def test_early_averages_are_plain_ones():
    stage, norms = gf.clip_by_ema(decay=0.99, warmup=20), torch.tensor([1.0, 2.0, 60.0, 0.0, 3.0], dtype=F64)
    state = stage.init({"w": torch.zeros(1, dtype=F64)})
    for n in norms:
        _, state = stage.update({"w": n[None]}, state)
    assert float(state["mean"]) == pytest.approx(float(norms.mean()), rel=1e-12)
    assert float(state["variance"]) == pytest.approx(float(norms.var(correction=0)), rel=1e-12)


# Clips with a norm: gradient (two parameters), the stage, what becomes of it.
EDGES = {
    "value, NaN": (gf.clip_by_value(1.0), ([nan, 2.0], [0.5]), ([nan, 1.0], [0.5])),
    "value, inf": (gf.clip_by_value(1.0), ([inf, -inf], [0.5]), ([1.0, -1.0], [0.5])),
    "value, no limit": (gf.clip_by_value(inf), ([inf, -2.0], [0.5]), ([inf, -2.0], [0.5])),
    "global, 0": (gf.clip_by_global_norm(1.0), ([0.0, 0.0], [0.0]), ([0.0, 0.0], [0.0])),
    "global, 0 with eps": (gf.clip_by_global_norm(1e-9, eps=1e-6), ([0.0, 0.0], [0.0]), ([0.0, 0.0], [0.0])),
    "global, at C": (gf.clip_by_global_norm(5.0), ([3.0, 0.0], [4.0]), ([3.0, 0.0], [4.0])),
    "global, above C": (gf.clip_by_global_norm(1.0), ([3.0, 0.0], [4.0]), ([0.6, 0.0], [0.8])),
    "global, above C with eps": (gf.clip_by_global_norm(6.0, eps=5.0), ([3.0, 0.0], [4.0]), ([1.8, 0.0], [2.4])),
    "global, no limit": (gf.clip_by_global_norm(inf), ([3e300, 0.0], [4e300]), ([3e300, 0.0], [4e300])),
    "global, squares overflow": (gf.clip_by_global_norm(1.0), ([3e200, 0.0], [4e200]), ([0.6, 0.0], [0.8])),
    "global, squares underflow": (
        gf.clip_by_global_norm(1e-200), ([3e-200, 0.0], [4e-200]), ([0.6e-200, 0.0], [0.8e-200])),
    "global, inf kept": (gf.clip_by_global_norm(1.0, nonfinite="keep"), ([inf, 9.0], [4.0]), ([inf, 9.0], [4.0])),
    "global, NaN kept": (gf.clip_by_global_norm(1.0, nonfinite="keep"), ([nan, 9.0], [4.0]), ([nan, 9.0], [4.0])),
    "global, inf skipped": (gf.clip_by_global_norm(1.0, nonfinite="skip"), ([inf, 9.0], [4.0]), ([0.0, 0.0], [0.0])),
    "global, NaN skipped": (gf.clip_by_global_norm(1.0, nonfinite="skip"), ([nan, 9.0], [4.0]), ([0.0, 0.0], [0.0])),
    "global, inf zeroed": (gf.clip_by_global_norm(1.0, nonfinite="zero"), ([-inf, 3.0], [4.0]), ([0.0, 0.6], [0.8])),
    "global, NaN zeroed": (gf.clip_by_global_norm(1.0, nonfinite="zero"), ([nan, 3.0], [4.0]), ([0.0, 0.6], [0.8])),
    "global, no limit and inf": (
        gf.clip_by_global_norm(inf, nonfinite="keep"), ([inf, 1.0], [2.0]), ([inf, 1.0], [2.0])),
    "parameter, 0": (gf.clip_by_parameter_norm(1.0), ([0.0, 0.0], [3.0]), ([0.0, 0.0], [1.0])),
    "parameter, one above": (gf.clip_by_parameter_norm(1.0), ([3.0, 4.0], [0.5]), ([0.6, 0.8], [0.5])),
    "parameter, NaN kept": (
        gf.clip_by_parameter_norm(1.0, nonfinite="keep"), ([nan, 9.0], [4.0]), ([nan, 9.0], [1.0])),
    "parameter, NaN skipped": (
        gf.clip_by_parameter_norm(1.0, nonfinite="skip"), ([nan, 9.0], [4.0]), ([0.0, 0.0], [0.0])),
    "parameter, NaN zeroed": (
        gf.clip_by_parameter_norm(1.0, nonfinite="zero"), ([nan, 9.0], [4.0]), ([0.0, 1.0], [1.0])),
    "agc, 0": (gf.adaptive_gradient_clip(0.5), ([0.0, 0.0], [3.0]), ([0.0, 0.0], [0.5])),
    "agc, small weights": (gf.adaptive_gradient_clip(0.5, eps=4.0), ([3.0, 4.0], [0.5]), ([1.2, 1.6], [0.5])),
    "agc, NaN kept": (gf.adaptive_gradient_clip(0.5, nonfinite="keep"), ([nan, 9.0], [4.0]), ([nan, 9.0], [0.5])),
    "agc, inf skipped": (gf.adaptive_gradient_clip(0.5, nonfinite="skip"), ([inf, 9.0], [4.0]), ([0.0, 0.0], [0.0])),
    "agc, inf zeroed": (gf.adaptive_gradient_clip(0.5, nonfinite="zero"), ([inf, 9.0], [4.0]), ([0.0, 1.0], [0.5])),
    "ema clip, warm-up": (gf.clip_by_ema(), ([3e9, 0.0], [4.0]), ([3e9, 0.0], [4.0])),
    "ema clip, NaN skipped": (gf.clip_by_ema(nonfinite="skip"), ([nan, 9.0], [4.0]), ([0.0, 0.0], [0.0])),
    "skip, finite": (gf.skip_nonfinite(), ([3e300, 0.0], [-1.0]), ([3e300, 0.0], [-1.0])),
    "skip, inf": (gf.skip_nonfinite(), ([1.0, inf], [1.0]), ([0.0, 0.0], [0.0])),
    "skip, NaN": (gf.skip_nonfinite(), ([1.0, nan], [1.0]), ([0.0, 0.0], [0.0])),
    "skip, inf and -inf": (gf.skip_nonfinite(), ([-inf, inf], [1.0]), ([0.0, 0.0], [0.0])),
    "zero": (gf.zero_nonfinite(), ([-inf, nan], [1.0]), ([0.0, 0.0], [1.0])),
    "sign": (gf.sign(), ([-inf, nan], [0.0]), ([-1.0, nan], [0.0])),
    "centralize leaves vectors": (gf.centralize(), ([1.0, 3.0], [5.0]), ([1.0, 3.0], [5.0])),
    "noise of 0": (gf.add_noise(0.0, seed=0), ([1.0, 3.0], [5.0]), ([1.0, 3.0], [5.0])),
}  # fmt: skip
PARAMS = {"a": torch.tensor([2.0, 0.0], dtype=F64), "b": torch.tensor([1.0], dtype=F64)}


def check_edge(name):
    stage, given, expected = EDGES[name]
    grads = {k: torch.tensor(v, dtype=F64) for k, v in zip("ab", given, strict=True)}
    out, _ = once(stage, grads, PARAMS)
    for k, want in zip("ab", expected, strict=True):
        assert torch.allclose(out[k], torch.tensor(want, dtype=F64), rtol=1e-14, atol=0, equal_nan=True), out


@pytest.mark.parametrize("name", EDGES)
def test_an_edge(name):
    check_edge(name)


RAISING = {
    "global": gf.clip_by_global_norm(1.0),
    "parameter": gf.clip_by_parameter_norm(1.0),
    "agc": gf.adaptive_gradient_clip(),
    "ema clip": gf.clip_by_ema(),
}


def check_raises(name, value=nan):
    grads = {"fine": torch.ones(2), "broken": torch.tensor([1.0, value])}
    with pytest.raises(ValueError, match="'broken'") as raised:
        once(RAISING[name], grads, grads)
    assert "'fine'" not in str(raised.value)
    assert "nonfinite='skip'" in str(raised.value)


@pytest.mark.parametrize("value", [nan, inf])
@pytest.mark.parametrize("name", RAISING)
def test_what_is_not_finite_is_refused_by_name(name, value):
    check_raises(name, value)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e20), (torch.float32, 1e-30), (torch.float16, 65504.0)])
def test_norms_of_smaller_types_neither_overflow_nor_underflow(dtype, size):
    grads = {"w": torch.full((1000,), size, dtype=dtype)}
    _, _, report = gf.clip_by_global_norm(inf).update_with_report(grads, ())
    assert float(report["clip_by_global_norm"]["norm"]) == pytest.approx(size * 1000**0.5, rel=1e-6)
    if size < 1:
        return
    out, _ = once(gf.clip_by_global_norm(1.0), grads)
    want = torch.full((1000,), 1000**-0.5, dtype=F64)
    close(out["w"], want, 0.04, "clipped", torch.finfo(dtype).eps)


# --- what is not finite


def check_skipping():
    stage = gf.skip_nonfinite()
    fine, odd = tensors(1), tensors(2)
    odd["k"][0, 0, 0, 0] = inf
    state, counts = stage.init(fine), []
    for grads in (fine, odd, odd, fine, odd):
        out, state, report = stage.update_with_report(grads, state)
        assert same_bits(out, fine) if grads is fine else not flat(out).any()
        assert all(value.dtype == torch.int64 and value.dim() == 0 for value in state.values())
        counts.append((int(state["skipped"]), int(state["consecutive"]), int(report["skip_nonfinite"]["skipped"])))
        assert report.ok == (grads is fine)
    assert counts == [(0, 0, 0), (1, 1, 1), (2, 2, 2), (2, 0, 2), (3, 1, 3)]


def test_skipped_steps_are_counted():
    check_skipping()


def check_too_many():
    stage = gf.skip_nonfinite(max_consecutive=1)
    odd = {"w": torch.tensor([nan]), "b": torch.ones(1)}
    _, state = stage.update(odd, stage.init(odd))
    with pytest.raises(RuntimeError, match="2 steps in a row") as raised:
        stage.update(odd, state)
    assert "['w']" in str(raised.value)
    _, state = stage.update({k: torch.ones(1) for k in odd}, state)
    stage.update(odd, state)


def test_too_many_skipped_steps_in_a_row():
    check_too_many()


def test_the_number_of_zeroed_entries_is_reported():
    grads = {"w": torch.tensor([1.0, nan, inf]), "b": torch.tensor([-inf])}
    _, _, report = gf.zero_nonfinite().update_with_report(grads, ())
    assert float(report["zero_nonfinite"]["nonfinite"]) == 3


# --- the rest


def check_ema():
    grads = [tensors(seed) for seed in range(6)]
    for decay, debias in ((0.9, False), (0.9, True), (0.0, True), (lambda t: 0.5 if t < 3 else 0.9, True)):
        stage = gf.ema(decay, debias)
        state, mean, weight = stage.init(grads[0]), {k: torch.zeros_like(v) for k, v in grads[0].items()}, 0.0
        for t, g in enumerate(grads):
            d = decay(t) if callable(decay) else decay
            mean, weight = {k: d * mean[k] + (1 - d) * v for k, v in g.items()}, d * weight + 1 - d
            out, state = stage.update(g, state)
            for k, value in mean.items():
                close(out[k], value / weight if debias else value, 1.0, k, 1e-14)
                close(state["ema"][k], value, 1.0, k, 1e-14)
        assert state["count"] == 6
        assert type(state["count"]) is int


def test_the_moving_average():
    check_ema()


def test_debiasing_is_adams():
    stage, g = gf.ema(0.9, debias=True), tensors(1)
    state, plain = stage.init(g), {k: torch.zeros_like(v) for k, v in g.items()}
    for t in range(1, 8):
        plain = {k: 0.9 * plain[k] + 0.1 * v * t for k, v in g.items()}
        out, state = stage.update({k: v * t for k, v in g.items()}, state)
        close(flat(out), flat(plain) / (1 - 0.9**t), 10.0, f"step {t}", 1e-14)


def test_half_types_are_averaged_in_float32():
    stage = gf.ema(0.999)
    g = {"w": torch.ones(1, dtype=torch.bfloat16)}
    state = stage.init(g)
    assert state["ema"]["w"].dtype == torch.float32
    for _ in range(500):
        out, state = stage.update(g, state)
    assert float(state["ema"]["w"]) == pytest.approx(1 - 0.999**500, rel=1e-4)  # bfloat16 would stand still
    assert out["w"].dtype == torch.bfloat16


def check_weights():
    grads, params = tensors(1), tensors(2)
    out, _ = once(gf.masked(gf.add_decayed_weights(0.1), "w|k"), grads, params)
    for k, value in grads.items():
        close(out[k], value + (0.1 * params[k] if k in "wk" else 0), 1.0, k, 1e-15)


def test_decayed_weights_of_some():
    check_weights()


@pytest.mark.parametrize("stage", [gf.add_decayed_weights(0.1), gf.adaptive_gradient_clip()], ids=repr)
def test_parameters_are_needed(stage):
    with pytest.raises(ValueError, match="no params"):
        stage.update(tensors(), stage.init(tensors()))


def check_centralize():
    out, _ = once(gf.centralize(), tensors(3))
    for k, value in tensors(3).items():
        rows = units(value)
        want = (rows - rows.mean(1, keepdim=True)).reshape(value.shape) if value.dim() > 1 else value
        close(out[k], want, 1.0, k, 1e-15)


def test_centralize():
    check_centralize()


def test_schedules_count_updates():
    for make in (gf.clip_by_value, gf.clip_by_global_norm, gf.clip_by_parameter_norm):
        stage = make(gf.schedules.piecewise(1.0, {1: 0.5}))
        state, out = stage.init({}), []
        for _ in range(2):
            grads, state = stage.update({"w": torch.tensor([4.0])}, state)
            out.append(float(grads["w"]))
        assert out == [1.0, 0.5]
        assert state == {"count": 2}
    stage = gf.clip_by_ema(lambda t: 2.0 if t < 2 else 1.0, warmup=1)
    state, out = stage.init({"w": torch.ones(1)}), []
    for n in (1.0, 8.0, 8.0):
        grads, state = stage.update({"w": torch.tensor([n])}, state)
        out.append(float(grads["w"]))
    assert out == [1.0, 2.0, 1.5]


BAD = {
    "limit 0": (lambda: gf.clip_by_value(0.0), ValueError, "limit=0.0"),
    "limit NaN": (lambda: gf.clip_by_value(nan), ValueError, "limit=nan"),
    "norm 0": (lambda: gf.clip_by_global_norm(0.0), ValueError, "max_norm=0.0"),
    "norm negative": (lambda: gf.clip_by_global_norm(-1.0), ValueError, "max_norm=-1.0"),
    "norm NaN": (lambda: gf.clip_by_parameter_norm(nan), ValueError, "max_norm=nan"),
    "norm a text": (lambda: gf.clip_by_global_norm("1"), TypeError, "max_norm='1'"),
    "eps negative": (lambda: gf.clip_by_global_norm(1.0, eps=-1.0), ValueError, "eps=-1.0"),
    "policy": (lambda: gf.clip_by_global_norm(1.0, nonfinite="drop"), ValueError, "nonfinite='drop'"),
    "clipping 0": (lambda: gf.adaptive_gradient_clip(0.0), ValueError, "clipping=0.0"),
    "eps 0": (lambda: gf.adaptive_gradient_clip(0.1, 0.0), ValueError, "eps=0.0"),
    "factor below 1": (lambda: gf.clip_by_ema(0.5), ValueError, "factor=0.5"),
    "both limits": (lambda: gf.clip_by_ema(2.0, z_score=1.0), ValueError, "factor=2.0 and z_score=1.0"),
    "z negative": (lambda: gf.clip_by_ema(z_score=-1.0), ValueError, "z_score=-1.0"),
    "decay 1": (lambda: gf.clip_by_ema(decay=1.0), ValueError, "decay=1.0"),
    "warmup 0": (lambda: gf.clip_by_ema(warmup=0), ValueError, "warmup=0"),
    "warmup half": (lambda: gf.clip_by_ema(warmup=0.5), TypeError, "warmup=0.5"),
    "consecutive": (lambda: gf.skip_nonfinite(-1), ValueError, "max_consecutive=-1"),
    "consecutive half": (lambda: gf.skip_nonfinite(0.5), TypeError, "max_consecutive=0.5"),
    "std negative": (lambda: gf.add_noise(-1.0, seed=0), ValueError, "std=-1.0"),
    "seed": (lambda: gf.add_noise(1.0, seed=0.5), TypeError, "seed=0.5"),
    "multiplier": (lambda: gf.gaussian_mechanism(-1.0, seed=0), ValueError, "noise_multiplier=-1.0"),
    "adjacency": (lambda: gf.gaussian_mechanism(1.0, seed=0, adjacency="x"), ValueError, "adjacency='x'"),
    "sensitivity": (lambda: gf.gaussian_mechanism(1.0, seed=0, sensitivity=0.0), ValueError, "sensitivity=0.0"),
    "ema of 1": (lambda: gf.ema(1.0), ValueError, "decay=1.0"),
    "debias": (lambda: gf.ema(0.9, debias=1), TypeError, "debias=1"),
    "decay inf": (lambda: gf.add_decayed_weights(inf), ValueError, "weight_decay=inf"),
    "rows": (lambda: gf.sign().update([1.0], ()), TypeError, "a list"),
    "an unknown name": (lambda: gf.ema(0.9).update({"x": torch.ones(1)}, gf.ema(0.9).init({})), ValueError, "['x']"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name):
    call, error, text = BAD[name]
    with pytest.raises(error) as raised:
        call()
    assert text in str(raised.value)


def test_a_report_changes_nothing():
    for name, stage in STAGES.items():
        out, _ = once(stage, tensors(1), tensors(2))
        reported, _, report = stage.update_with_report(tensors(1), stage.init(tensors(2)), tensors(2))
        assert same_bits(out, reported), name
        facts = [float(value) for _, facts in report.stages for key, value in facts.items() if key != "limit"]
        assert all(map(math.isfinite, facts)), name
