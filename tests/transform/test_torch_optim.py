"""Every rule of torch.optim through gf.from_torch_optim: the same bits as torch's own loop, purely."""

from __future__ import annotations

import copy

import pytest
import torch
from oracle import same_bits, storages
from rules import F64, our_loop, start, stream, torch_loop
from test_update_rules import check_resumed, halving

import gradfunc as gf
from gradfunc._transform._rules import _torch_optim

optim = torch.optim
CASES = {
    "SGD": (optim.SGD, {"lr": 0.05}),
    "SGD, momentum": (optim.SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1}),
    "SGD, nesterov": (optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "SGD, maximize": (optim.SGD, {"lr": 0.001, "momentum": 0.9, "maximize": True}),
    "Adam": (optim.Adam, {"lr": 0.05, "weight_decay": 0.1, "amsgrad": True}),
    "Adam, fused": (optim.Adam, {"lr": 0.05, "fused": True}),
    "Adam, foreach": (optim.Adam, {"lr": 0.05, "foreach": True}),
    "Adam, lr a tensor": (optim.Adam, {"lr": torch.tensor(0.05)}),
    "AdamW": (optim.AdamW, {"lr": 0.05}),
    "NAdam": (optim.NAdam, {"lr": 0.05, "weight_decay": 0.1}),
    "RAdam": (optim.RAdam, {"lr": 0.05}),
    "Adamax": (optim.Adamax, {"lr": 0.05}),
    "Adagrad": (optim.Adagrad, {"lr": 0.05, "lr_decay": 0.1, "initial_accumulator_value": 0.3}),
    "Adadelta": (optim.Adadelta, {"lr": 0.5}),
    "RMSprop": (optim.RMSprop, {"lr": 0.05, "momentum": 0.9, "centered": True}),
    "Rprop": (optim.Rprop, {"lr": 0.05}),
    "ASGD": (optim.ASGD, {"lr": 0.05, "t0": 10}),
}
if hasattr(optim, "Adafactor"):
    CASES["Adafactor"] = (optim.Adafactor, {"lr": 0.05})
if hasattr(optim, "Muon"):
    CASES["Muon"] = (optim.Muon, {"lr": 0.05})


def made(name):
    rule, options = CASES[name]
    params = start(names=("weight",)) if name == "Muon" else start()
    return gf.from_torch_optim(rule, **options), (lambda leaves: rule(leaves, **options)), params


def check_bits(name, dtype=F64):
    ours, theirs, params = made(name)
    params = {k: v.to(dtype) for k, v in params.items()}
    want = torch_loop(theirs, params, 100)
    got, _ = our_loop(ours, params, 100)
    assert same_bits(got, want)


@pytest.mark.parametrize("name", CASES)
def test_the_same_bits_as_torch_over_100_steps(name):
    check_bits(name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["SGD, momentum", "Adam", "RMSprop"])
def test_the_same_bits_in_other_types(name, dtype):
    check_bits(name, dtype)


@pytest.mark.parametrize("name", ["SGD, momentum", "Adam", "Rprop"])
def test_a_schedule_is_the_lr_of_each_step(name):
    rule, options = CASES[name]
    options = {k: v for k, v in options.items() if k != "lr"}
    want = torch_loop(lambda leaves: rule(leaves, lr=halving(0), **options), start(), 30, lr=halving)
    got, _ = our_loop(gf.from_torch_optim(rule, lr=halving, **options), start(), 30)
    assert same_bits(got, want)


def nested_storages(state):
    return storages(list(gf.flatten_state(state).values()))


def check_pure(name):
    rule, _, params = made(name)
    params = {k: v.requires_grad_() for k, v in params.items()}
    _, state = our_loop(rule, params, 3)
    grads = gf.Grads(stream(3, params))
    before = copy.deepcopy((grads, state))
    values = {k: v.detach().clone() for k, v in params.items()}
    updates, new = rule.update(grads, state, params)
    again, other = rule.update(grads, state, params)
    assert same_bits(before[0], grads)
    assert same_bits(gf.flatten_state(before[1]), gf.flatten_state(state))
    assert same_bits(values, {k: v.detach() for k, v in params.items()})
    assert all(v.grad is None and not vars(v) for v in params.values())
    assert same_bits(dict(updates), dict(again))
    assert same_bits(gf.flatten_state(new), gf.flatten_state(other))
    assert not nested_storages(new) & nested_storages(state)
    assert not storages(gf.apply_updates(params, updates)) & (nested_storages(new) | storages(params))


@pytest.mark.parametrize("name", CASES)
def test_pure(name):
    check_pure(name)


@pytest.mark.parametrize("name", CASES)
def test_donated_and_resumed_are_the_same_bits(name):
    rule, _, params = made(name)
    want, state = our_loop(rule, params, 8)
    got, other = our_loop(rule, params, 8, donate=True)
    assert same_bits(got, want)
    assert same_bits(gf.flatten_state(state), gf.flatten_state(other))
    check_resumed(rule, params)


def test_a_state_before_the_first_step_is_resumed_too():
    for name in ("SGD, momentum", "Adagrad", "NAdam", "Rprop"):
        rule, _, params = made(name)
        state = rule.init(params)
        back = gf.unflatten_state(gf.flatten_state(state), like=state)
        assert same_bits(our_loop(rule, params, 3, state=back)[0], our_loop(rule, params, 3)[0])


def test_names_without_gradient_are_as_torch_leaves_them():
    """A parameter whose .grad is None has no step, and its own first one later."""

    def some(step, params, size):
        return {k: g for k, g in stream(step, params).items() if (step >= 3 or k != "bias") and step % 4 != 2}

    def none_kept(step, leaves, size):
        for leaf in leaves.values():
            leaf.grad = None
        return some(step, leaves, size)

    for name in ("SGD, momentum", "Adam", "ASGD", "Adagrad"):
        rule, theirs, params = made(name)
        want = torch_loop(theirs, params, 12, given=none_kept)
        got, state = our_loop(rule, params, 12, given=some)
        assert same_bits(got, want)
        assert state["updates"] == {"weight": 9, "bias": 7, "kernel": 9}


def test_groups_are_a_partition():
    def theirs(leaves):
        weight, bias, kernel = leaves
        groups = [{"params": [weight, kernel]}, {"params": [bias], "lr": 0.2, "weight_decay": 0.0}]
        return optim.AdamW(groups, lr=0.05, weight_decay=0.3)

    slow = gf.from_torch_optim(optim.AdamW, lr=0.05, weight_decay=0.3)
    fast = gf.from_torch_optim(optim.AdamW, lr=0.2, weight_decay=0.0)
    rule = gf.partition({"slow": slow, "fast": fast}, {"bias": "fast", ".*": "slow"})
    assert same_bits(our_loop(rule, start(), 30)[0], torch_loop(theirs, start(), 30))


def test_other_parameters_get_the_differences():
    rule, _, params = made("SGD")
    updates, _ = rule.update(gf.Grads(stream(0, params)), rule.init(params), params)
    moved = {k: v + 1 for k, v in params.items()}
    for k, v in gf.apply_updates(moved, updates).items():
        torch.testing.assert_close(v, moved[k] - 0.05 * stream(0, params)[k])


class Growing(optim.Optimizer):
    """An optimizer that keeps something in its group, as schedule-free ones do."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr, "k": 0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] += 1
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["lr"] * group["k"])


class Late(Growing):
    @torch.no_grad()
    def step(self, closure=None):
        super().step()
        if self.param_groups[0]["k"] > 1:
            self.param_groups[0]["lr"] *= 0.5


class Odd(Growing):
    def step(self, closure=None):
        self.state[self.param_groups[0]["params"][0]]["history"] = [1, 2]


def check_group_state():
    rule = gf.from_torch_optim(Growing, lr=0.01)
    got, state = our_loop(rule, start(), 10)
    assert same_bits(got, torch_loop(lambda leaves: Growing(leaves, lr=0.01), start(), 10))
    assert state["group"] == {"k": 10}
    check_resumed(rule, start())


def test_what_an_optimizer_keeps_in_its_group_is_state():
    check_group_state()


class Anchored(Growing):
    """An optimizer that keeps the parameters themselves, and what was not there yet as None."""

    def step(self, closure=None):
        super().step()
        for p in self.param_groups[0]["params"]:
            self.state[p].update(last=p, squared=p.square(), later=None)


def test_what_an_optimizer_keeps_is_plain_tensors():
    rule, params = gf.from_torch_optim(Anchored, lr=0.01), start()
    state = rule.init(params)
    for step in range(2):
        updates, state = rule.update(stream(step, params), state, params)
        now = gf.apply_updates(params, updates)
        for name, kept in state["state"].items():
            assert list(kept) == ["last", "squared"]
            assert all(type(value) is torch.Tensor and not value.requires_grad for value in kept.values())
            assert torch.equal(kept["last"], now[name])
    assert state["updates"] == dict.fromkeys(params, 2)


def test_what_cannot_be_a_rule_is_refused():
    for rule, text in (
        (optim.LBFGS, "LBFGS: it evaluates the loss again"),
        (optim.SparseAdam, "SparseAdam: it takes sparse gradients"),
        (type("Mine", (optim.LBFGS,), {}), "Mine: it evaluates the loss again"),
        (dict, "got dict; expected a class of torch.optim"),
        (optim.SGD([torch.nn.Parameter(torch.ones(1))]), "got a SGD|got an SGD"),
    ):
        with pytest.raises(TypeError, match=text):
            gf.from_torch_optim(rule)
    with pytest.raises(ValueError, match="differentiable=True"):
        gf.from_torch_optim(optim.SGD, differentiable=True)
    with pytest.raises(ValueError, match="lr=-1"):
        gf.from_torch_optim(optim.SGD, lr=-1)
    with pytest.raises(TypeError, match="a list as 'history' of 'weight'"):
        gf.from_torch_optim(Odd).init(start())
    with pytest.raises(RuntimeError, match=r"changes \['lr'\] of its group"):
        our_loop(gf.from_torch_optim(Late), start(), 3)
    rule, _, params = made("SGD")
    with pytest.raises(ValueError, match="no params"):
        rule.update(gf.Grads(stream(0, params)), rule.init(params))
    with pytest.raises(ValueError, match=r"gradients of \['other'\]"):
        rule.update(gf.Grads({"other": torch.ones(2)}), rule.init(params), params)


# --- mistakes ------------------------------------------------------------------------------------------


def forgets_beginnings(self, params):
    state = init(self, params)
    return {**state, "updates": dict.fromkeys(params, 1)}


def steps_on_the_users(self, fresh, state):
    return made_of(self, fresh, {**state, "count": 0})


def plain_updates(before, after):
    return {name: value - before[name] for name, value in after.items()}


def shared(how, value):
    return value


def no_group(optimizer):
    return {}


init, made_of = _torch_optim.TorchOptim.init, _torch_optim.TorchOptim._made
MUTANTS = {
    "zeros in the place of the beginning": (
        _torch_optim.TorchOptim,
        "init",
        forgets_beginnings,
        lambda: check_bits("Adagrad"),
    ),
    "differences added": (
        _torch_optim,
        "Landing",
        plain_updates,
        lambda: check_bits("SGD"),
    ),
    "the state written in place": (_torch_optim, "_own", shared, lambda: check_pure("Adam")),
    "the group forgotten": (_torch_optim, "_numbers", no_group, check_group_state),
    "a schedule that stands": (
        _torch_optim.TorchOptim,
        "_made",
        steps_on_the_users,
        lambda: test_a_schedule_is_the_lr_of_each_step("Adam"),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_mistake_is_noticed(name, monkeypatch):
    where, attribute, mistake, law = MUTANTS[name]
    law()
    monkeypatch.setattr(where, attribute, mistake)
    with pytest.raises((AssertionError, KeyError)):
        law()


CHANGES = {
    "in place": lambda updates: updates["w"].mul_(0.5),
    "an entry replaced": lambda updates: updates.update(w=updates["w"] * 0.5),
}


@pytest.mark.parametrize("name", CHANGES)
def test_updates_that_were_changed_are_applied_as_they_are(name):
    params = {"w": torch.ones(2)}
    rule = gf.from_torch_optim(torch.optim.SGD, lr=1.0)
    updates, _ = rule.update({"w": torch.ones(2)}, rule.init(params), params)
    CHANGES[name](updates)
    assert gf.apply_updates(params, updates)["w"].tolist() == [0.5, 0.5]
    updates, _ = rule.update({"w": torch.ones(2)}, rule.init(params), params)
    del updates["w"]
    assert gf.apply_updates(params, updates)["w"] is params["w"]


def test_steps_of_inference_mode():
    rule = gf.from_torch_optim(torch.optim.SGD, lr=1.0)
    with torch.inference_mode():
        params = {"w": torch.ones(2)}
        state = rule.init(params)
        for _ in range(2):
            updates, state = rule.update({"w": torch.ones(2)}, state, params)
            params = gf.apply_updates(params, updates)
    assert params["w"].tolist() == [-1.0, -1.0]
