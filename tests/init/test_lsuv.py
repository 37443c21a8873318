"""LSUV: unit variance before every activation, on the batch, by scaling orthogonal weights in forward order."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradfunc as gf
from gradfunc._layers import Walk
from gradfunc.init import _lsuv

F64 = torch.float64


def batch(*shape, scale=3.0):
    return scale * torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(0)) + 1


class Net(nn.Module):
    """Convolutions, an in-place activation, a norm, a skip, a bias that matters, and a layer used twice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.GroupNorm(2, 6)
        self.wide = nn.Linear(6 * 16, 32)
        self.same = nn.Linear(32, 32)
        self.head = nn.Linear(32, 3)
        self.unused = nn.Linear(2, 2)

    def pre(self, x):
        """What each layer gives, before its activation."""
        first = self.conv(x)
        hidden = self.norm(F.relu(first)).flatten(1)
        second = self.wide(hidden)
        third = self.same(torch.tanh(second))
        fourth = self.same(third.clone().relu_() + torch.tanh(second))
        return [first, second, third, fourth, self.head(F.silu(fourth))]

    def forward(self, x):
        x = self.conv(x).relu_()
        x = self.wide(self.norm(x).flatten(1))
        kept = x.tanh()
        x = self.same(kept).relu_() + kept
        return self.head(F.silu(self.same(x)))


def net():
    torch.manual_seed(3)
    made = Net().double()
    nn.init.constant_(made.wide.bias, 0.5)
    return made


def outputs(module, params, x):
    moved = copy.deepcopy(module)
    gf.load_params(moved, params)
    with torch.no_grad():
        return moved.pre(x)


def check(params, report, x):
    """The law: variance 1 at the first use of each weight, whose direction is the one drawn."""
    module = net()
    first = dict(zip(["conv", "wide", "same", "same again", "head"], outputs(module, params, x), strict=True))
    for row in report.rows:
        layer = row.name.removesuffix(".weight")
        assert float(first[layer].var(correction=0)) == pytest.approx(1, abs=report.tolerance)
        assert row.after == pytest.approx(float(first[layer].var(correction=0)), rel=1e-9)
        drawn = gf.init.orthogonal()(params[row.name].shape, generator=gf.init.generator(0, row.name), dtype=F64)
        assert F.cosine_similarity(drawn.flatten(), params[row.name].flatten(), dim=0) == pytest.approx(1, abs=1e-14)


def test_every_layer_gives_variance_one_before_its_activation():
    x, module = batch(64, 2, 4, 4), net()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    params, report = gf.init.lsuv_with_report(module, x)
    assert [row.name for row in report.rows] == ["conv.weight", "wide.weight", "same.weight", "head.weight"]
    assert report.ok
    check(params, report, x)
    assert set(report.unreached) == set(params) - {row.name for row in report.rows}
    assert "unused.weight" in report.unreached
    assert all(torch.equal(params[name], before[name]) for name in report.unreached)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert not any(m._forward_hooks for m in module.modules())
    assert not any(value.requires_grad for value in params.values())
    again = gf.init.lsuv(module, x)
    assert all(torch.equal(value, params[name]) for name, value in again.items())
    other = gf.init.lsuv(module, x, seed=1)
    assert not torch.equal(other["conv.weight"], params["conv.weight"])


def test_without_a_bias_one_division_does():
    model = gf.stateless(gf.models.mlp([8, 64, 64, 64, 5], bias=False, dtype=F64))
    params, report = gf.init.lsuv_with_report(model, batch(128, 8), tolerance=1e-9)
    assert [row.passes for row in report.rows] == [2] * 4
    assert max(abs(row.after - 1) for row in report.rows) < 1e-12
    assert float(model(params, batch(128, 8)).var(correction=0)) == pytest.approx(1, abs=1e-12)


def test_batches_of_several_inputs_schemes_and_limits():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 8, bias=False)

        def forward(self, x, *, y):
            return self.a(x) * y

    x, y = batch(16, 4), batch(16, 1)
    model = Two().double()
    named = gf.init.lsuv(model, {"x": x, "y": y}, scheme=gf.init.normal(2.0))
    assert float((x @ named["a.weight"].T).var(correction=0)) == pytest.approx(1, abs=1e-2)
    _, report = gf.init.lsuv_with_report(model, {"x": x, "y": y}, most=1)
    assert not report.ok
    assert [row.passes for row in report.rows] == [1]
    assert "a.weight" in str(report)
    assert report.to_dict()["rows"][0]["passes"] == 1


def test_norms_by_the_batch_and_parametrised_weights():
    module = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(8, 2))
    )
    _, report = gf.init.lsuv_with_report(module.double(), batch(32, 4))
    assert [row.name for row in report.rows] == ["0.weight"]  # a weight that is made of others is nobody's to scale
    assert any("original" in name for name in report.unreached)


def test_what_the_model_draws_follows_from_the_seed():
    model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 3)).double()
    x, before = batch(32, 4), torch.random.get_rng_state()
    first, second, other = (gf.init.lsuv(model, x, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["2.weight"], other["2.weight"])


def test_inference_mode_is_refused():
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"gf.init.lsuv.*got inference mode"):
        gf.init.lsuv(nn.Linear(4, 2).double(), batch(3, 4))


BAD = {
    "no product": (lambda: (nn.LayerNorm(4).double(), batch(3, 4)), r"expected a weight of a linear layer"),
    "no variance": (
        lambda: (nn.Linear(4, 2).double(), torch.zeros(3, 4, dtype=F64)),
        r"output of variance .* at 'weight'",
    ),
    "not finite": (lambda: (nn.Linear(4, 2).double(), torch.full((3, 4), torch.inf, dtype=F64)), r"variance nan at"),
    "tolerance": (lambda: (nn.Linear(4, 2), batch(3, 4), {"tolerance": 0}), r"tolerance=0"),
    "scheme": (lambda: (nn.Linear(4, 2), batch(3, 4), {"scheme": "normal"}), r"scheme='normal'"),
    "seed": (lambda: (nn.Linear(4, 2), batch(3, 4), {"seed": -1}), r"seed=-1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case):
    make, text = BAD[case]
    model, x, *options = make()
    if case == "no variance":
        nn.init.zeros_(model.bias)
    with pytest.raises((TypeError, ValueError), match=text):
        gf.init.lsuv(model, x, **(options[0] if options else {}))


def test_the_model_s_own_error_passes():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        gf.init.lsuv(nn.Linear(4, 2), torch.ones(3, 5))


def after_the_activation(monkeypatch):
    monkeypatch.setattr(_lsuv, "Walk", lambda leaves, note, before: Walk(leaves, note))


def all_at_once(monkeypatch):
    scaled = _lsuv._scaled
    first = {}

    def broken(call, outputs, params, name, *rest):
        first.update({} if first else params)
        return scaled(call, outputs, {**first, name: params[name]}, name, *rest)

    monkeypatch.setattr(_lsuv, "_scaled", broken)


def by_the_variance(monkeypatch):
    monkeypatch.setattr(_lsuv.math, "sqrt", lambda value: value)


@pytest.mark.parametrize("mutant", [after_the_activation, all_at_once, by_the_variance])
def test_mutants_are_caught(mutant, monkeypatch):
    x = batch(64, 2, 4, 4)
    with monkeypatch.context() as patch:
        mutant(patch)
        params, report = gf.init.lsuv_with_report(net(), x)
    if report.ok:
        with pytest.raises(AssertionError):
            check(params, report, x)


def test_on_a_device(device):
    model = nn.Linear(4, 8).to(device)
    params, report = gf.init.lsuv_with_report(model, torch.randn(64, 4, device=device))
    assert report.ok
    assert params["weight"].device.type == device
