"""Small models as functions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from oracle import same_bits, storages
from torch import nn

import gradfunc as gf


@pytest.mark.parametrize("sizes", [[3, 2], [3, 5, 2], (4, 4, 4, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_mlp_is_the_sequential_of_its_parameters(sizes, bias):
    pure = gf.models.mlp(sizes, bias=bias, activation=torch.tanh, dtype=torch.float64)
    params = pure.init()
    layers = []
    for i, (a, b) in enumerate(itertools.pairwise(sizes), start=1):
        linear = nn.Linear(a, b, bias=bias, dtype=torch.float64)
        linear.load_state_dict({k.split(".")[1]: v for k, v in params.items() if k.startswith(f"fc{i}.")})
        layers += [linear, nn.Tanh()]
    x = torch.randn(6, sizes[0], dtype=torch.float64)
    assert torch.equal(pure.apply(params, x), nn.Sequential(*layers[:-1])(x))


def test_parameters_come_from_the_seed_alone():
    before = torch.random.get_rng_state()
    a, b, other = gf.models.mlp([8, 4]).init(), gf.models.mlp([8, 4]).init(), gf.models.mlp([8, 4], seed=1).init()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same_bits(a, b)
    assert not torch.equal(a["fc1.weight"], other["fc1.weight"])
    pure = gf.models.mlp([8, 4])
    assert not storages(pure.init()) & storages(pure.init())


def test_parameters_are_uniform_within_one_over_root_fan_in():
    params = gf.models.mlp([400, 300]).init()
    for value in params.values():
        assert value.abs().max() <= 1 / math.sqrt(400)
        # The chance that 300 or more uniform draws all stay within 0.9 of the bound is 0.9^300 < 1e-13.
        assert value.abs().max() > 0.9 / math.sqrt(400)
        assert value.min() < 0 < value.max()


def test_mlp_enters_by_the_same_door_as_a_module():
    model = gf.stateless(gf.models.mlp([3, 5, 2]))
    assert list(model.params) == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    assert not any(value.requires_grad for value in model.params.values())
    assert model.frozen == model.buffers == model.aliases == {}
    f = gf.per_sample_grads(lambda p, x: model.sample(p, x).square().sum())
    assert f(model.params, torch.randn(4, 3)).norms().shape == (4,)


@pytest.mark.parametrize("sizes", [[], [3], [3, 0], [3, -1, 2]])
def test_sizes_are_checked(sizes):
    with pytest.raises(ValueError, match=r"gf\.models\.mlp\(.*expected two or more positive widths"):
        gf.models.mlp(sizes)
