"""Expanded weights: torch's own tensor subclass that computes rows in the backward pass of each layer."""

from __future__ import annotations

from torch import nn

from .. import _by_hand
from .._contender import Call, Contender, Limit
from .._workload import Case
from ._copy import Copy, has

RNN = Limit(
    has(nn.RNNBase),
    "no nn.RNN, nn.GRU or nn.LSTM; to be rewritten around nn.Linear",
    "docstring of call_for_per_sample_grads",
)


def _expanded(case: Case, quantity: str) -> Call:
    from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

    copy = Copy.of(case)
    options = {"batch_size": case.size, "loss_reduction": "sum", "batch_first": copy.batch_first}
    model = call_for_per_sample_grads(copy.module, **options)

    def call() -> object:
        copy.losses(model).sum().backward()
        return _by_hand.answer(quantity, copy.rows("grad_sample"), case.max_norm)

    return call


CONTENDERS = (
    Contender(
        "expanded-weights",
        _expanded,
        peer=True,
        settings="call_for_per_sample_grads(module, batch_size=B, loss_reduction='sum')",
        limits=(RNN,),
    ),
)
