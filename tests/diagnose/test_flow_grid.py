"""The grid of nets: each row is `gradient_flow` of that net, beside the theory of its blocks."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import pytest
import torch
from scipy import stats
from torch import nn

import gradfunc as gf

AXES = {
    "activations": ["identity", "relu", "sigmoid", torch.tanh],
    "inits": {"default": gf.init.torch_default(), "He": gf.init.kaiming_normal(), "orthogonal": gf.init.orthogonal()},
    "norms": [None, "batch", "layer"],
    "depths": [1, 4],
    "widths": [20, 30],
}


@pytest.fixture(scope="module")
def grid():
    return gf.diagnose.flow_grid(**AXES, n_features=6, samples=40, seed=3)


def test_every_combination_is_there_once(grid):
    names = ["identity", "relu", "sigmoid", "tanh"]
    wanted = list(itertools.product(names, AXES["inits"], AXES["norms"], AXES["depths"], AXES["widths"]))
    assert [(r.activation, r.init, r.norm, r.depth, r.width) for r in grid.rows] == wanted
    assert len({json.dumps(row.flow.to_dict()) for row in grid.rows}) == len(wanted)


def test_a_row_is_the_flow_of_that_net(grid):
    """By hand: the same data, a module of torch with the weights that the scheme draws."""
    generator = torch.Generator().manual_seed(3)
    x = nn.functional.normalize(torch.randn(40, 6, generator=generator)) * 6**0.5
    y = (x[:, :1] > 0).float()
    row = grid.row(activation="relu", init="He", norm=None, depth=4, width=20)
    sizes = [6, 20, 20, 20, 20]
    layers = {}
    for i, (a, b) in enumerate(itertools.pairwise(sizes), 1):
        layers[f"h{i}"], layers[f"a{i}"] = nn.Linear(a, b), nn.ReLU()
    module = nn.Sequential()
    for name, layer in {**layers, "o": nn.Linear(20, 1)}.items():
        module.add_module(name, layer)
    for name, value in module.named_parameters():
        drawn = gf.init.kaiming_normal() if name.endswith("weight") else gf.init.zeros()
        with torch.no_grad():
            value.copy_(drawn(tuple(value.shape), generator=gf.init.generator(3, name)))
    activations = []
    out = x
    for name, layer in module.named_children():
        out = layer(out)
        if name.startswith("a"):
            out.retain_grad()
            activations.append(out)
    nn.functional.binary_cross_entropy_with_logits(out, y).backward()
    norms = [float(a.grad.norm()) for a in activations]
    assert row.total == pytest.approx(norms[0] / norms[-1], rel=1e-5)
    assert row.factor == pytest.approx((norms[0] / norms[-1]) ** (1 / 3), rel=1e-5)
    ratios = [float(v.grad.norm() / v.detach().norm()) for n, v in module.named_parameters() if n.endswith("weight")]
    assert row.ratio == pytest.approx(min(ratios), rel=1e-5)


def test_theory_is_that_of_the_blocks(grid):
    sigmoid = grid.row(activation="sigmoid", init="default", norm=None, depth=4, width=30)
    path = gf.init.variance_path("sigmoid", 3**-0.5, 4, variance=1 / 3 + 1 / 18, bias_variance=1 / 90)
    assert sigmoid.theory == pytest.approx(math.prod(f.backward for f in path.layers[1:]) ** (1 / 3), rel=1e-12)
    assert grid.row(activation="relu", init="He", norm=None, depth=4).theory == pytest.approx(1, rel=1e-9)
    assert grid.row(activation="relu", norm="batch", depth=4).theory == pytest.approx(
        math.sqrt(math.pi / (math.pi - 1)), rel=1e-9
    )
    assert grid.row(activation="relu", init="He", norm="layer", depth=4).theory == pytest.approx(1, rel=1e-9)
    assert all(row.theory is None and row.factor is None and row.total == 1 for row in grid.rows if row.depth == 1)


@pytest.mark.slow
def test_measured_factors_are_theory_s():
    """Twelve seeds: the logarithm's mean within Student's interval (1e-9), and the shift that finite width makes.

    The logarithm of a squared norm varies by at most 5 / width a layer (ReLU; Hanin and Nica 2020), so its mean lies
    below that of the expectation by half of this.
    """
    cases = [("identity", None), ("relu", None), ("tanh", None), ("sigmoid", None), ("relu", "batch")]
    for activation, norm in cases:
        logs = []
        for seed in range(12):
            options = {"inits": {"default": gf.init.torch_default()}, "norms": [norm], "depths": [5], "widths": [200]}
            row = gf.diagnose.flow_grid([activation], **options, samples=400, seed=seed).rows[0]
            logs.append(math.log(row.factor / row.theory))
        values = torch.tensor(logs, dtype=torch.float64)
        interval = stats.t.isf(5e-10, 11) * float(values.std()) / math.sqrt(12)
        assert interval + 5 / 200 < math.log(2) / 2  # what tells relu from identity
        assert abs(float(values.mean())) < interval + 5 / 200


def test_it_tells_what_the_seed_says():
    grid = gf.diagnose.flow_grid(["relu"], inits={"default": gf.init.torch_default()}, norms=[None], depths=[5, 50])
    assert [row.verdict for row in grid.rows] == ["healthy", "vanishing"]
    assert not grid.ok
    assert grid.row(depth=50).ratio < 1e-12  # |gradient| / |weight| sees what shrinks evenly


def test_report(grid):
    text = str(grid)
    assert "Gradients through depth (40 samples)" in text
    out = json.loads(json.dumps(grid.to_dict()))
    assert len(out["rows"]) == len(grid.rows)
    assert out["rows"][0]["verdict"] == grid.rows[0].verdict
    with pytest.raises(KeyError, match="no net with"):
        grid.row(depth=99)
    with pytest.raises(dataclasses.FrozenInstanceError):
        grid.seed = 4


def test_progress_and_purity():
    said, state = [], torch.get_rng_state()
    gf.diagnose.flow_grid(
        ["relu"], inits={"He": gf.init.kaiming_normal()}, norms=[None], samples=8, progress=said.append
    )
    assert said == ["relu, He, norm None, depth 5, width 100"]
    assert torch.equal(state, torch.get_rng_state())


BAD = {
    "activation": (["rely"], {}, ValueError, "got activation 'rely'"),
    "one name": ("relu", {}, TypeError, "activations='relu'"),
    "no depth": (["relu"], {"depths": []}, TypeError, r"depths=\[\]"),
    "norm": (["relu"], {"norms": ["instance"]}, ValueError, "norm='instance'"),
    "init": (["relu"], {"inits": {"a": "kaiming"}}, TypeError, "got a str as init 'a'"),
    "samples": (["relu"], {"samples": 1}, ValueError, "samples=1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case):
    activations, options, error, text = BAD[case]
    with pytest.raises(error, match=text):
        gf.diagnose.flow_grid(activations, **options)
