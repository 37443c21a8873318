"""Gradients into `.grad`, parameters into a module: exact, whole or not at all, and through every wrapper."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

import gradfunc as gf

COMPILED = functools.partial(torch.compile, backend="eager")


def tied():
    """Two linear layers with one weight, and a frozen one."""
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    module[1].weight = module[0].weight
    module[2].bias.requires_grad_(False)
    return module


def per_sample(module, **options):
    model = gf.stateless(module)

    def loss(params, x, y):
        return gf.losses.mse(model.sample(params, x), y)

    return gf.per_sample_grads(loss, **options)(model.params, torch.randn(5, 3), torch.randn(5, 2))


def grads_of(module):
    return {name: p.grad for name, p in module.named_parameters()}


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel, COMPILED], ids=["plain", "data parallel", "compiled"])
def test_grads_are_overwritten_and_all_others_are_none(wrap):
    module = tied()
    for p in module.parameters():
        p.grad = torch.full_like(p, 7.0)
    mean = per_sample(module).mean()
    kept = {name: grad.clone() for name, grad in mean.items()}
    gf.assign_grads(wrap(module), {name: grad for name, grad in mean.items() if name != "2.weight"})
    assert grads_of(module)["2.weight"] is None
    assert grads_of(module)["2.bias"] is None
    for name, p in module.named_parameters():
        if p.grad is None:
            continue
        assert torch.equal(p.grad, kept[name])
        p.grad.zero_()  # as an optimiser may
    assert all(torch.equal(mean[name], kept[name]) for name in kept)


def test_no_two_grads_share_memory():
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    one = torch.ones(2)
    gf.assign_grads(module, {"0.bias": one, "1.bias": one})
    module[0].bias.grad.mul_(3)
    assert torch.equal(module[1].bias.grad, torch.ones(2))
    assert torch.equal(one, torch.ones(2))


def test_unused_names_get_none():
    module = nn.ModuleDict({"used": nn.Linear(3, 2), "idle": nn.Linear(3, 2)})
    model = gf.stateless(module["used"])

    def loss(params, x):
        named = {name.removeprefix("used."): p for name, p in params.items() if name.startswith("used.")}
        return model.sample(named, x).square().sum()

    g = gf.per_sample_grads(loss)(dict(module.named_parameters()), torch.randn(4, 3))
    gf.assign_grads(module, g.mean(), unused=g.unused)
    assert [name for name, grad in grads_of(module).items() if grad is None] == ["idle.weight", "idle.bias"]


def test_an_optimizer_of_torch_steps_as_after_backward():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    twin = copy.deepcopy(module)
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    model = gf.stateless(module)
    f = gf.per_sample_grads(lambda p, x, y: gf.losses.mse(model.sample(p, x), y))
    ours, theirs = (torch.optim.AdamW(m.parameters(), lr=0.1) for m in (module, twin))
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in (ours, theirs)]
    for _ in range(3):
        gf.assign_grads(module, f(model.params, x, y).mean())
        theirs.zero_grad()
        nn.functional.mse_loss(twin(x), y).backward()
        for one in (ours, theirs, *schedules):
            one.step()
    for a, b in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("overflow", [False, True])
def test_a_grad_scaler_takes_its_scale_out_and_skips_what_overflowed(overflow):
    module = nn.Linear(3, 2)
    before = copy.deepcopy(module.state_dict())
    scaler, optimizer = torch.amp.GradScaler("cpu", init_scale=2.0**10), torch.optim.SGD(module.parameters(), lr=1.0)
    model = gf.stateless(module)
    f = gf.per_sample_grads(
        lambda p, x: model.sample(p, x).square().sum() * (1e38 if overflow else 1.0), loss_scale=scaler.get_scale()
    )
    g = f(model.params, torch.randn(4, 3) * (1e20 if overflow else 1.0))
    scaler.scale(torch.ones(()))  # as a training step does before its backward pass: it makes the scaler ready
    mean = g.mean()
    gf.assign_grads(module, mean, scale=scaler.get_scale())
    scaler.step(optimizer)
    scaler.update()
    for name, p in module.named_parameters():
        want = before[name] if overflow else before[name] - mean[name]
        torch.testing.assert_close(p.detach(), want, rtol=4 * torch.finfo(p.dtype).eps, atol=0)
    assert scaler.get_scale() == (2.0**9 if overflow else 2.0**10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_grad_has_the_dtype_of_its_parameter(dtype):
    module = nn.Linear(3, 2).to(dtype)
    gf.assign_grads(module, {"weight": torch.ones(2, 3), "bias": torch.ones(2, dtype=torch.float64)})
    assert {p.grad.dtype for p in module.parameters()} == {dtype}


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel, COMPILED], ids=["plain", "data parallel", "compiled"])
def test_parameters_are_written_in_place(wrap):
    module = tied()
    at = {name: p.data_ptr() for name, p in module.named_parameters()}
    others = {name: p.clone() for name, p in module.named_parameters()}
    new = {"0.weight": torch.randn(3, 3), "2.bias": torch.randn(2)}
    gf.load_params(wrap(module), new)
    for name, p in module.named_parameters():
        assert p.data_ptr() == at[name]
        assert torch.equal(p, new.get(name, others[name]))
    assert torch.equal(module[1].weight, new["0.weight"])
    assert gf.stateless(module).params["0.weight"].data_ptr() == at["0.weight"]


def test_a_step_by_make_step_is_kept():
    module = nn.Linear(3, 2)
    model = gf.stateless(module)
    run = gf.make_step(lambda p, x: model.sample(p, x).sum(), gf.clip_per_sample(1.0) >> gf.mean())
    grads, _, _ = run(model.params, run.step.init(model.params), torch.ones(4, 3))
    params = gf.apply_updates(model.params, gf.Updates({name: -grad for name, grad in grads.items()}))
    gf.load_params(module, params)
    assert all(torch.equal(p, params[name]) for name, p in module.named_parameters())


BAD = {
    "no module": (lambda f: f(3, {}), TypeError, "got an int; expected an nn.Module"),
    "no mapping": (lambda f: f(tied(), [torch.ones(2)]), TypeError, "got a list; expected a dict"),
    "unknown": (lambda f: f(tied(), {"5.weight": torch.ones(2)}), KeyError, "'5.weight'; expected names .* '0.weight'"),
    "second name": (lambda f: f(tied(), {"1.weight": torch.ones(3, 3)}), KeyError, "Use the key '0.weight'"),
    "shape": (
        lambda f: f(tied(), {"0.bias": torch.ones(3), "2.weight": torch.ones(3, 2)}),
        ValueError,
        r"'2.weight' of shape \(3, 2\); expected \(2, 3\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("function", [gf.assign_grads, gf.load_params])
def test_what_does_not_fit_is_refused(name, function):
    call, error, words = BAD[name]
    with pytest.raises(error, match=words):
        call(function)


def test_nothing_is_assigned_before_all_fits():
    module = tied()
    before = {name: p.clone() for name, p in module.named_parameters()}
    bad = {"0.bias": torch.ones(3), "2.weight": torch.ones(3, 2)}
    for function in (gf.assign_grads, gf.load_params):
        with pytest.raises(ValueError, match="expected"):
            function(module, bad)
    with pytest.raises(KeyError, match="frozen"):
        gf.assign_grads(module, {"0.bias": torch.ones(3), "2.bias": torch.ones(2)})
    with pytest.raises(KeyError, match="'x'"):
        gf.assign_grads(module, {"0.bias": torch.ones(3)}, unused=["x"])
    assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
