"""Parameters by rules: which rule, what is drawn, what stays, what a layer does by itself, what is reported."""

from __future__ import annotations

import copy
import json
import math

import init_laws as laws
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gradfunc as gf
from gradfunc import init

RULES = {r".*norm.*weight": init.ones(), r".*weight": init.kaiming_normal(nonlinearity="relu"), r".*bias": init.zeros()}


class Net(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.fc = nn.Linear(3, 4, dtype=dtype)
        self.norm = nn.LayerNorm(4, dtype=dtype)
        self.head = nn.Linear(4, 2, dtype=dtype)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.fc(x))))


def test_the_example_of_the_design():
    module = Net()
    params = init.initialize(gf.stateless(module).params, RULES, seed=0)
    assert list(params) == [name for name, _ in module.named_parameters()]
    assert torch.equal(params["norm.weight"], torch.ones(4))
    assert not params["fc.bias"].any()
    want = nn.init.kaiming_normal_(torch.empty(4, 3), nonlinearity="relu", generator=init.generator(0, "fc.weight"))
    assert torch.equal(params["fc.weight"], want)


def test_the_first_rule_that_matches_the_whole_name_wins():
    laws.check_first_match(init.initialize)


def test_a_draw_depends_on_seed_and_name_alone():
    laws.check_alone(init.initialize)


def test_the_global_generator_neither_moves_nor_matters():
    net = Net()
    for rules in (RULES, {".*": init.torch_default()}):
        laws.check_global_untouched(lambda rules=rules: init.initialize(net, rules)["fc.weight"])


def test_the_hash_is_the_same_in_every_process():
    laws.check_seed_of_a_name(init.generator)


@settings(max_examples=30)
@given(
    names=st.lists(st.text("abc.", min_size=1, max_size=4), min_size=1, max_size=5, unique=True),
    seed=st.integers(0, 2**70),
    data=st.data(),
)
def test_what_is_drawn_is_the_same_among_any_others(names, seed, data):
    all_of_them = {name: torch.zeros(2, 3, dtype=torch.float64) for name in names}
    some = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    made = init.initialize(all_of_them, {"(?s).*": init.normal()}, seed)
    few = init.initialize({name: all_of_them[name] for name in some}, {"(?s).*": init.normal()}, seed)
    assert list(few) == some
    for name in some:
        assert torch.equal(few[name], made[name])
        assert torch.equal(few[name], init.normal()((2, 3), generator=init.generator(seed, name), dtype=torch.float64))
    assert len({float(value[0, 0]) for value in made.values()}) == len(names)


def test_draws_do_not_depend_on_the_device(device):
    net = Net()
    here = init.initialize(net, RULES, seed=3)
    there = init.initialize(copy.deepcopy(net).to(device), RULES, seed=3)
    by_layers = init.initialize(copy.deepcopy(net).to(device), {".*": init.torch_default()}, seed=3)
    at_home = init.initialize(net, {".*": init.torch_default()}, seed=3)
    for name in here:
        assert there[name].device.type == by_layers[name].device.type == device
        assert torch.equal(there[name].cpu(), here[name])
        assert torch.equal(by_layers[name].cpu(), at_home[name])


def test_nothing_that_was_given_changes_and_what_no_rule_matches_is_kept():
    net = Net(torch.float64)
    before = copy.deepcopy(net.state_dict())
    state = {name: set(vars(layer)) for name, layer in net.named_modules()}
    model = gf.stateless(net)
    made = init.initialize(model, {r"fc\.weight": init.torch_default(), r"head\..*": init.normal()}, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert {name: set(vars(layer)) for name, layer in net.named_modules()} == state
    assert not any(layer._forward_hooks or layer._backward_hooks for layer in net.modules())
    assert made["fc.bias"] is model.params["fc.bias"]
    for name in ("fc.weight", "head.weight", "head.bias"):
        assert made[name].dtype == torch.float64
        assert made[name].untyped_storage().data_ptr() != model.params[name].untyped_storage().data_ptr()
        assert not made[name].requires_grad
    gf.load_params(net, made)
    assert torch.equal(net.fc.weight, made["fc.weight"])


def test_pure_models_and_modules_and_their_parameters_are_initialised_alike():
    pure = gf.models.mlp([3, 8, 2])
    rules = {r".*weight": init.orthogonal(), r".*bias": init.zeros()}
    by_params = init.initialize(gf.stateless(pure).params, rules, seed=4)
    assert all(torch.equal(value, by_params[name]) for name, value in init.initialize(pure, rules, seed=4).items())
    net = Net()
    assert list(init.initialize(net, RULES)) == list(init.initialize(dict(net.named_parameters()), RULES))


def test_tied_and_frozen_parameters():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head, self.fixed = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False), nn.Linear(3, 3)
            self.head.weight = self.embed.weight
            self.fixed.requires_grad_(False)

    assert list(init.initialize(Tied(), {".*": init.torch_default()})) == ["embed.weight"]


# A function of the user's.
def halves(shape, *, generator, dtype, device):
    return torch.full(shape, 0.5, dtype=dtype, device=device) + torch.rand(
        shape, generator=generator, dtype=dtype, device=device
    )


def test_a_function_of_yours_is_a_scheme():
    made, report = init.initialize_with_report({"w": torch.zeros(2, 3)}, {"w": halves}, seed=2)
    want = 0.5 + torch.rand(2, 3, generator=init.generator(2, "w"))
    assert torch.equal(made["w"], want)
    assert (report.rows[0].scheme, report.rows[0].aimed) == ("halves", None)


def test_a_tensor_that_a_function_keeps_is_not_handed_out():
    kept = torch.ones(2, requires_grad=True)
    made = init.initialize({"a": torch.zeros(2), "b": torch.zeros(2)}, {".*": lambda shape, **_: kept})
    made["a"][0] = 7
    assert float(made["b"][0]) == float(kept.detach()[0]) == 1
    assert not made["b"].requires_grad


LAYERS = {
    "Linear": lambda: nn.Linear(3, 4),
    "Linear, float64": lambda: nn.Linear(3, 4, dtype=torch.float64),
    "Linear, bfloat16": lambda: nn.Linear(3, 4, dtype=torch.bfloat16),
    "Bilinear": lambda: nn.Bilinear(2, 3, 4),
    "Conv1d": lambda: nn.Conv1d(4, 6, 3, groups=2),
    "Conv2d": lambda: nn.Conv2d(3, 4, 3),
    "Conv3d": lambda: nn.Conv3d(2, 3, 2, bias=False),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
    "Embedding": lambda: nn.Embedding(7, 3, padding_idx=2),
    "EmbeddingBag": lambda: nn.EmbeddingBag(7, 3),
    "LayerNorm": lambda: nn.LayerNorm(4),
    "RMSNorm": lambda: nn.RMSNorm(4),
    "GroupNorm": lambda: nn.GroupNorm(2, 4),
    "BatchNorm2d": lambda: nn.BatchNorm2d(4),
    "InstanceNorm": lambda: nn.InstanceNorm1d(4, affine=True),
    "PReLU": lambda: nn.PReLU(3),
    "RNN": lambda: nn.RNN(3, 4),
    "LSTM": lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2),
    "GRU": lambda: nn.GRU(3, 4),
    "LSTMCell": lambda: nn.LSTMCell(3, 4),
    "GRUCell": lambda: nn.GRUCell(3, 4),
    "MultiheadAttention": lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True),
    "MultiheadAttention, kdim": lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
}


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "inside"])
@pytest.mark.parametrize("name", LAYERS)
def test_torch_default_is_bit_for_bit_what_the_layer_does(name, inside):
    laws.check_layer(LAYERS[name], "1" if inside else "")


STATED = {
    "Linear": (lambda: nn.Linear(200, 1000), "uniform"),
    "Conv2d": (lambda: nn.Conv2d(30, 200, 5, groups=2), "uniform"),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(200, 300, 4), "uniform"),
    "GRU": (lambda: nn.GRU(100, 200), "uniform"),
    "LSTMCell": (lambda: nn.LSTMCell(100, 200), "uniform"),
    "Embedding": (lambda: nn.Embedding(500, 300), "normal"),
}


@pytest.mark.parametrize("name", STATED)
def test_the_variance_that_is_stated_of_a_layer_is_its_own(name):
    factory, distribution = STATED[name]
    layer = factory()
    for name, value in layer.named_parameters():
        scheme = init.torch_default().at(init.Place(name, {}, layer))
        laws.check_moments(scheme, tuple(value.shape), distribution, dtype=torch.float32)


@pytest.mark.parametrize("layer", [nn.LayerNorm(6), nn.RMSNorm(6), nn.GroupNorm(2, 6), nn.BatchNorm2d(6)], ids=repr)
def test_norms_state_ones_and_zeros(layer):
    made, report = init.initialize_with_report(layer, {".*": init.torch_default()})
    for row in report.rows:
        scheme = init.torch_default().at(init.Place(row.name, {}, layer))
        assert (row.aimed, row.measured) == (0.0, 0.0)
        assert scheme.mean(row.shape) == float(made[row.name].mean())


def test_a_row_of_padding_counts_and_an_own_function_states_nothing():
    class Own(nn.Linear):
        def reset_parameters(self):
            nn.init.ones_(self.weight)
            nn.init.ones_(self.bias)

    def at(layer, name):
        return init.torch_default().at(init.Place(name, {}, layer)).variance(tuple(layer.get_parameter(name).shape))

    assert at(nn.Embedding(10, 3, padding_idx=0), "weight") == 0.9
    assert math.isnan(at(Own(3, 2), "weight"))
    assert math.isnan(at(nn.Bilinear(3, 2, 4), "weight"))
    assert at(nn.MultiheadAttention(4, 2).out_proj, "weight") == 1 / 12


def test_torch_default_of_a_model_without_storage_and_of_a_layer_of_yours():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.rest = nn.Parameter(torch.empty(3)), nn.Parameter(torch.zeros(2))

        def reset_parameters(self):
            nn.init.uniform_(self.w)

    made = init.initialize(Own(), {"w": init.torch_default()}, seed=1)
    assert torch.equal(made["w"], torch.rand(3, generator=init.generator(1, "")))
    with pytest.raises(ValueError, match=r"'rest' of Own, which its own function does not set.*a rule before"):
        init.initialize(Own(), {".*": init.torch_default()})
    assert init.initialize(nn.Linear(3, 2, device="meta"), {".*": init.torch_default()})["weight"].is_meta


def test_torch_default_of_parameters_alone_is_that_of_linear_layers():
    given = {"fc.weight": torch.zeros(6, 5, 2), "fc.bias": torch.zeros(6), "other": torch.zeros(2, 2)}
    made = init.initialize(given, {r"fc\..*": init.torch_default()}, seed=0)
    weight = nn.init.kaiming_uniform_(torch.empty(6, 5, 2), a=math.sqrt(5), generator=init.generator(0, "fc.weight"))
    bound = 1 / math.sqrt(10)
    bias = nn.init.uniform_(torch.empty(6), -bound, bound, generator=init.generator(0, "fc.bias"))
    assert torch.equal(made["fc.weight"], weight)
    assert torch.equal(made["fc.bias"], bias)
    for name, value in {"other": given["other"], "norm.weight": torch.zeros(3), "bias": torch.zeros(3)}.items():
        with pytest.raises(ValueError, match=rf"got '{name}', without its model.*Pass the model in place"):
            init.initialize({name: value}, {".*": init.torch_default()})
    with pytest.raises(ValueError, match="expected two dimensions or more"):
        init.torch_default()((3,), key=0)


def test_schemes_around_torch_default_see_its_place():
    model = nn.Sequential(nn.Linear(3, 4))
    plain = init.initialize(model, {".*": init.torch_default()}, seed=0)
    half = init.initialize(model, {".*": init.scaled(init.torch_default(), 0.5)}, seed=0)
    assert all(torch.equal(half[name], value * 0.5) for name, value in plain.items())


def test_a_scheme_of_yours_may_ask_for_its_place():
    class ByDepth(type(init.zeros())):
        def at(self, place):
            assert place.own_name == "weight"
            assert place.sibling("bias") is place.params[f"{place.path}.bias"]
            return init.constant(float(place.path))

    made = init.initialize(
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), {r".*weight": ByDepth(said="by_depth()", value=0.0)}
    )
    assert (float(made["0.weight"][0, 0]), float(made["1.weight"][0, 0])) == (0.0, 1.0)


def test_the_report():
    params, report = init.initialize_with_report(Net(), {r".*weight": init.ones(), r"fc\.bias": halves}, seed=3)
    again = init.initialize(Net(), {r".*weight": init.ones(), r"fc\.bias": halves}, seed=3)
    assert all(torch.equal(params[name], again[name]) for name in params if name.endswith("weight"))
    assert not report.ok
    assert report.unmatched == ("norm.bias", "head.bias")
    by_name = {row.name: row for row in report.rows}
    assert list(by_name) == list(params)
    assert by_name["fc.weight"] == init.InitRow("fc.weight", (4, 3), ".*weight", "ones()", 0.0, 0.0)
    assert by_name["fc.bias"].measured == pytest.approx(float(params["fc.bias"].double().std(correction=0)), rel=1e-12)
    assert by_name["norm.bias"].rule is None
    data = json.loads(json.dumps(report.to_dict()))
    assert (data["ok"], data["unmatched"], data["seed"]) == (False, ["norm.bias", "head.bias"], 3)
    assert len(data["rows"]) == 6
    assert "2 of 6 keep their value: norm.bias, head.bias." in str(report)
    assert "halves" in str(report)
    whole = init.initialize_with_report(Net(), RULES)[1]
    assert whole.ok
    assert "All 6 parameters were initialised." in str(whole)
    assert "kaiming_normal(nonlinearity='relu')" in str(whole)


def test_the_report_of_a_parameter_without_entries():
    row = init.initialize_with_report({"w": torch.zeros(0, 3)}, {"w": init.lecun_normal()})[1].rows[0]
    assert (row.aimed, row.measured) == (None, None)


def test_the_report_of_a_complex_parameter_that_is_kept(recwarn):
    kept = torch.tensor([1 + 1j, 1 - 1j, -1 + 3j])
    row = init.initialize_with_report({"w": torch.ones(2), "c": kept}, {"w": init.zeros()})[1].rows[1]
    assert row.measured == pytest.approx(float(np.std(kept.numpy())), rel=1e-6)
    assert not recwarn.list


W = {"fc.weight": torch.zeros(2, 3), "fc.bias": torch.zeros(2)}
BAD = {
    "matches nothing": ({"conv.*": init.ones()}, ValueError, r"rules with 'conv.\*', which matches nothing.*fc.weight"),
    "part of a name": ({"fc": init.ones()}, ValueError, "rules with 'fc', which matches nothing"),
    "taken before": ({".*": init.ones(), r".*bias": init.zeros()}, ValueError, "earlier rules have taken.*special"),
    "no pattern": ({"(": init.ones()}, ValueError, "expected a regular expression"),
    "no name": ({3: init.ones()}, TypeError, "expected a regular expression"),
    "no rules": ([("fc", init.ones())], TypeError, "a list as rules; expected {pattern: scheme}"),
    "number": ({".*": 0.0}, TypeError, r"0.0 for '\.\*'; expected a scheme, such as gf.init.zeros\(\)"),
    "class": ({".*": torch.zeros(2).__class__}, TypeError, "expected a scheme, such as"),
    "not called": ({".*": init.zeros}, TypeError, r"zeros for '\.\*'; expected a scheme: gf.init.zeros\(\)"),
    "not for it": ({".*": init.xavier_normal()}, ValueError, r"for 'fc.bias': xavier_normal\(\): got shape \(2,\)"),
    "shape": ({".*": lambda shape, **_: torch.zeros(7)}, ValueError, r"float32 of shape \(7,\); expected"),
    "dtype": ({".*": lambda shape, **_: torch.zeros(shape).double()}, ValueError, "torch.float64 of shape"),
    "no tensor": ({".*": lambda shape, **_: 3.0}, TypeError, "a float; expected a tensor"),
    "global draws": ({".*": lambda shape, **_: torch.rand(shape)}, ValueError, "draw from torch's global generator"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_rules_are_refused_in_words(name):
    rules, kind, text = BAD[name]
    before = torch.get_rng_state()
    with pytest.raises(kind, match=text):
        init.initialize(W, rules)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(value.any() for value in W.values())


def test_bad_parameters_and_seeds_are_refused_in_words():
    with pytest.raises(TypeError, match=r"'w': a list; expected \{name: tensor\}, or a model"):
        init.initialize({"w": [1.0]}, {"w": init.ones()})
    with pytest.raises(TypeError, match=r"gf.stateless\(model\): got an int"):
        init.initialize(3, {"w": init.ones()})
    with pytest.raises(TypeError, match="seed='a'; expected an int >= 0"):
        init.initialize(W, {".*": init.ones()}, seed="a")
    with pytest.raises(ValueError, match="seed=-1; expected an int >= 0"):
        init.initialize_with_report(W, {".*": init.ones()}, seed=-1)
    with pytest.raises(TypeError, match=r"dtype=torch.int64; expected a floating dtype"):
        init.initialize({"w": torch.zeros(2, dtype=torch.int64)}, {"w": init.ones()})
    with pytest.raises(
        ValueError, match=r"'0.w' of ParameterDict '0', which has no reset_parameters\(\).*a rule before"
    ):
        init.initialize(
            nn.Sequential(nn.ParameterDict({"w": nn.Parameter(torch.zeros(2))})), {".*": init.torch_default()}
        )
