"""Mechanisms that lie in the loop that collects gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .._case import Case
from ._base import Mechanism, Parts, spread
from ._weight import is_padded, per_row


def _mean_of_means(case: Case, parts: Parts, weights: Tensor) -> Iterable[tuple[str, Tensor]]:
    yield f"{len(parts)} means averaged", spread(parts, weights, [1 / len(parts)] * len(parts))


def _no_division(case: Case, parts: Parts, weights: Tensor) -> Iterable[tuple[str, Tensor]]:
    yield f"K = {len(parts)}", spread(parts, weights, [1.0] * len(parts))
    if len(parts) == case.size:
        yield "a sum, undivided", torch.ones_like(weights)


def _missing_zero(case: Case, parts: Parts, weights: Tensor) -> Iterable[tuple[str, Tensor]]:
    k = len(parts)
    yield f"K = {k}, averaged", spread(parts, weights, [(k - i) / k for i in range(k)])
    yield f"K = {k}, summed", spread(parts, weights, [float(k - i) for i in range(k)])


def _aliased(case: Case, parts: Parts, weights: Tensor) -> Iterable[tuple[str, Tensor]]:
    k = len(parts)
    rest = [1 / k] * (k - 2)
    yield f"first of {k} replaced by the second", spread(parts, weights, [0.0, 2 / k, *rest] if k > 1 else [1.0])
    if k > 2:  # views joined at the end show whatever came last
        yield f"first of {k} replaced by the last", spread(parts, weights, [0.0, *rest, 2 / k])
        yield f"all of {k} replaced by the last", spread(parts, weights, [0.0] * (k - 1) + [1.0])


def _short_batch(case: Case, parts: Parts, weights: Tensor) -> Iterable[tuple[str, Tensor]]:
    nominal = max(len(part) for part in parts)
    if len(parts) > 1 and len(parts[-1]) < nominal:
        factors = [float(weights[p.start : p.stop].sum()) / (nominal * len(parts)) for p in parts]
        yield f"sums divided by the nominal {nominal}", spread(parts, weights, factors)


def _short_window(case: Case, parts: Parts, weights: Tensor) -> Iterable[tuple[str, Tensor]]:
    k = len(parts)
    for window in range(k + 1, max(4 * k, 16) + 1):
        yield f"{k} of {window} micro-batches arrived", spread(parts, weights, [1 / window] * k)


def _counted_padding(case: Case, parts: Parts, weights: Tensor) -> Iterable[tuple[str, Tensor]]:
    positions = case.size * per_row(case)
    yield f"{positions} positions, {int(weights.sum())} of them counted", torch.full_like(weights, 1 / positions)


def _loop(name: str, says: str, formula: str, remedy: str, loop: Any, **more: Any) -> Mechanism:
    given = {"applies": lambda case: True, **more}
    return Mechanism(name, "loop", ("yours",), says, formula, remedy, None, loop=loop, **given)


LOOP: tuple[Mechanism, ...] = (
    Mechanism(
        name="aliased_first_sample",
        kind="loop",
        moves=("forum loop", "yours"),
        says="the first gradient was kept as a view of .grad, then zeroed in place and overwritten by the second",
        formula="(g_1 - g_0) / n",
        remedy="clone: param.grad.detach().clone(); or zero_grad(set_to_none=True)",
        invited=None,
        applies=lambda case: case.size > 1,
        loop=_aliased,
    ),
    _loop(
        "unequal_micro_batches",
        "means of micro-batches of unequal weight were averaged",
        "sum_k (1/(K n_k) - 1/n) S_k",
        "add sums and weights, divide once: gf.Accumulator",
        _mean_of_means,
    ),
    _loop(
        "no_division",
        "means of K micro-batches were added without dividing by K",
        "factor K",
        "loss = loss / K before backward, or gf.Accumulator",
        _no_division,
    ),
    _loop(
        "short_last_batch",
        "each sum was divided by the nominal batch size, but the last batch is shorter",
        "sum_k S_k / (K N) against sum_k S_k / n",
        "divide by the samples that came: gf.Accumulator",
        _short_batch,
        samplewise=False,
    ),
    _loop(
        "short_last_window",
        "the last window of accumulation held fewer micro-batches than it was divided by",
        "factor k / K",
        "divide by the micro-batches that came: gf.Accumulator",
        _short_window,
        samplewise=False,
    ),
    _loop(
        "missing_zero_grad",
        "gradients were collected without zeroing .grad in between",
        "sum_i (n - i) g_i / n - mean",
        "zero_grad() before every backward that is collected",
        _missing_zero,
    ),
    _loop(
        "padding_counted",
        "padded positions were counted in the mean",
        "sum S_i / (n T) against sum S_i / sum T_i",
        "divide by the positions that count: gf.losses.cross_entropy(..., ignore_index=pad)",
        _counted_padding,
        applies=is_padded,
        samplewise=False,
    ),
)
