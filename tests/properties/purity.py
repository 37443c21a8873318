"""What a call must leave alone: laws of the same form as the identities."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from claims import Claim
from laws import same_samples
from oracle import results, same_bits, storages
from torch import Tensor

import gradfunc as gf
from gradfunc.testing.strategies import Problem

# torch imports sympy, which adds a filter for its own warnings, at the first backward pass of a given cotangent in a
# process, whoever asks for it. From here on a filter that appears is another's.
_one = torch.ones((), requires_grad=True)
torch.autograd.grad(_one * 1, _one, torch.ones(()))


def nothing_is_touched(b: Problem) -> Iterator[Claim]:
    """Modules, hooks, buffers, `.grad`, flags, generators and the batch are what they were."""
    marks = {name: torch.full_like(p, 7.0) for name, p in b.module.named_parameters()}
    for name, parameter in b.module.named_parameters():
        parameter.grad = marks[name]
    before = state(b)
    values = [value.clone() for value in tensors(b)]
    everything(b)
    after = state(b)
    changed = [what for what in before if before[what] != after[what]]
    assert not changed, f"changed: {changed}"
    assert same_bits(values, tensors(b)), "tensors hold other values"
    yield from ()


def answers_share_nothing(b: Problem) -> Iterator[Claim]:
    """No answer is a view of parameters, batch, another answer or what is kept; parameters are the module's own."""
    g = b.grads()
    answers = {**results(g), "sum again": g.sum(), "scaled": g.scaled(torch.ones_like(g.losses)).materialize()}
    owned = dict(b.module.named_parameters())
    for name, value in b.params.items():
        assert storages(value) == storages(owned[name].data), f"{name} is not the module's own"
        assert not value.requires_grad
    seen = storages([*tensors(b), b.params])
    for what, value in answers.items():
        own = storages(value)
        assert not own & seen, f"{what} shares storage"
        seen |= own
    before = results(g)
    for value in answers.values():
        for tensor in value.values() if isinstance(value, dict) else [value]:
            assert not tensor.requires_grad
            tensor.fill_(-7.0)
    assert same_bits(before, results(g)), "writing to an answer changed the next one"
    yield from ()


def twice_is_once(b: Problem) -> Iterator[Claim]:
    """The same question has the same answer, of the same value and of another call; bit by bit on the CPU."""
    torch.manual_seed(b.case.seed)
    g = b.grads()
    first = results(g)
    torch.rand(3)  # draws of others make no difference
    second = b.grads()
    if b.like[0].device.type == "cpu":
        assert same_bits(first, results(g)), "the second answer is another"
        assert same_bits(first, results(second)), "the second call is another"
    else:  # atomic additions of a GPU have no order
        yield from same_samples("once more", g.select(slice(None)), g, torch.arange(g.batch_size))
        yield from same_samples("called again", second, g, torch.arange(g.batch_size))


PURITY = [nothing_is_touched, answers_share_nothing, twice_is_once]


def everything(b: Problem) -> None:
    """Every query, and every way to make a value of values."""
    g = b.grads()
    results(g)
    ones = torch.ones_like(g.losses)
    for value in (g.select(slice(0, 2)), g.scaled(ones), g.weighted(ones), gf.concatenate([g, g]), *g.split(2)):
        value.sum()
    gf.Accumulator.init({name: b.params[name] for name in b.names}).add(g).mean(on_zero_weight="zero")
    assert isinstance(g.explain(), str)
    assert len(g.unused) <= len(g.names)


def tensors(b: Problem) -> list[Tensor]:
    """All that a call is given, and the gradients that lie about."""
    parameters = list(b.module.parameters())
    kept = [p.grad for p in parameters if p.grad is not None]
    return [*(p.data for p in parameters), *b.module.buffers(), *kept, *(t for s in b.samples for t in s)]


def state(b: Problem) -> dict[str, Any]:
    """What can be compared before and after."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "modules": {name: contents(module) for name, module in b.module.named_modules()},
        "tensors": [(id(p), p._version, p.requires_grad, id(p.grad)) for p in b.module.parameters()],
        "buffers": [(id(t), t._version) for t in b.module.buffers()],
        "batch": [t._version for sample in b.samples for t in sample],
        "gradients": [p.grad._version for p in b.module.parameters() if p.grad is not None],
        "torch's generators": [bytes(s.numpy()) for s in (torch.get_rng_state(), *cuda)],
        "other generators": (random.getstate(), repr(np.random.get_state(legacy=False))),
        "flags": flags(),
        "warnings": list(warnings.filters),
    }


def contents(module: torch.nn.Module) -> dict[str, Any]:
    """A module's dictionary: what its containers hold (hooks, parameters, children) by identity, all else too."""
    return {
        key: [(k, id(v)) for k, v in value.items()] if isinstance(value, dict) else id(value)
        for key, value in vars(module).items()
    }


def flags() -> dict[str, Any]:
    """Modes and settings of torch that hold for the whole process."""
    return {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "precision": torch.get_float32_matmul_precision(),
        "autocast": [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")],
        "cudnn": (
            torch.backends.cudnn.enabled,
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.allow_tf32,
        ),
    }
