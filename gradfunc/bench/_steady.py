"""Whether a model gives the same each time, as it must for results to be compared."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._random import generator_states, same_states
from .._tree import copy_of, map_tensors, tensors_of
from ._workload import Case


def unsteady(case: Case) -> str | None:
    """Why another forward pass may give something else; None where it does not."""
    states = generator_states()
    batch, buffers = [map_tensors(copy_of, kept) for kept in _kept(case)]
    case.mean_loss()
    if not same_states(states, generator_states()):
        return "the model draws random numbers"
    batch_now, buffers_now = _kept(case)
    if any(not _same(a, b) for a, b in zip(tensors_of(batch), tensors_of(batch_now), strict=True)):
        return "the forward pass writes to its inputs"
    written = [name for name, value in buffers.items() if not _same(value, buffers_now[name])]
    return f"the forward pass writes to the buffer {written[0]!r}" if written else None


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())  # NaN is NaN


def _kept(case: Case) -> tuple[Any, dict[str, Tensor]]:
    return case.problem.batch, dict(case.module.named_buffers())
