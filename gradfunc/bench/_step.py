"""A training step: a chain of pure stages beside clipping and torch's fused Adam, which writes in place."""

from __future__ import annotations

from typing import Any

import torch

from .._per_sample import PerSampleGradsFunction, per_sample_grads
from .._transform import adam, clip_per_sample, make_step, mean
from . import _by_hand
from ._contender import Call, Contender
from ._workload import Case

LEARNING_RATE = 1e-6  # so that the gradients of all rounds are about the same
STEP = "a step of Adam"


def _function(case: Case) -> PerSampleGradsFunction:
    return per_sample_grads(case.losses, batched=True).at(step=0)


def _copies(case: Case) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in case.model.params.items()}


def in_place(case: Case, quantity: str) -> Call:
    """Clip and sum, divide by the total weight, and `torch.optim.Adam(fused=True)` on parameters of its own."""
    f, params = _function(case), _copies(case)
    leaves = [torch.nn.Parameter(value) for value in params.values()]
    optimizer = torch.optim.Adam(leaves, lr=LEARNING_RATE, fused=True)

    def call() -> Any:
        g = f(params, *case.batch)
        sums = g.weighted_sum(_by_hand.clip_factors(g.norms(), case.max_norm) / g.weights.sum())
        for leaf, value in zip(leaves, sums.values(), strict=True):
            leaf.grad = value
        optimizer.step()

    return call


def chained(case: Case, quantity: str, *, donate: bool) -> Call:
    """`clip_per_sample >> mean >> adam` through `make_step`, each step from the last one's parameters and state."""
    step = clip_per_sample(case.max_norm) >> mean() >> adam(LEARNING_RATE)
    params = _copies(case)
    run, state = make_step(_function(case), step, donate=donate), step.init(params)

    def call() -> Any:
        nonlocal params, state
        params, state, _ = run(params, state, *case.batch)

    return call


def _pure(case: Case, quantity: str) -> Call:
    return chained(case, quantity, donate=False)


def _donated(case: Case, quantity: str) -> Call:
    return chained(case, quantity, donate=True)


CONTENDERS = (
    Contender(
        "in-place-adam", in_place, (STEP,), beside=("step",), settings="gradfunc's clipped sum, Adam(fused=True)"
    ),
    Contender("chain", _pure, (STEP,), beside=("step",), settings="clip_per_sample >> mean >> adam, pure"),
    Contender("chain-donated", _donated, (STEP,), beside=("step",), settings="the same, make_step(donate=True)"),
)
