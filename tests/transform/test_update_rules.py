"""Our rules against torch's over 100 steps; purity, ownership, states, scales, and mistakes that are noticed."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from oracle import same_bits, storages
from rules import F64, agree, our_loop, start, stream, torch_loop
from tiers import every

import gradfunc as gf
from gradfunc._transform._batch import AddDecayedWeights
from gradfunc._transform._rules import _adam, _descend, _lion, _momentum, _muon, _scale_by_adam

optim = torch.optim


def halving(step):
    return 0.1 * 0.97**step


# name: our rule (of lr), torch's (of lr), parameters
RULES = {
    "sgd": (gf.sgd, optim.SGD, {}),
    "momentum": (gf.sgd, optim.SGD, {"momentum": 0.9}),
    "dampening": (gf.sgd, optim.SGD, {"momentum": 0.9, "dampening": 0.3}),
    "nesterov": (gf.sgd, optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "maximize": (gf.sgd, optim.SGD, {"momentum": 0.5, "weight_decay": 0.1, "maximize": True}),
    "decayed": (gf.sgd, optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    "adam": (gf.adam, optim.Adam, {}),
    "adam, decayed": (gf.adam, optim.Adam, {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}),
    "amsgrad": (gf.adam, optim.Adam, {"amsgrad": True}),
    "adamw": (gf.adamw, optim.AdamW, {}),
    "adamw, amsgrad": (gf.adamw, optim.AdamW, {"weight_decay": 0.3, "amsgrad": True}),
}


def check_torch(name, lr=0.05):
    ours, theirs, options = RULES[name]
    schedule = lr if callable(lr) else None
    params = start()
    fixed = 0.05 if schedule else lr
    size = -1.0 if options.get("maximize") else 1.0  # downhill, so that nothing grows without bound
    want = torch_loop(lambda leaves: theirs(leaves, lr=fixed, **options), params, 100, lr=schedule, size=size)
    got, _ = our_loop(ours(lr, **options), params, 100, size=size)
    agree(got, want)


@pytest.mark.parametrize("name", RULES)
def test_as_torch_over_100_steps(name):
    check_torch(name)


@pytest.mark.parametrize("name", ["nesterov", "decayed", "adam, decayed", "adamw"])
def test_as_torch_with_a_schedule(name):
    check_torch(name, halving)


def lion_by_hand(params, lr, betas, decay, steps):
    """Algorithm 2 of Chen et al. 2023, line by line."""
    m, out = {k: torch.zeros_like(v) for k, v in params.items()}, []
    for step in range(steps):
        g = stream(step, params)
        c = {k: (betas[0] * m[k] + (1 - betas[0]) * g[k]).sign() for k in params}
        params = {k: v - lr * (c[k] + decay * v) for k, v in params.items()}
        m = {k: betas[1] * m[k] + (1 - betas[1]) * g[k] for k in m}
        out.append(params)
    return out


def check_lion():
    params = start()
    got, _ = our_loop(gf.lion(0.01, betas=(0.8, 0.95), weight_decay=0.2), params, 100)
    agree(got, lion_by_hand(params, 0.01, (0.8, 0.95), 0.2, 100))


def test_lion_as_its_paper():
    check_lion()


MUON = hasattr(optim, "Muon")


def check_muon(nesterov=True):
    params = start(names=("weight",))
    want = torch_loop(lambda p: optim.Muon(p, lr=0.02, nesterov=nesterov), params, 100)
    got, _ = our_loop(gf.muon(0.02, nesterov=nesterov), params, 100)
    agree(got, want)


@pytest.mark.skipif(not MUON, reason="this torch has no Muon")
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_as_torch(nesterov):
    check_muon(nesterov)


def test_orthogonalize_is_the_polynomial_of_the_singular_values():
    stage = gf.orthogonalize(5, precision="float64")
    for shape in ((5, 3), (3, 5), (4, 4), (4, 2, 3, 3), (5, 1), (1, 5), (1, 1)):
        x = torch.randn(shape, dtype=F64)
        u, s, vt = torch.linalg.svd(x.flatten(1), full_matrices=False)
        s = s / s.norm()
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        want = (u * s) @ vt * math.sqrt(max(1, len(x) / x[0].numel()))
        got, _ = stage.update({"x": x}, ())
        torch.testing.assert_close(got["x"], want.reshape(shape), rtol=0, atol=1e-10)
    zero, _ = stage.update({"x": torch.zeros(2, 2)}, ())
    assert same_bits(zero["x"], torch.zeros(2, 2))
    for shape in ((3, 0), (0, 3)):
        assert stage.update({"x": torch.zeros(shape)}, ())[0]["x"].shape == shape


def test_orthogonalize_refuses_vectors_with_the_way_out():
    for call in (gf.muon().init, lambda p: gf.orthogonalize().update(p, ())):
        with pytest.raises(ValueError, match=r"no matrix in \['bias'\].*gf.partition"):
            call(start())


OURS = {
    **{
        name: (lambda ours=ours, options=options: ours(halving, **options))
        for name, (ours, _, options) in RULES.items()
    },
    "lion": lambda: gf.lion(halving, weight_decay=0.1),
    "scheduled decay": lambda: gf.adamw(0.1, weight_decay=halving),
    "muon": lambda: gf.partition({"m": gf.muon(0.02), "o": gf.adamw(0.01)}, {"bias": "o", r".*": "m"}),
}


def check_pure(name):
    """Inputs stay, twice is once, and no tensor of a state is one of the output."""
    rule, params = OURS[name](), start()
    _, state = our_loop(rule, params, 3)
    grads = gf.Grads(stream(3, params))
    before = copy.deepcopy((grads, state, params))
    updates, new = rule.update(grads, state, params)
    again, other = rule.update(grads, state, params)
    assert same_bits(before[0], grads)
    assert same_bits(before[2], params)
    assert same_bits(gf.flatten_state(before[1]), gf.flatten_state(state))
    assert same_bits(updates, again)
    assert same_bits(gf.flatten_state(new), gf.flatten_state(other))
    assert not storages(updates) & (storages(new) | storages(grads) | storages(params) | storages(state))
    assert not storages(new) & (storages(grads) | storages(params) | storages(state))
    assert not any(value.requires_grad for value in [*updates.values(), *params.values(), *grads.values()])


@pytest.mark.parametrize("name", OURS)
def test_pure(name):
    check_pure(name)


def check_donated(name):
    rule, params = OURS[name](), start()
    kept, state = our_loop(rule, params, 8)
    given, other = our_loop(rule, params, 8, donate=True)
    assert same_bits(kept, given)
    assert same_bits(gf.flatten_state(state), gf.flatten_state(other))


@pytest.mark.parametrize("name", OURS)
def test_donated_gives_the_same_bits(name):
    check_donated(name)


def saved(state, like):
    """Through torch.save, flat and as it is, and a deep copy: all forms that a state is kept in."""
    file = io.BytesIO()
    torch.save((gf.flatten_state(state), state), file)
    file.seek(0)
    flat, nested = torch.load(file, weights_only=True)
    return [gf.unflatten_state(flat, like=like), nested, copy.deepcopy(state)]


def check_resumed(rule, params):
    whole, last = our_loop(rule, params, 9)
    first, state = our_loop(rule, params, 4)
    for back in saved(state, rule.init(params)):
        rest, end = our_loop(rule, first[-1], 5, state=back, first=4)
        assert same_bits(first + rest, whole)
        assert same_bits(gf.flatten_state(end), gf.flatten_state(last))


@pytest.mark.parametrize("name", OURS)
def test_resumed_is_never_stopped(name):
    check_resumed(OURS[name](), start())


def test_a_state_through_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    rule, params = gf.adamw(halving), start()
    _, state = our_loop(rule, params, 3)
    safetensors.save_file(gf.flatten_state(state), tmp_path / "state")
    back = gf.unflatten_state(safetensors.load_file(tmp_path / "state"), like=rule.init(params))
    assert same_bits(gf.flatten_state(back), gf.flatten_state(state))


def check_parts(name):
    """The fused rule is the chain of its parts, on the scale of the update."""
    rule, params = OURS[name](), start()
    want, state = our_loop(gf.chain(*rule.parts), params, 30)
    got, own = our_loop(rule, params, 30)
    agree(got, want, 1e-14)
    assert list(gf.flatten_state(own)) == list(gf.flatten_state(state))
    for key, value in gf.flatten_state(state).items():
        torch.testing.assert_close(gf.flatten_state(own)[key], value, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", [name for name in OURS if name != "muon"])
def test_a_rule_is_the_chain_of_its_parts(name):
    check_parts(name)


@pytest.mark.parametrize("name", ["adam", "adam, decayed", "amsgrad", "adamw"])
def test_plain_operations_do_what_the_fused_kernel_does(name, monkeypatch):
    rule, params = OURS[name](), start()
    got, _ = our_loop(rule, params, 30)
    monkeypatch.setattr(_scale_by_adam, "quick", lambda values: False)
    want, _ = our_loop(rule, params, 30)
    agree(got, want, 1e-14)


@pytest.mark.parametrize("name", ["nesterov", "adam", "adamw", "lion"])
def test_an_update_is_differentiated(name):
    rule, params = OURS[name](), start(names=("bias",))
    _, state = our_loop(rule, params, 3)
    base, weight = stream(3, params)["bias"], torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=F64)

    def out(g):
        return (weight * rule.update(gf.Grads({"bias": g}), state, params)[0]["bias"]).sum()

    leaf = base.clone().requires_grad_()
    got = torch.autograd.grad(out(leaf), leaf)[0]
    h = 1e-6
    want = torch.stack([(out(base + h * e) - out(base - h * e)) / (2 * h) for e in torch.eye(4, dtype=F64)])
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(torch.func.grad(out)(base), got)


@pytest.mark.parametrize("name", OURS)
def test_tensors_in_another_order_of_memory(name):
    """A fused kernel walks memory; entries must still meet their own."""
    rule, params = OURS[name](), start()
    turned = {k: v.transpose(0, -1).contiguous().transpose(0, -1) for k, v in params.items()}
    want, _ = our_loop(rule, params, 5)
    got, _ = our_loop(rule, turned, 5)
    agree(got, want, 1e-14)

    def mixed(step, params, size):
        if step % 2:
            return stream(step, params, size=size)
        return {k: v.transpose(0, -1).contiguous().transpose(0, -1) for k, v in stream(step, params, size=size).items()}

    got, _ = our_loop(rule, params, 5, given=mixed)
    agree(got, want, 1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OURS)
def test_half_types_accumulate_in_float32(name, dtype):
    rule, params = OURS[name](), {**start(dtype), "bias": start(F64)["bias"]}
    _, state = our_loop(rule, params, 3)
    floats = [value for value in gf.flatten_state(state).values() if value.is_floating_point()]
    assert not any(value.dtype == dtype for value in floats)
    grads = stream(3, params)
    wide = {k: v.float() if v.dtype == dtype else v for k, v in params.items()}
    want, _ = rule.update(gf.Grads({k: v.to(wide[k].dtype) for k, v in grads.items()}), state, wide)
    got, _ = rule.update(gf.Grads(grads), state, params)
    for k, value in got.items():
        assert value.dtype == params[k].dtype
        true = want[k].double()
        unit = torch.finfo(torch.bfloat16 if name == "muon" else value.dtype).eps  # whose products are in bfloat16
        typical = true.square().mean().sqrt()
        assert bool(((value.double() - true).abs() <= 6 * unit * (true.abs() + typical)).all()), k


@pytest.mark.parametrize("name", OURS)
def test_names_without_gradient_are_carried_along(name):
    rule, params = OURS[name](), start()
    _, state = our_loop(rule, params, 2)
    grads = gf.Grads({k: v for k, v in stream(2, params).items() if k != "weight"})
    updates, new = rule.update(grads, state, params)
    assert list(updates) == list(grads)
    before, after = gf.flatten_state(state), gf.flatten_state(new)
    assert list(before) == list(after)
    held = [key for key in before if key.endswith("/weight")]
    assert all(after[key] is before[key] for key in held)
    if held:
        with pytest.raises(ValueError, match="other"):
            rule.update(gf.Grads({"other": torch.ones(2, 2)}), state, params)


def check_adam_ignores_scale():
    params = start()
    for size in (2.0**-40, 2.0**60):
        for rule in (gf.adam(0.1, eps=0.0), gf.lion(0.1)):

            def fixed(step, params, size):
                return stream(step, start(), size=size)

            want, _ = our_loop(rule, params, 10, given=fixed)
            got, _ = our_loop(rule, params, 10, size=size, given=fixed)
            agree(got, want, 1e-14)


def test_adam_and_lion_ignore_the_scale_of_gradients():
    check_adam_ignores_scale()


def test_edges_of_adam():
    stage = gf.scale_by_adam()
    state = stage.init({"x": torch.zeros(3)})
    out, state = stage.update({"x": torch.tensor([0.0, 5.0, math.nan])}, state)
    assert out["x"][0] == 0
    assert abs(float(out["x"][1]) - 1) < 1e-6
    assert out["x"][2].isnan()
    assert stage.update({"x": torch.ones(3)}, state)[0]["x"].isnan().tolist() == [False, False, True]
    none = gf.scale_by_adam(eps=0.0)
    assert none.update({"x": torch.zeros(1)}, none.init({"x": torch.zeros(1)}))[0]["x"].isnan()


BAD = {
    "lr": (lambda: gf.adam(-1.0), ValueError, "gf.adam.*lr=-1.0"),
    "lr of no type": (lambda: gf.sgd("0.1"), TypeError, "lr='0.1'"),
    "a schedule that gives less than 0": (
        lambda: our_loop(gf.descend(lambda k: -1.0), start(), 1),
        ValueError,
        r"-1.0 from lr\(step=0\)",
    ),
    "betas": (lambda: gf.adam(betas=(0.9, 1.0)), ValueError, r"betas\[1\]=1.0"),
    "one beta": (lambda: gf.lion(betas=0.9), TypeError, "two numbers"),
    "eps": (lambda: gf.scale_by_adam(eps=-1e-8), ValueError, "eps"),
    "nesterov alone": (lambda: gf.sgd(0.1, nesterov=True), ValueError, "momentum > 0 and no dampening"),
    "nesterov dampened": (lambda: gf.momentum(0.9, dampening=0.1, nesterov=True), ValueError, "no dampening"),
    "a flag": (lambda: gf.adam(amsgrad=1), TypeError, "True or False"),
    "decay": (lambda: gf.adamw(weight_decay=-1), ValueError, "weight_decay=-1"),
    "decay without params": (
        lambda: gf.adamw().update(gf.Grads(start()), gf.adamw().init(start())),
        ValueError,
        "no params",
    ),
    "ns_steps": (lambda: gf.muon(ns_steps=0), ValueError, "ns_steps=0"),
    "precision": (lambda: gf.muon(precision="half"), ValueError, "'bfloat16', 'float32', 'float64'"),
    "rows": (lambda: gf.mean() >> gf.adam() >> gf.sgd(), TypeError, "adam >> sgd"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name):
    call, kind, text = BAD[name]
    with pytest.raises(kind, match=text):
        call()


def test_how_rules_look():
    assert repr(gf.mean() >> gf.adamw(halving, betas=(0.8, 0.9))) == "mean() >> adamw(halving, betas=(0.8, 0.9))"
    assert repr(gf.sgd(0.1, momentum=0.9, nesterov=True).parts) == "(momentum(0.9, nesterov=True), descend(0.1))"
    assert gf.adam(0.1) == gf.adam(0.1) != gf.adam(0.2)


def test_sensitivity_through_sgd():
    total = gf.clip_per_sample(2.0) >> gf.sum()
    for rule in (gf.descend(0.5), gf.sgd(0.5), gf.sgd(0.5, maximize=True), gf.sgd(0.5, weight_decay=0.5)):
        assert (total >> rule).guarantee().sensitivity.add_remove == 1.0
    for rule in (gf.sgd(halving), gf.sgd(0.5, momentum=0.5), gf.adam(0.5)):
        assert (total >> rule).guarantee().sensitivity.add_remove is None


def test_nothing_given_is_nothing_done():
    params = start()
    for name, make in OURS.items():
        if name == "muon":  # in a partition, whose labels must match something
            continue
        rule = make()
        updates, state = rule.update(gf.Grads({}), rule.init(params), params)
        assert updates == {}
        assert list(gf.flatten_state(state)) == list(gf.flatten_state(rule.init(params)))
    assert gf.muon().update(gf.Grads({}), gf.muon().init({}), {})[0] == {}


# --- mistakes ------------------------------------------------------------------------------------------


def no_correction(first, second, betas, eps, count, factor):
    return [factor * m / (v.sqrt() + eps) for m, v in zip(first, second, strict=True)]


def eps_within_the_root(first, second, betas, eps, count, factor):
    a, b = 1 - betas[0] ** count, 1 - betas[1] ** count
    return [factor / a * m / (v / b + eps).sqrt() for m, v in zip(first, second, strict=True)]


def eps_before_correction(first, second, betas, eps, count, factor):
    a, b = 1 - betas[0] ** count, math.sqrt(1 - betas[1] ** count)
    return [factor / a * m / ((v.sqrt() + eps) / b) for m, v in zip(first, second, strict=True)]


def not_looking_ahead(self, grads, state, params, how):
    return momentum_apply(_momentum.Momentum(self.momentum, self.dampening), grads, state, params, how)


def always_dampened(self, grads, state, params, how):
    return momentum_apply(self, grads, {**state, "count": 1}, params, how)


def written_in_place(self, grads, state, params, how):
    return momentum_apply(self, grads, state, params, type(how)(how.said, how.owned, True))


def buffer_given_away(self, grads, state, params, how):
    _, state = momentum_apply(self, grads, state, params, how)
    return gf.Grads(dict(state["momentum_buffer"])), state


def decays_twice(self, state):
    return 2 * rate(self, state)


def rising(self, state):
    return -factor(self, state)


def coupled(name, lr, betas, eps, weight_decay, amsgrad, usual):
    return adam("adam", lr, betas, eps, weight_decay, amsgrad, usual)


def averaged_first(self, grads, state, params, how):
    betas = self.betas[0], self.betas[1]
    _, moved = lion_apply(self, grads, state, params, how)
    return lion_apply(_lion.ScaleByLion(betas), grads, moved, params, how)[0], moved


def memory_order(values):
    return list(values)


momentum_apply, lion_apply = _momentum.Momentum.apply, _lion.ScaleByLion.apply
rate, factor, adam = AddDecayedWeights.rate, _descend.Descend.factor, _adam._adam


def plain_adam(mistake):
    """The rule of plain operations, which the mistake is in, against torch."""

    def law():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_scale_by_adam, "quick", lambda values: False)
            check_torch("adam, decayed")

    return _scale_by_adam, "direction", mistake, law


MUTANTS = {
    "bias correction lost": plain_adam(no_correction),
    "eps within the root": plain_adam(eps_within_the_root),
    "eps before the correction": plain_adam(eps_before_correction),
    "nesterov dropped": (_momentum.Momentum, "apply", not_looking_ahead, lambda: check_torch("nesterov")),
    "the first gradient dampened": (_momentum.Momentum, "apply", always_dampened, lambda: check_torch("dampening")),
    "a buffer written in place": (_momentum.Momentum, "apply", written_in_place, lambda: check_pure("momentum")),
    "a buffer given away": (_momentum.Momentum, "apply", buffer_given_away, lambda: check_torch("momentum")),
    "decayed twice": (AddDecayedWeights, "rate", decays_twice, lambda: check_torch("adamw")),
    "uphill": (_descend.Descend, "factor", rising, lambda: check_torch("sgd")),
    "decay through the moments": (_adam, "_adam", coupled, lambda: check_torch("adamw")),
    "lion's average before its sign": (_lion.ScaleByLion, "apply", averaged_first, check_lion),
    "Newton-Schulz of one step less": (_muon, "polar", lambda x, n: polar(x, n - 1), lambda: check_orthogonal()),
    "the kernel across orders of memory": (
        _scale_by_adam,
        "dense",
        memory_order,
        lambda: test_tensors_in_another_order_of_memory("adam"),
    ),
}
polar = _muon.polar


def check_orthogonal():
    test_orthogonalize_is_the_polynomial_of_the_singular_values()


@pytest.mark.parametrize("name", every(3, MUTANTS))
def test_a_planted_mistake_is_noticed(name, monkeypatch):
    where, attribute, mistake, law = MUTANTS[name]
    law()
    monkeypatch.setattr(where, attribute, mistake)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        law()


def test_lion_shows_what_is_not_a_number():
    rule, params = gf.lion(0.1), {"w": torch.zeros(3)}
    updates, _ = rule.update({"w": torch.tensor([math.nan, 0.0, -3.0])}, rule.init(params), params)
    torch.testing.assert_close(updates["w"], torch.tensor([math.nan, 0.0, 0.1]), equal_nan=True)


def test_the_fused_kernel_gets_its_counts_in_float32(monkeypatch):
    counts = []
    kernel = _scale_by_adam.torch_adam

    def seen(*args, **kwargs):
        counts.extend(args[5])
        kernel(*args, **kwargs)

    monkeypatch.setattr(_scale_by_adam, "torch_adam", seen)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        grads = {"w": torch.ones(2)}
        gf.scale_by_adam().update(grads, gf.scale_by_adam().init(grads))
    finally:
        torch.set_default_dtype(before)
    assert [count.dtype for count in counts] == [torch.float32]


def test_lion_is_its_direction_and_a_descent():
    params, grads = {"w": torch.randn(3, 2)}, [{"w": torch.randn(3, 2)} for _ in range(4)]
    whole, parts = gf.lion(0.1, betas=(0.8, 0.9)), gf.scale_by_lion((0.8, 0.9)) >> gf.descend(0.1)
    other = gf.scale_by_lion((0.8, 0.99)) >> gf.descend(0.1)  # a mistake in one coefficient
    ours, theirs, wrong = (_updates(step, params, grads) for step in (whole, parts, other))
    assert all(torch.equal(a["w"], b["w"]) for a, b in zip(ours, theirs, strict=True))
    assert any(not torch.equal(a["w"], b["w"]) for a, b in zip(ours, wrong, strict=True))
    with pytest.raises(ValueError, match="scale_by_lion"):
        gf.scale_by_lion((0.9, 1.0))


def _updates(step, params, grads):
    state, out = step.init(params), []
    for grad in grads:
        updates, state = step.update(grad, state, params)
        out.append(updates)
    return out
