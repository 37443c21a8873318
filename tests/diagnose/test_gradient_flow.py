"""`gf.diagnose.gradient_flow` against plain torch, and what it must leave alone."""

from __future__ import annotations

import copy
import gc
import json
import math
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradfunc as gf
from gradfunc import _layers
from gradfunc._zoo import MODELS
from gradfunc.diagnose._flow import _flow, _measure

flow = gf.diagnose.gradient_flow
F64 = torch.float64


def tanh_net(depth=4, width=12, **options):
    torch.manual_seed(1)
    parts = [part for _ in range(depth) for part in (nn.Linear(width, width), nn.Tanh())]
    return nn.Sequential(*parts, nn.Linear(width, 3)).to(options.pop("dtype", F64))


def data(n=20, width=12, out=3, dtype=F64):
    torch.manual_seed(2)
    return torch.randn(n, width, dtype=dtype), torch.randn(n, out, dtype=dtype)


def by_hand(module, criterion, x, y):
    """Per linear layer of a sequential: its activation, its gradient, and gradients of its parameters; plain torch."""
    module = copy.deepcopy(module)
    h, rows = x, []
    for layer in module:
        h = layer(h)
        if isinstance(layer, nn.Linear):
            rows.append([layer, h])
        else:
            rows[-1][1] = h
    for _, h in rows:
        h.retain_grad()
    criterion(h, y).backward()
    return rows


def close(a, b):
    return abs(a - b) <= 1e-12 * abs(b)


def agrees(report, rows):
    """The law: rows in forward order, each with the values and gradients of plain torch."""
    assert len(report.rows) == len(rows)
    last = rows[-1][1].grad.norm().item()
    for k, (row, (layer, h)) in enumerate(zip(report.rows, rows, strict=True)):
        assert close(row.activations.rms, h.detach().square().mean().sqrt().item())
        assert close(row.activation_gradient.rms, h.grad.square().mean().sqrt().item())
        assert close(row.activation_gradient.std, h.grad.std(correction=0).item())
        assert close(row.weights.norm, layer.weight.detach().norm().item())
        assert close(row.gradient.norm, layer.weight.grad.norm().item())
        assert close(row.ratio, (layer.weight.grad.norm() / layer.weight.norm()).item())
        assert close(row.gain, math.sqrt(layer.in_features * layer.weight.detach().square().mean().item()))
        assert close(row.norm, h.grad.norm().item())
        assert close(row.change, h.grad.norm().item() / last)
        if k:
            assert close(row.factor, (rows[k - 1][1].grad.norm() / h.grad.norm()).item())
        else:
            assert row.factor is None


@pytest.mark.parametrize("criterion", [nn.MSELoss(), nn.SmoothL1Loss(), F.l1_loss])
def test_rows_are_those_of_plain_torch(criterion):
    module, (x, y) = tanh_net(), data()
    agrees(flow(module, criterion, (x, y)), by_hand(module, criterion, x, y))


def test_updates_are_the_rate_times_the_ratio():
    module, batch = tanh_net(), data()
    report = flow(module, nn.MSELoss(), batch, lr=0.1)
    assert all(row.update == 0.1 * row.ratio for row in report.rows)
    assert "update / weight" in str(report)


MUTANTS = {
    "gradient of the sum": lambda patch: patch.setattr(
        _measure, "mean_loss", lambda problem, model, mean=_measure.mean_loss: problem.size * mean(problem, model)
    ),
    "before the activation": lambda patch: patch.setattr(_layers.Open, "activate", lambda *_: None),
    "gradient before the activation": lambda patch: patch.setattr(_layers.Use, "last", property(lambda u: u.output)),
    "layers in reverse": lambda patch: patch.setattr(
        _layers.Walk, "uses", lambda self, uses=_layers.Walk.uses: uses(self)[::-1]
    ),
    "factor upside down": lambda patch: patch.setattr(_flow, "_quotient", lambda a, b: b / a),
    "fan out": lambda patch: patch.setattr(
        _measure, "_gain", lambda use, names, params: params[names[0]].square().sum(0).mean().sqrt().item()
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_broken_flow_is_caught(mutant, monkeypatch):
    torch.manual_seed(1)
    module, (x, y) = nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 3)).double(), data()
    rows = by_hand(module, nn.MSELoss(), x, y)
    agrees(flow(module, nn.MSELoss(), (x, y)), rows)
    MUTANTS[mutant](monkeypatch)
    with pytest.raises(AssertionError):
        agrees(flow(module, nn.MSELoss(), (x, y)), rows)


def test_the_trend_is_a_line_through_the_logarithms():
    module, (x, y) = tanh_net(depth=6), data()
    rows = by_hand(module, nn.MSELoss(), x, y)
    logs = torch.stack([h.grad.norm().log() for _, h in rows])
    back = torch.arange(len(rows) - 1, -1, -1, dtype=F64)
    design = torch.stack([torch.ones_like(back), back], 1)
    line = torch.linalg.lstsq(design, logs[:, None]).solution[:, 0]
    left = logs - design @ line
    error = (left.square().sum() / (len(rows) - 2) * torch.linalg.inv(design.T @ design)[1, 1]).sqrt()
    t = flow(module, nn.MSELoss(), (x, y)).trend
    assert math.isclose(t.factor, line[1].exp().item(), rel_tol=1e-10)
    assert math.isclose(t.interval[1], (line[1] + 2.5705818366147395 * error).exp().item(), rel_tol=1e-10)  # t, 5 df
    assert math.isclose(t.total, (logs[0] - logs[-1]).exp().item(), rel_tol=1e-10)


def test_spread_is_that_of_the_samples_gradients():
    module, (x, y) = tanh_net(), data(n=6)
    report = flow(module, nn.MSELoss(), (x, y), per_sample=True)
    for row, (layer, _) in zip(report.rows, by_hand(module, nn.MSELoss(), x, y), strict=True):
        g = torch.stack([dict(_grads(module, x[i : i + 1], y[i : i + 1]))[row.parameters[0]] for i in range(6)])
        g = 3 * g  # a sample's loss is the sum of its three elements
        mean = g.mean(0)
        torch.testing.assert_close(mean, 3 * layer.weight.grad, rtol=1e-10, atol=1e-14)
        trace = (g - mean).square().sum().item() / 6
        assert math.isclose(row.spread.trace, trace, rel_tol=1e-8)
        assert math.isclose(row.spread.signal_to_noise, mean.norm().item() / math.sqrt(trace), rel_tol=1e-8)
    assert flow(module, nn.MSELoss(), (x, y)).rows[0].spread is None


def _grads(module, x, y):
    named = dict(module.named_parameters())
    return zip(named, torch.autograd.grad(F.mse_loss(module(x), y), list(named.values())), strict=True)


def test_what_cannot_be_had_of_samples_is_said():
    module, (x, y) = tanh_net(), data()
    whole = gf.whole(lambda model, batch: F.mse_loss(model(batch[0]), batch[1]))
    report = flow(module, whole, (x, y), per_sample=True)
    assert report.rows[0].spread is None
    assert "no spread of samples" in report.notes[0]
    agrees(report, by_hand(module, nn.MSELoss(), x, y))


def test_norms_belong_to_the_product_before_them():
    torch.manual_seed(0)
    module = nn.Sequential(
        *[nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()], nn.Linear(8, 1)
    ).double()
    report = flow(module, nn.MSELoss(), data(width=8, out=1))
    assert [row.layer for row in report.rows if row.change is not None] == ["0", "3", "6"]
    assert report.row("0").norm == report.row("1").activation_gradient.norm
    assert report.row("3").factor == report.row("1").activation_gradient.norm / report.row("4").activation_gradient.norm
    assert report.row("1").factor is None


def test_tied_layers_have_a_row_for_each_use():
    model = MODELS["tied embedding and head"]
    torch.manual_seed(3)
    report = flow(model.module(), model.criterion, model.batch())
    assert [row.name for row in report.rows] == ["table (1/2)", "mix", "norm", "table (2/2)"]
    assert report.row("table", 1).gradient == report.row("table", 2).gradient
    assert report.row("table", 1).activation_gradient != report.row("table", 2).activation_gradient
    with pytest.raises(KeyError, match="no use 3 of 'table'"):
        report.row("table", 3)


@pytest.mark.parametrize("name", ["LSTM", "checkpointed block", "complex weights", "multi-head attention", "MLP"])
def test_it_reports_on_models_of_the_zoo(name):
    model = MODELS[name]
    torch.manual_seed(3)
    module, batch = model.module(), model.batch()
    report = flow(gf.stateless(module, in_dims=model.in_dims, out_dims=model.out_dims), model.criterion, batch)
    json.dumps(report.to_dict(), allow_nan=False)
    assert str(report)
    assert report.rows


def test_nothing_is_left_behind_or_changed():
    module = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2))
    x, y = torch.randn(16, 6), torch.randn(16, 2)
    state, before = copy.deepcopy(module.state_dict()), torch.random.get_rng_state()
    attributes = {name: set(vars(m)) for name, m in module.named_modules()}
    first = flow(module, nn.MSELoss(), (x, y))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert {name: set(vars(m)) for name, m in module.named_modules()} == attributes
    for m in module.modules():
        assert not any((m._forward_hooks, m._backward_hooks, m._forward_pre_hooks, m._backward_pre_hooks))
    assert all(p._backward_hooks is None and not p._post_accumulate_grad_hooks for p in module.parameters())
    assert flow(module, nn.MSELoss(), (x, y)) == first
    assert flow(module, nn.MSELoss(), (x, y), seed=1) != first


def test_no_activation_lives_on():
    kept = []

    class Tap(nn.Module):
        def forward(self, x):
            kept.append(weakref.ref(x))
            return x

    module = nn.Sequential(nn.Linear(4, 4), Tap(), nn.ReLU(), Tap(), nn.Linear(4, 2), Tap())
    report = flow(module, nn.MSELoss(), (torch.randn(5, 4), torch.randn(5, 2)))
    gc.collect()
    assert len(kept) == 3
    assert all(ref() is None for ref in kept)
    assert len(report.rows) == 2


def test_no_gradient_of_activations_is_kept_while_the_pass_runs():
    alive, most = weakref.WeakSet(), []

    def note(found, tensors, **options):
        if isinstance(tensors, torch.Tensor):
            alive.add(tensors)
            most.append(len(alive))
        return found(tensors, **options)

    torch.manual_seed(0)
    module = nn.Sequential(*[nn.Linear(4, 4) for _ in range(30)])
    plain = _flow.describe
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_flow, "describe", lambda tensors, **options: note(plain, tensors, **options))
        flow(module, nn.MSELoss(), (torch.randn(5, 4), torch.randn(5, 4)))
    assert len(most) == 60
    assert max(most) <= 2


def test_half_types_are_described_in_wider_ones():
    module, (x, y) = tanh_net(dtype=torch.bfloat16), data(dtype=torch.bfloat16)
    report = flow(module, nn.MSELoss(), (x, y))
    h = module[1](module[0](x)).detach().double()
    assert math.isclose(report.rows[0].activations.rms, h.square().mean().sqrt().item(), rel_tol=1e-12)


def test_nan_and_inf_are_named():
    module, (x, y) = tanh_net(), data()
    bad = x.clone()
    bad[3, 2] = math.nan
    with pytest.raises(ValueError, match="NaN in input 0"):
        flow(module, nn.MSELoss(), (bad, y))
    with pytest.raises(ValueError, match="NaN in the target"):
        flow(module, nn.MSELoss(), (x, y * math.nan))
    with torch.no_grad():
        module[2].weight[0, 0] = math.inf
    report = flow(nn.Sequential(*module[:4], nn.Linear(12, 3).double()), nn.MSELoss(), (x * 0 + 1, y))
    assert report.verdict == "non-finite"
    assert "weights" in report.row("2").evidence
    json.dumps(report.to_dict(), allow_nan=False)


def test_what_is_not_finite_has_no_norm_and_no_ratio():
    module, (x, y) = tanh_net(), data()
    for target in (y * math.inf, torch.cat([y[:-1], y[-1:] * math.inf])):
        report = flow(module, nn.MSELoss(), (x, target))
        assert report.verdict == "non-finite"
        for row in report.rows:
            assert (row.norm, row.ratio, row.change, row.factor) == (None, None, None, None)


def test_samples_that_draw_warn_of_nothing(recwarn):
    module, (x, y) = tanh_net(), data()
    report = flow(nn.Sequential(nn.Dropout(0.5), *module), nn.MSELoss(), (x, y), per_sample=True)
    assert report.rows[0].spread is not None
    assert not recwarn.list


class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 3).double()

    def forward(self, x):
        raise KeyError("mine")


def test_bad_input_is_refused():
    module, (x, y) = tanh_net(), data()
    with pytest.raises(ValueError, match="no trainable parameter"):
        flow(nn.Tanh(), nn.MSELoss(), (x, x))
    lonely = gf.models.Pure(lambda: {"w": torch.ones(3)}, lambda params, x: x)
    with pytest.raises(ValueError, match="without layers"):
        flow(lonely, nn.MSELoss(), (x, x))
    with pytest.raises(KeyError, match="mine"):
        flow(Fails(), nn.MSELoss(), (x, y))
    with pytest.raises(ValueError, match="lr=-1"):
        flow(module, nn.MSELoss(), (x, y), lr=-1)
    with pytest.raises(ValueError, match="bins=0"):
        flow(module, nn.MSELoss(), (x, y), bins=0)
    with pytest.raises(TypeError, match="per_sample='yes'"):
        flow(module, nn.MSELoss(), (x, y), per_sample="yes")
    with pytest.raises(ValueError, match="a batch of 0 samples"):
        flow(module, nn.MSELoss(), (x[:0], y[:0]))
    with pytest.raises(ValueError, match=r"without a gradient"):
        flow(module, gf.whole(lambda model, batch: model(batch[0]).detach().mean()), (x, y))


def test_it_runs_on_a_device(device):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)).double()
    x, y = data()
    agrees(flow(copy.deepcopy(module).to(device), nn.MSELoss(), (x.to(device), y.to(device))),
           by_hand(module, nn.MSELoss(), x, y))  # fmt: skip


def test_long_tables_are_cut():
    torch.manual_seed(0)
    module = nn.Sequential(*[nn.Linear(4, 4) for _ in range(60)])
    report = flow(module, nn.MSELoss(), (torch.randn(5, 4), torch.randn(5, 4)))
    assert "... 20 more" in str(report)
    assert len(report.to_dict()["rows"]) == 60
