"""step_report and watch: what moved and why not, against definitions; checks of every step."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import gradfunc as gf
from gradfunc.diagnose import _step, _watch

F64 = torch.float64


def step(before, grads, lr=0.1, **options):
    updates = {name: -lr * grad for name, grad in grads.items() if grad is not None}
    after = {name: value + updates.get(name, 0) for name, value in before.items()}
    return gf.diagnose.step_report(before, after, grads, updates=updates, **options)


def drawn(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (5, 3), "a.bias": (5,), "b.weight": (2, 5), "scale": (4,)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def check_ratios():
    before, grads = drawn(), drawn(seed=1)
    found = step(before, grads)
    assert [layer.layer for layer in found.layers] == ["a", "b", "scale"]
    for layer in found.layers:
        w = np.concatenate([before[name].double().numpy().ravel() for name in layer.parameters])
        g = np.concatenate([grads[name].double().numpy().ravel() for name in layer.parameters])
        u = np.concatenate([(before[n] - 0.1 * grads[n]).double().numpy().ravel() for n in layer.parameters]) - w
        for value, vector in ((layer.weight, w), (layer.update, u), (layer.gradient, g)):
            assert value == pytest.approx(np.sqrt(np.mean(vector**2)), rel=1e-12)
        assert layer.ratio == layer.update / layer.weight
        assert (layer.entries, layer.moved, layer.lost) == (len(w), 1.0, 0.0)
    assert found.ok


def test_ratios_are_root_mean_squares():
    check_ratios()


WHY = {
    "no gradient": ({"scale": None}, 0.1, ()),
    "zero gradient": ({"scale": torch.zeros(4)}, 0.1, ()),
    "gradient not finite": ({"scale": torch.full((4,), torch.nan)}, 0.1, ()),
    "every update is below half an ulp of its weight": ({"scale": torch.full((4,), 1e-12)}, 0.1, ()),
    "frozen": ({"scale": None}, 0.1, ("scale",)),
}


def check_why(why):
    change, lr, frozen = WHY[why]
    before, grads = drawn(), {**drawn(seed=1), **change}
    updates = {k: -lr * g for k, g in grads.items() if g is not None and bool(g.isfinite().all())}
    after = {name: value + updates.get(name, 0) for name, value in before.items()}
    found = gf.diagnose.step_report(before, after, grads, updates=updates, frozen=frozen)
    assert found.unmoved == {"scale": why}
    assert found.ok == (why == "frozen")
    assert why in str(found)


@pytest.mark.parametrize("why", WHY)
def test_why_a_parameter_did_not_move(why):
    check_why(why)


def test_a_rate_of_0():
    before, grads = drawn(), drawn(seed=1)
    assert set(step(before, grads, lr=0.0).unmoved.values()) == {"rate 0"}
    without = gf.diagnose.step_report(before, before, grads)
    assert set(without.unmoved.values()) == {"rate 0, or updates below half an ulp"}
    assert set(gf.diagnose.step_report(before, before).unmoved.values()) == {"unknown without grads"}
    assert set(gf.diagnose.step_report(before, before, updates={}).unmoved.values()) == {"no update"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
def test_lost_entries_are_those_below_half_an_ulp(dtype):
    """w + u rounds to w where |u| < ulp(w) / 4, and never where |u| > ulp(w) / 2; ulp(w) = eps 2^floor(log2 |w|)."""
    w = (torch.rand(4000, generator=torch.Generator().manual_seed(0), dtype=F64) + 0.5).to(dtype)
    ulp = torch.finfo(dtype).eps * torch.exp2(w.double().log2().floor())
    for share, lost in ((0.2, 1.0), (0.6, 0.0)):
        update = (share * ulp).to(dtype)  # exact but for a relative eps, which leaves 0.2 and 0.6 on their sides
        found = gf.diagnose.step_report({"w": w}, {"w": w + update}, updates={"w": update})
        assert (found.layers[0].lost, found.layers[0].moved) == (lost, 1 - lost)


def test_clip_factors_are_those_the_chain_said():
    params, grads = drawn(), gf.Grads(drawn(seed=1))
    chain = gf.clip_by_global_norm(0.5) >> gf.sgd(0.1)
    updates, _, said = chain.update_with_report(grads, chain.init(params), params)
    after = gf.apply_updates(params, updates)
    found = gf.diagnose.step_report(params, after, grads, updates=updates, report=said)
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads.values()))
    (factor,) = [value for stage, fact, value in found.factors if fact == "factor"]
    assert factor == pytest.approx(0.5 / norm, rel=1e-5)
    assert "Clip factors" in str(found)
    assert found.to_dict()["ok"] is True


def test_what_is_not_finite_after_it():
    before = drawn()
    after = {**before, "scale": before["scale"].clone()}
    after["scale"][1] = torch.inf
    found = gf.diagnose.step_report(before, after)
    assert ([layer.nonfinite for layer in found.layers], found.ok) == ([0, 0, 1], False)
    assert "Not finite after the update" in str(found)
    assert "Not finite" not in str(gf.diagnose.step_report(before, before))
    zero = gf.diagnose.step_report({"w": torch.zeros(2)}, {"w": torch.ones(2)})
    assert (zero.layers[0].ratio, zero.layers[0].moved, zero.ok) == (None, 1.0, True)


@pytest.mark.parametrize(
    ("args", "options", "error", "match"),
    [
        ((3, {}), {}, TypeError, "an int as before"),
        (({"w": 1.0}, {"w": 1.0}), {}, TypeError, r"before\['w'\]"),
        (({"w": torch.ones(2)}, {}), {}, ValueError, "'w' in one of before and after"),
        (({"w": torch.ones(2)}, {"w": torch.ones(3)}), {}, ValueError, r"shape \[3\]"),
        (({"w": torch.ones(2)}, {"w": torch.ones(2)}, {"v": torch.ones(2)}), {}, ValueError, "'v'"),
        (({"w": torch.ones(2)}, {"w": torch.ones(2)}), {"updates": {"w": torch.ones(1)}}, ValueError, "updates"),
    ],
)
def test_what_a_step_report_refuses(args, options, error, match):
    with pytest.raises(error, match=match):
        gf.diagnose.step_report(*args, **options)


# --- watch --------------------------------------------------------------------------------------------


def log_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Softplus(), nn.Linear(4, 1, bias=False))


def shaky(model, x):
    return (model(x)[:, 0] - model(x * 0)[:, 0]).abs().log()


CRITERION = gf.whole(shaky)


def batch(bad=None):
    x = 1 + torch.rand(16, 3, generator=torch.Generator().manual_seed(0))
    if bad is not None:
        x[bad] = 0
    return x


def check_plain_loop():
    model = log_model()
    check = gf.diagnose.watch(model, CRITERION)
    assert check.step(shaky(model, batch()).mean(), batch()) is None
    x = batch(6)
    found = check.step(shaky(model, x).mean(), x)
    assert (found.samples, found.pattern, found.what) == ((6,), "log of 0", "loss")
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_plain_loop():
    check_plain_loop()


def check_gradients():
    model = nn.Linear(3, 1, bias=False)
    criterion = gf.whole(lambda model, x: model(x)[:, 0].abs().sqrt())
    check = gf.diagnose.watch(model, criterion)
    x = batch(2)
    loss = model(x)[:, 0].abs().sqrt().mean()
    (grad,) = torch.autograd.grad(loss, [model.weight])
    assert check.step(loss, x) is None  # the loss is finite
    found = check.step(loss, x, {"weight": grad})
    assert (found.samples, found.direction, found.parameters) == ((2,), "backward", ("weight",))
    alone = gf.diagnose.watch().step(loss, grads={"weight": grad, "none": None})
    assert (alone.what, alone.parameters, alone.batch_size) == ("gradient", ("weight",), 0)
    assert str(alone).startswith("A gradient is not finite (float32)")
    assert check.step(loss.detach(), x, {"weight": torch.full((2,), 3e38)}) is None  # whose sum alone overflows


def test_gradients_in_a_plain_loop():
    check_gradients()


def test_parameters_in_a_plain_loop():
    model = log_model()
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    found = gf.diagnose.watch(model, CRITERION).step(torch.tensor(1.0), batch())
    assert found.given == "parameter '0.weight'"


def trained(x, chain, check, **options):
    model = log_model()
    f = gf.stateless(model)
    loss = lambda p, row: shaky(lambda x: f(p, x), row[None])[0]  # noqa: E731
    return gf.train.fit(loss, gf.mean() >> chain, f.params, x, batch_size=4, shuffle=False, **options, **check(model))


def watched(model):
    return {"callbacks": [gf.diagnose.watch(model, CRITERION)]}


def check_fit():
    fine = trained(batch(), gf.sgd(1e-3), watched, epochs=2)
    assert (fine.stopped, fine.steps) == (None, 8)
    fit = trained(batch(9), gf.sgd(1e-3), watched, epochs=2, on_nonfinite="ignore")
    assert fit.stopped.step == 2
    assert "samples 1; first in aten.log" in fit.stopped.reason  # of its batch
    assert "log of 0" in fit.stopped.reason


def test_a_callback_of_fit():
    check_fit()


def test_a_step_that_replaces_the_weights():
    fit = trained(batch(), gf.sgd(1e3), watched)
    assert "times the weights" in fit.stopped.reason
    assert fit.stopped.step == 0
    assert trained(batch(), gf.sgd(1e3), lambda model: {"callbacks": [gf.diagnose.watch(largest_ratio=1e9)]}).ok


def test_without_a_model_it_says_what_it_sees():
    fit = trained(batch(9), gf.sgd(1e-3), lambda model: {"callbacks": [gf.diagnose.watch()]}, on_nonfinite="ignore")
    assert fit.stopped.reason == "a loss is not finite"
    bare = nn.Linear(1, 1)
    huge = gf.train.fit(
        lambda p, x: (p["weight"] * x).sum(),
        gf.mean() >> gf.sgd(3e38),
        {"weight": bare.weight.detach()},
        torch.full((2, 1), 30.0),
        callbacks=[gf.diagnose.watch()],
        on_nonfinite="ignore",
    )
    assert huge.stopped.reason == "an update is not finite; parameters weight"


def test_a_capture_of_fit():
    check = gf.diagnose.watch()
    fit = trained(batch(), gf.sgd(1e-3), lambda model: {"capture": {"step": check.capture}})
    assert fit.history["step/moved"].tolist() == [1.0] * 4
    assert (fit.history["step/ratio/0"] > 0).all()


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: gf.diagnose.watch(largest_ratio=0), ValueError, "largest_ratio=0"),
        (lambda: gf.diagnose.watch(3), TypeError, "stateless"),
        (lambda: gf.diagnose.watch().step(1.0), TypeError, "a float"),
        (lambda: gf.diagnose.watch().step(torch.tensor(1.0), None, [torch.ones(2)]), TypeError, "got a list"),
    ],
)
def test_what_watch_refuses(call, error, match):
    with pytest.raises(error, match=match):
        call()


# --- fit's own reason ---------------------------------------------------------------------------------


def test_fit_names_line_module_and_safe_form():
    model = nn.Sequential(nn.Linear(3, 2, bias=False), Root())
    f = gf.stateless(model)
    x = batch(5)
    fit = gf.train.fit(lambda p, row: f(p, row[None])[0], gf.mean() >> gf.sgd(1e-3), f.params, x, shuffle=False)
    found = fit.stopped.nonfinite
    assert (found.samples, found.origin.layer, found.fault.name) == ((5,), "1", "norm at 0")
    assert found.origin.code == "return u.square().sum(-1).sqrt()"
    assert "test_step_report.py:" in found.origin.where
    assert "torch.linalg.vector_norm" in str(found)


class Root(nn.Module):
    def forward(self, u):
        return u.square().sum(-1).sqrt()


# --- mutants ------------------------------------------------------------------------------------------


def narrow(tensors):
    return float(sum(t.float().abs().sum() for t in tensors))


def check_half_ulp():
    test_lost_entries_are_those_below_half_an_ulp(torch.float32)


def never_why(name, grads, updates, frozen):
    return "no gradient"


def no_deep(self, params, batch):
    return None


MUTANTS = {
    "sums for root mean squares": (_step, "rms", narrow, check_ratios),
    "one reason for all": (_step, "_why", never_why, lambda: check_why("zero gradient")),
    "frozen is a fault": (_step, "FROZEN", "held", lambda: check_why("frozen")),
    "all is finite": (_watch, "_is_finite", lambda value: True, check_plain_loop),
    "no deep look": (_watch.Watcher, "_deep", no_deep, check_plain_loop),
    "no deep look in fit": (_watch.Watcher, "_deep", no_deep, check_fit),
    "nothing is summed": (_watch, "_sum", lambda value: value.new_zeros((), dtype=F64), check_gradients),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_report_is_caught(name, monkeypatch):
    place, attribute, broken, check = MUTANTS[name]
    check()
    monkeypatch.setattr(place, attribute, broken)
    with pytest.raises((AssertionError, AttributeError)):
        check()
