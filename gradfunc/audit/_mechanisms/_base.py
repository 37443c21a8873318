"""What a mechanism is, and parts of a batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..._random import Record
from .._case import Case

Parts = list[range]


@dataclass(frozen=True)
class Mechanism:
    """One way in which gradients under different reductions come to disagree.

    Attributes:
        name: stable identifier.
        kind: "weight", "forward" or "loop".
        moves: the estimators it changes.
        says: what happens, in one line.
        formula: the closed form of the discrepancy.
        remedy: what to do.
        invited: why this model and criterion invite it, None if they don't; no function for a loop mechanism.
        applies: whether it acts on this batch.
        weight: for a weight mechanism, the factor of each element's weight, broadcast to `[n, ...]`.
        counts: whether a sample's weight is the sum over its elements rather than their mean.
        divides: a divisor of each element inside a mean, where the criterion has one.
        members: which elements belong to each part of the batch, where rows of elements are not samples.
        intervene: for a forward mechanism, the context under which one pass repeats passes over `sizes`.
        layers: for a forward mechanism, which layers act.
        samplewise: for a loop mechanism, whether its parts may be single samples that came in one forward pass.
        declared: whether the loss itself says so, which is then no fault.
        loop: for a loop mechanism, `(case, parts, true weights) -> [(detail, coefficients [n])]`.

    Example:
        >>> import gradfunc as gf
        >>> {m.name: m.remedy for m in gf.audit.MECHANISMS}["unequal_micro_batches"]
        'add sums and weights, divide once: gf.Accumulator'
    """

    name: str
    kind: str
    moves: tuple[str, ...]
    says: str
    formula: str
    remedy: str
    invited: Callable[[Case], str | None] | None
    applies: Callable[[Case], bool]
    weight: Callable[[Case], Tensor] | None = None
    counts: bool = False
    divides: Callable[[Case], Tensor] | None = None
    members: Callable[[Case, Parts], list[Tensor]] | None = None
    intervene: Callable[[list[int], list[Record] | None], AbstractContextManager[Any]] | None = None
    layers: Callable[[nn.Module], bool] | None = None
    samplewise: bool = True
    declared: bool = False
    loop: Callable[[Case, Parts, Tensor], Iterable[tuple[str, Tensor]]] | None = None


def singles(n: int) -> Parts:
    """Every sample a part of its own."""
    return [range(i, i + 1) for i in range(n)]


def parts_of(sizes: list[int]) -> Parts:
    """Consecutive parts of the given sizes."""
    stops = list(itertools.accumulate(sizes))
    return [range(stop - size, stop) for stop, size in zip(stops, sizes, strict=True)]


def spread(parts: Parts, weights: Tensor, factors: list[float]) -> Tensor:
    """Coefficients of `sum_k factors[k] m_k`, m_k the gradient of the mean over part k; parts cover the batch."""
    sizes = torch.tensor([len(part) for part in parts], device=weights.device)
    part_of = torch.arange(len(parts), device=weights.device).repeat_interleave(sizes)
    totals = torch.zeros(len(parts), dtype=weights.dtype, device=weights.device).index_add(0, part_of, weights)
    each = torch.tensor(factors, dtype=weights.dtype, device=weights.device) / totals
    return torch.where(totals > 0, each, torch.zeros_like(each))[part_of]
