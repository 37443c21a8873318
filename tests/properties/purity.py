"""What a call must leave alone: laws of the same form as the identities."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from gradfunc.testing._claims import Claim
from gradfunc.testing._gradient_laws import twice_is_once
from gradfunc.testing._purity import Snapshot, everything, results_of, same_bits, storages
from gradfunc.testing.strategies import Problem

# torch imports sympy, which adds a filter for its own warnings, at the first backward pass of a given cotangent in a
# process, whoever asks for it. From here on a filter that appears is another's.
_one = torch.ones((), requires_grad=True)
torch.autograd.grad(_one * 1, _one, torch.ones(()))


def nothing_is_touched(b: Problem) -> Iterator[Claim]:
    """Modules, hooks, buffers, `.grad`, flags, generators and the batch are what they were."""
    for parameter in b.module.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    before, filters = Snapshot.of(b.module, b.samples, b.params), list(warnings.filters)
    everything(b.grads(), b.params)
    changed = list(before.changed(b.module, b.params))
    assert not changed, f"changed: {changed}"
    assert filters == list(warnings.filters), "filters of warnings changed"
    yield from ()


def answers_share_nothing(b: Problem) -> Iterator[Claim]:
    """No answer is a view of parameters, batch, another answer or what is kept; parameters are the module's own."""
    g = b.grads()
    answers = {**results_of(g), "sum again": g.sum(), "scaled": g.scaled(torch.ones_like(g.losses)).materialize()}
    owned = dict(b.module.named_parameters())
    for name, value in b.params.items():
        assert storages(value) == storages(owned[name].data), f"{name} is not the module's own"
        assert not value.requires_grad
    seen = storages([*tensors(b), b.params])
    for what, value in answers.items():
        own = storages(value)
        assert not own & seen, f"{what} shares storage"
        seen |= own
    before = results_of(g)
    for value in answers.values():
        for tensor in value.values() if isinstance(value, dict) else [value]:
            assert not tensor.requires_grad
            tensor.fill_(-7.0)
    assert same_bits(before, results_of(g)), "writing to an answer changed the next one"
    yield from ()


PURITY = [nothing_is_touched, answers_share_nothing, twice_is_once]


def tensors(b: Problem) -> list[Tensor]:
    """All that a call is given, and the gradients that lie about."""
    parameters = list(b.module.parameters())
    kept = [p.grad for p in parameters if p.grad is not None]
    return [*(p.data for p in parameters), *b.module.buffers(), *kept, *(t for s in b.samples for t in s)]
