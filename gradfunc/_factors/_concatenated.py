"""Rows computed for some samples at a time, as those of all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._tree import At, scattered
from ._dense import Dense
from ._factor import Factor
from ._gradients import Gradient, Gradients
from ._mapped import Mapped


def concatenated(parts: Sequence[tuple[At, Gradients]]) -> Gradients:
    """Rows of parts of a batch in the order of the samples.

    A parameter whose parts have equal structures stays factored, positions padded with zero rows up to the most that a
    part has; parts without factors are zeros of any structure. Others become dense.
    """
    names = parts[0][1] if parts else {}
    return {name: _parameter([(at, rows[name]) for at, rows in parts]) for name in names}


def _parameter(parts: list[tuple[At, Gradient]]) -> Gradient:
    like, size = parts[0][1].like, sum(gradient.size for _, gradient in parts)
    structures = {_structure(gradient) for _, gradient in parts if gradient.factors}
    if not structures:
        return Gradient(like, size, ())
    if (maps := _maps(parts)) is not None:
        inner = _parameter([(at, Gradient(one.inner.like, one.size, one.inner.factors)) for at, one in maps])
        some = maps[0][1].inner.like
        ones = [(at, some.new_ones(one.size, dtype=torch.float64) if one.c is None else one.c) for at, one in maps]
        return Gradient(like, size, (Mapped(inner, scattered(ones), maps[0][1].fn),))
    if len(structures) > 1 or next(iter(structures))[0][0] in ("dense", "mapped"):
        return Gradient(like, size, (Dense(scattered([(at, gradient.dense()) for at, gradient in parts])),))
    model = next(gradient for _, gradient in parts if gradient.factors)
    return Gradient(like, size, tuple(_factor(parts, k, some) for k, some in enumerate(model.factors)))


def _maps(parts: list[tuple[At, Gradient]]) -> list[tuple[At, Mapped]] | None:
    """The factors of all parts, where each is one map by the same function."""
    maps = [(at, factor) for at, gradient in parts for factor in gradient.factors if isinstance(factor, Mapped)]
    if len(maps) < len(parts) or any(one.fn != maps[0][1].fn for _, one in maps):
        return None
    return maps


def _structure(gradient: Gradient) -> tuple[tuple[object, ...], ...]:
    return tuple((factor.kind, *factor.features) for factor in gradient.factors)


def _factor(parts: list[tuple[At, Gradient]], k: int, some: Factor) -> Factor:
    """The k-th factor of every part, joined along the samples."""
    length = max(gradient.factors[k].tensors[0].shape[1] for _, gradient in parts if gradient.factors)
    halves = []
    for half, like in enumerate(some.tensors):
        pieces = []
        for at, gradient in parts:
            held = (
                gradient.factors[k].tensors[half]
                if gradient.factors
                else like.new_zeros(gradient.size, 0, *like.shape[2:])
            )
            pieces.append((at, _padded(held, length)))
        halves.append(scattered(pieces))
    joined = iter(halves)
    return some.mapped(lambda _: next(joined))


def _padded(held: Tensor, length: int) -> Tensor:
    """Zeros after the positions there are."""
    missing = length - held.shape[1]
    if not missing:
        return held
    return torch.cat([held, held.new_zeros(len(held), missing, *held.shape[2:])], 1)
