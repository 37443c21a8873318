"""Sums, inner products and projections of the rows of all parameters."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor

from .._tree import Tensors
from ._factor import Terms
from ._gradients import Gradient, Gradients, scratch_of
from ._norms import TRUST, norms_each
from ._pairs import cross_gram
from ._projection import Projection


def weighted_sum(
    rows: Gradients, c: Tensor | None = None, scratch: int | None = None, *, spent: bool = False
) -> Tensors:
    """Sum of the rows, or of `c[i]` times row i, in the accumulation dtypes.

    A coefficient 0 leaves its row out of both halves of a factor, even one that holds inf or NaN. Rows that are `spent`
    are taken out of the dictionary one parameter after the other, so that their memory is free before the next sum.
    """
    scratch = scratch_of(rows) if scratch is None else scratch
    at = None
    if c is not None:
        kept = (c != 0).nonzero()[:, 0]
        if len(kept) < len(c):
            at, c = kept, c[kept]
    out = {}
    for name in tuple(rows):
        gradient = rows.pop(name) if spent else rows[name]
        gradient = gradient if at is None else gradient.select(at)
        coefficients = None if c is None else c.to(gradient.like.device)
        total: Tensor | None = None
        for factor in gradient.factors:
            part = factor.weighted_sum(coefficients, scratch).to(gradient.dtype)
            total = part if total is None else total.add_(part)
            del factor
        like = gradient.like
        out[name] = like.new_zeros(like.shape, dtype=gradient.dtype) if total is None else total
        del gradient
    return out


def dots(rows: Gradients, direction: Mapping[str, Tensor], scratch: int | None = None) -> Tensor:
    """Inner product of each row with `direction`: `[B]`."""
    scratch = scratch_of(rows) if scratch is None else scratch
    parts = []
    for name, gradient in rows.items():
        part = gradient.like.new_zeros(gradient.size, dtype=gradient.dtype)
        for factor in gradient.factors:
            part = part + factor.dots(direction[name][None], scratch)[:, 0]
        parts.append(part.to(gradient.dtype))
    return torch.stack([part.to(parts[0].device) for part in parts]).sum(0) if parts else torch.zeros(0)


def gram(left: Gradients, right: Gradients, scratch: int | None = None) -> Tensors:
    """Inner products of the rows of `left` with those of `right`: `{name: [B, B']}`.

    Where a product form cancelled, on the scale of the norms of the two rows, a parameter is computed again from
    entries of its rows. With one object on both sides symmetric products are computed once.
    """
    scratch = max(scratch_of(left), scratch_of(right)) if scratch is None else scratch
    found = {name: _gram(gradient, right[name], scratch) for name, gradient in left.items()}
    unsure = [name for name, term in found.items() if term.magnitude is not None]
    if unsure:
        mine = norms_each({name: left[name] for name in unsure}, scratch)
        theirs = mine if left is right else norms_each({name: right[name] for name in unsure}, scratch)
        flags = [_cancelled(found[name], mine[name], theirs[name]) for name in unsure]
        bad = torch.stack([flag.to(flags[0].device) for flag in flags]).tolist()
        for name in (name for name, is_bad in zip(unsure, bad, strict=True) if is_bad):
            found[name] = _gram(left[name], right[name], scratch, by_rows=True)
    return {name: term.value for name, term in found.items()}


def project(rows: Gradients, projection: Projection) -> Tensor:
    """The rows in `projection.size` numbers each, summed over factors and parameters: `[B, size]`."""
    parts = [
        part
        for name, gradient in rows.items()
        for part in [
            gradient.like.new_zeros(gradient.size, projection.size, dtype=gradient.dtype),
            *(projection.apply(name, factor).to(gradient.dtype) for factor in gradient.factors),
        ]
    ]
    total = parts[0] if parts else torch.zeros(0, projection.size)
    for part in parts[1:]:
        total = total + part.to(total.device)
    return total


def _gram(left: Gradient, right: Gradient, scratch: int, *, by_rows: bool = False) -> Terms:
    dtype = torch.promote_types(left.dtype, right.dtype)
    value = left.like.new_zeros(left.size, right.size, dtype=dtype)
    magnitude, unsure = torch.zeros_like(value), False

    def add(term: Terms, *, mirrored: bool = False) -> None:
        nonlocal value, magnitude, unsure
        value = value + (term.value.T if mirrored else term.value)
        if term.magnitude is not None:
            unsure = True
            magnitude = magnitude + (term.magnitude.T if mirrored else term.magnitude)

    if left is right:
        for factor in left.factors:
            add(cross_gram(factor, factor, scratch, by_rows=by_rows))
        for a, b in combinations(left.factors, 2):
            term = cross_gram(a, b, scratch, by_rows=by_rows)
            add(term)
            add(term, mirrored=True)
    else:
        for a in left.factors:
            for b in right.factors:
                add(cross_gram(a, b, scratch, by_rows=by_rows))
    return Terms(value.to(dtype), magnitude if unsure else None)


def _cancelled(term: Terms, mine: Tensor, theirs: Tensor) -> Tensor:
    """Whether any product lost more digits than its scale, the product of two norms, allows."""
    assert term.magnitude is not None
    scale = mine.to(term.value)[:, None] * theirs.to(term.value)
    return (term.magnitude > TRUST * scale).any()
