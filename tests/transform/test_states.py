"""States as flat dictionaries: paths by name, types of leaves, and a resumed run that is the same run bit by bit."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from oracle import same_bits
from problem import Sgd, loss, problem

import gradfunc as gf
from gradfunc._transform import _chain, _states


def step():
    return (
        gf.adaptive_clip_per_sample(0.5)
        >> gf.clip_per_sample(lambda count: 1 / (1 + count))
        >> gf.clip_per_sample(10.0)
        >> gf.mean()
        >> gf.partition({"a": gf.scale(lambda count: 0.9**count), "b": gf.identity()}, {"w": "a", ".*": "b"})
        >> Sgd(0.05)
    )


PATHS = {
    "adaptive_clip_per_sample/max_norm": torch.float64,
    "adaptive_clip_per_sample/count": torch.int64,
    "clip_per_sample/count": torch.int64,
    "partition/a/count": torch.int64,
    "Sgd/0": torch.float32,
    "Sgd/1/steps": torch.int64,
}


def trained(steps, params, state, after=lambda params, state: (params, state)):
    """Some steps; `after` each, what is carried on goes through a store."""
    _, batch = problem()
    run = gf.make_step(loss, step())
    for _ in range(steps):
        params, state, _ = run(params, state, *batch)
        params, state = after(params, state)
    return params, state


def check_paths():
    params, _ = problem()
    _, state = trained(2, params, step().init(params))
    flat = gf.flatten_state(state)
    assert list(flat) == list(PATHS)
    assert flat["adaptive_clip_per_sample/count"].item() == 2
    assert {path: value.dtype for path, value in flat.items() if path != "Sgd/0"} == {
        path: dtype for path, dtype in PATHS.items() if path != "Sgd/0"
    }
    assert all(isinstance(value, torch.Tensor) for value in flat.values())


def test_paths_and_types():
    check_paths()


def through_torch(flat):
    file = io.BytesIO()
    torch.save(flat, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def through_safetensors(flat):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    return safetensors.load(safetensors.save({path: value.contiguous() for path, value in flat.items()}))


STORES = {"torch.save": through_torch, "deepcopy": copy.deepcopy, "safetensors": through_safetensors}


def check_resumed(store):
    params, _ = problem()
    like = step().init(params)
    want = trained(4, params, like)

    def stored(params, state):
        return params, gf.unflatten_state(STORES[store](gf.flatten_state(state)), like=like)

    got = trained(4, params, like, stored)
    assert same_bits(got[0], want[0])
    assert gf.flatten_state(got[1]).keys() == gf.flatten_state(want[1]).keys()
    assert same_bits(gf.flatten_state(got[1]), gf.flatten_state(want[1]))
    assert type(got[1]["clip_per_sample"]["count"]) is int
    assert got[1]["clip_per_sample_2"] == ()


@pytest.mark.parametrize("store", STORES)
def test_a_resumed_run_is_the_same_run(store):
    check_resumed(store)


def test_the_state_itself_is_plain():
    params, _ = problem()
    _, state = trained(2, params, step().init(params))
    assert same_bits(gf.flatten_state(through_torch(state)), gf.flatten_state(state))


def test_what_no_state_is_made_of_is_refused():
    with pytest.raises(TypeError, match="got a set at 'a/0'"):
        gf.flatten_state({"a": ({1, 2},)})
    with pytest.raises(TypeError, match="got a list; expected a dict"):
        gf.unflatten_state([], like={})
    with pytest.raises(ValueError, match=r"lacks \['a'\] and holds besides \['b'\]"):
        gf.unflatten_state({"b": torch.ones(1)}, like={"a": torch.ones(1)})


def test_numbers_come_back_as_what_they_were():
    state = {"count": 3, "rate": 0.1, "ready": True, "of": [1, (2.5, torch.ones(2))]}
    again = gf.unflatten_state(gf.flatten_state(state), like=state)
    assert again["count"] == 3
    assert again["rate"] == 0.1
    assert again["ready"] is True
    assert again["of"][0] == 1
    assert type(again["of"][1]) is tuple
    assert torch.equal(again["of"][1][1], torch.ones(2))


def unnumbered(self):
    return tuple(_chain.name_of(stage) for stage in self.stages)


MUTANTS = {
    "counts lost": (_states, "_tensor", lambda path, leaf: torch.as_tensor(leaf).clamp(max=1), check_paths),
    "counts as floats": (_states, "_tensor", lambda path, leaf: torch.as_tensor(leaf).double(), check_paths),
    "in half": (
        _states,
        "_tensor",
        lambda p, leaf: torch.as_tensor(leaf).bfloat16(),
        lambda: check_resumed("deepcopy"),
    ),
    "names that repeat": (_chain.Chain, "keys", property(unnumbered), lambda: check_resumed("deepcopy")),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_mistake_is_noticed(name, monkeypatch):
    where, attribute, mistake, law = MUTANTS[name]
    law()
    monkeypatch.setattr(where, attribute, mistake)
    with pytest.raises((AssertionError, ValueError, KeyError)):
        law()
