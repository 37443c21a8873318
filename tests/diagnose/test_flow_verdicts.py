"""Verdicts on generated nets against what plain torch measures, and on nets whose fault is known."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from tiers import every
from torch import nn

import gradfunc as gf
from gradfunc.diagnose._flow import _flow, _verdict

flow = gf.diagnose.gradient_flow
F64 = torch.float64
DRAWN = 382789046  # drawn once the thresholds were fixed
NETS = 60
ACTIVATIONS = [nn.Identity, nn.Tanh, nn.ReLU, nn.Sigmoid, nn.GELU, nn.ELU, nn.LeakyReLU, nn.SELU, nn.SiLU, nn.Softplus]


@dataclass(frozen=True)
class Net:
    depth: int
    width: int
    activation: type[nn.Module]
    gain: float  # sqrt(fan_in mean(w^2)); torch's default is 1/sqrt(3)
    norm: type[nn.Module] | None
    seed: int

    @classmethod
    def drawn(cls, k):
        choose = random.Random(DRAWN + k)
        gain = choose.choice([3**-0.5, 1.0, 2**0.5, choose.uniform(0.3, 3.0)])
        norm = choose.choice([None, None, nn.BatchNorm1d, nn.LayerNorm])
        width = choose.choice([16, 32, 64, 128])
        return cls(choose.randint(2, 60), width, choose.choice(ACTIVATIONS), gain, norm, choose.randrange(2**31))

    def made(self):
        torch.manual_seed(self.seed)
        parts = []
        for _ in range(self.depth):
            layer = nn.Linear(self.width, self.width)
            nn.init.normal_(layer.weight, std=self.gain / math.sqrt(self.width))
            nn.init.zeros_(layer.bias)
            parts += [layer, *([] if self.norm is None else [self.norm(self.width)]), self.activation()]
        module = nn.Sequential(*parts, nn.Linear(self.width, self.width)).to(F64)
        return module, (torch.randn(64, self.width, dtype=F64), torch.randn(64, self.width, dtype=F64))


def measured(module, x, y):
    """Per linear layer, by plain torch: the gradient's norm at the block's end over that at the last layer; |g|/|w|;
    the share of units that are 0."""
    h, ends, layers = x, [], []
    for part in module:
        h = part(h)
        if isinstance(part, nn.Linear):
            ends.append(h)
            layers.append(part)
        ends[-1] = h
    grads = torch.autograd.grad(nn.MSELoss()(h, y), [*ends, *(layer.weight for layer in layers)])
    n = len(ends)
    changes = [(g.norm() / grads[n - 1].norm()).item() for g in grads[:n]]
    ratios = [(g.norm() / layer.weight.norm()).item() for g, layer in zip(grads[n:], layers, strict=True)]
    dead = [(end == 0).all(0).double().mean().item() for end in ends]
    return changes, ratios, dead


def true_of(verdict, changes, ratios, dead):
    """Whether a verdict is what was measured: the net's, and no more severe one was due."""
    # the first layer is among those before any other: it decides
    exploding = changes[0] > 100 or max(ratios) > 1000
    vanishing = changes[0] < 0.01 or min(ratios) < 2**-24
    gone = max(dead) > 0.9
    due = "dead" if gone else "exploding" if exploding else "vanishing" if vanishing else None
    return verdict == due if due else verdict in ("healthy", "saturated")


def steepness(changes):
    """The measured factor a layer on the way back, by the first and the last."""
    return changes[0] ** (1 / (len(changes) - 1))


def agrees(report, module, x, y):
    changes, ratios, dead = measured(module, x, y)
    compared = [row for row in report.rows if row.change is not None]
    assert len(compared) == len(changes)
    for row, change in zip(compared, changes, strict=True):
        assert math.isclose(row.change, change, rel_tol=1e-6)
    assert true_of(report.verdict, changes, ratios, dead)
    # over a net that vanishes or explodes by its factor, the fitted one and its two ends point the same way
    total = report.trend.total
    assert math.isclose(total, changes[0], rel_tol=1e-6)
    if not 1e-4 < total < 1e4:
        assert (report.trend.factor > 1) == (steepness(changes) > 1)
        assert (report.verdict == "exploding") >= (total > 1e4 and max(dead) <= 0.9)


@pytest.mark.parametrize("k", every(4, range(NETS)))
def test_verdicts_on_generated_nets_are_what_was_measured(k):
    module, (x, y) = Net.drawn(k).made()
    agrees(flow(module, nn.MSELoss(), (x, y), quantile_sample=100, bins=2), module, x, y)


@pytest.mark.slow
def test_the_nets_are_of_every_kind():
    found = Counter()
    for k in range(NETS):
        module, batch = Net.drawn(k).made()
        found[flow(module, nn.MSELoss(), batch, quantile_sample=100, bins=2).verdict] += 1
    assert found["vanishing"] >= 5
    assert found["exploding"] >= 5
    assert found["healthy"] >= 5


@pytest.mark.parametrize(("gain", "verdict"), [(0.7, "vanishing"), (1.0, "healthy"), (1.5, "exploding")])
def test_relu_nets_whose_first_and_last_gradients_are_alike(gain, verdict):
    # Every layer's weight gradient has the same size here: forward and backward factors multiply to one number.
    module, (x, y) = Net(30, 64, nn.ReLU, gain * 2**0.5, None, 5).made()
    report = flow(module, nn.MSELoss(), (x, y))
    first, last = report.rows[1].gradient.norm, report.rows[-2].gradient.norm
    assert 0.1 < first / last < 10  # blind
    assert report.verdict == verdict
    agrees(report, module, x, y)


def test_the_ratio_to_the_weights_tells_what_no_change_over_depth_does():
    # Two layers; all gradients as small as the loss: what a change from layer to layer cannot show.
    module = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).to(F64)
    x, y = torch.randn(16, 8, dtype=F64), torch.randn(16, 8, dtype=F64)
    small = flow(
        module, lambda out, target, reduction="mean": 1e-9 * nn.MSELoss(reduction=reduction)(out, target), (x, y)
    )
    assert small.verdict == "vanishing"
    assert "|gradient| / |weight|" in small.rows[0].evidence
    assert flow(module, nn.MSELoss(), (x, 1e7 * y)).verdict == "exploding"
    assert flow(module, nn.MSELoss(), (x, y)).ok
    assert flow(module, nn.MSELoss(), (x, y), lr=1e3).verdict == "exploding"
    assert flow(module, nn.MSELoss(), (x, y), lr=1e-9).verdict == "vanishing"


def test_a_branch_with_small_gradients_is_no_vanishing_net():
    # Queries and keys of attention that is nearly uniform: their gradients are small, those of the layers before not.
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(5))
            for layer in (self.q, self.k):
                nn.init.normal_(layer.weight, std=1e-3)

        def forward(self, x):
            h = self.first(x)
            mixed = nn.functional.scaled_dot_product_attention(self.q(h), self.k(h), self.v(h))
            return self.out(h + mixed)

    torch.manual_seed(0)
    x = torch.randn(8, 6, 16, dtype=F64)
    report = flow(Attention().to(F64), nn.MSELoss(), (x, x))
    assert report.row("q").change < 0.01
    assert report.ok


def test_dead_and_saturated_layers_are_told():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 1)).to(F64)
    x, y = torch.randn(64, 8, dtype=F64), torch.randn(64, 1, dtype=F64)
    with torch.no_grad():
        module[2].bias[:5] = -1000
    report = flow(module, nn.MSELoss(), (x, y))
    expected = (module[:4](x) == 0).all(0).double().mean().item()
    assert math.isclose(report.row("2").dead, expected)
    assert report.row("2").dead >= 0.25
    with torch.no_grad():
        module[2].bias[:] = -1000
    report = flow(module, nn.MSELoss(), (x, y))
    assert report.verdict == report.row("2").verdict == "dead"
    assert report.row("0").verdict == "vanishing"
    assert report.row("0").evidence == "its gradient is exactly 0"
    wide = nn.Sequential(nn.Linear(8, 20), nn.Tanh(), nn.Linear(20, 1)).to(F64)
    with torch.no_grad():
        wide[0].weight *= 10
    report = flow(wide, nn.MSELoss(), (x, y))
    share = ((1 - torch.tanh(wide[0](x)) ** 2) < 0.05).double().mean().item()
    assert share > 0.5
    assert math.isclose(report.row("0").saturated, share)
    assert report.verdict == "saturated"
    sigmoid = nn.Sequential(nn.Linear(8, 20), nn.Sigmoid(), nn.Linear(20, 1)).to(F64)
    a = sigmoid[:2](4 * x)
    share = (4 * a * (1 - a) < 0.05).double().mean().item()
    assert math.isclose(flow(sigmoid, nn.MSELoss(), (4 * x, y)).row("0").saturated, share)


def test_dead_channels_of_a_convolution_are_channels():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 2)).to(F64)
    with torch.no_grad():
        module[0].bias[:2] = -1000
    report = flow(module, nn.CrossEntropyLoss(), (torch.randn(5, 3, 6, 6, dtype=F64), torch.tensor([0, 1, 0, 1, 1])))
    assert report.row("0").units == 8
    assert report.row("0").dead == 0.25


def test_the_seed_files_nets():
    def verdict(activation, norm=None, layers=5):
        model = gf.models.block(10, layers=layers, activation=activation, norm=norm, dtype=F64)
        torch.manual_seed(0)
        batch = torch.randn(100, 10, dtype=F64), torch.randn(100, 1, dtype=F64)
        return flow(model, nn.MSELoss(), batch).verdict

    assert verdict(torch.sigmoid) == "vanishing"
    assert verdict(torch.sigmoid, "batch") == "healthy"
    assert verdict(torch.tanh, layers=12) == "vanishing"
    assert verdict(torch.tanh, "batch", layers=12) == "healthy"
    assert verdict(torch.relu, "batch", layers=50) == "exploding"  # batch norm is not all one needs


@pytest.mark.parametrize("mutant", ["blind to change", "upside down", "reference is the first"])
def test_a_broken_verdict_is_caught(mutant, monkeypatch):
    broken = {
        "blind to change": lambda: monkeypatch.setattr(_verdict, "CHANGE", math.inf),
        "upside down": lambda: monkeypatch.setattr(_verdict, "CHANGE", 1 / _verdict.CHANGE),
        "reference is the first": lambda: monkeypatch.setattr(
            _flow, "reversed", lambda items: list(items), raising=False
        ),
    }
    broken[mutant]()
    caught = 0
    for net in (
        Net(12, 32, nn.Tanh, 0.6, None, 1),
        Net(30, 32, nn.Tanh, 0.6, None, 1),
        Net(30, 32, nn.ReLU, 3.0, None, 1),
        Net(3, 32, nn.Tanh, 1.0, None, 1),
    ):
        module, (x, y) = net.made()
        try:
            agrees(flow(module, nn.MSELoss(), (x, y)), module, x, y)
        except AssertionError:
            caught += 1
    assert caught
