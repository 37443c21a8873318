"""Norms of rows: from squares where these can be trusted, else from the rows' entries, safe from overflow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from .._tree import Tensors, row_norms
from ._blocks import fitting, spans
from ._factor import Factor, Terms
from ._gradients import Gradient, Gradients, scratch_of
from ._mapped import Mapped
from ._outer import Outer
from ._pairs import cross
from ._unfolded import Unfolded

# Squares whose terms add up to this many times their sum have lost three digits: they are computed again.
TRUST = 1e3


def norms(rows: Gradients, scratch: int | None = None) -> Tensor:
    """Euclidean norm of each row over all parameters: `[B]`, as `_tree.row_norms` of the dense rows.

    Squares first, of all samples. Those of a sample are not trusted where they overflowed, may have underflowed, or
    where a product form cancelled: these samples alone are computed again from their entries, scaled by the largest.
    """
    scratch = scratch_of(rows) if scratch is None else scratch
    if not rows:
        return torch.zeros(0)
    terms = _on_one_device([squares(gradient, scratch) for gradient in rows.values()])
    value = torch.stack([term.value for term in terms]).sum(0)
    doubted = _doubted(value, torch.stack([_magnitude(term) for term in terms]).sum(0))
    out = value.clamp_min(0).sqrt()
    at = doubted.nonzero()[:, 0].cpu()  # the one wait for the device
    if len(at):
        parts = [safe_norms(gradient.select(at), scratch).to(out) for gradient in rows.values()]
        out[at.to(out.device)] = _hypot(parts)
    return out


def norms_each(rows: Gradients, scratch: int | None = None) -> Tensors:
    """The same for every parameter alone: `{name: [B]}`."""
    scratch = scratch_of(rows) if scratch is None else scratch
    if not rows:
        return {}
    terms = {name: squares(gradient, scratch) for name, gradient in rows.items()}
    moved = _on_one_device(list(terms.values()))
    doubted = torch.stack([_doubted(term.value, _magnitude(term)) for term in moved]).nonzero().cpu()
    out = {}
    for k, (name, term) in enumerate(terms.items()):
        out[name] = term.value.clamp_min(0).sqrt()
        at = doubted[doubted[:, 0] == k, 1]
        if len(at):
            out[name][at.to(out[name].device)] = safe_norms(rows[name].select(at), scratch)
    return out


def squares(gradient: Gradient, scratch: int) -> Terms:
    """Squared norms of one parameter's rows, products of its factors included."""
    if len(gradient.factors) == 1:
        term = gradient.factors[0].squares(scratch)
        return Terms(term.value.to(gradient.dtype), _magnitude(term).to(gradient.dtype))
    value = gradient.like.new_zeros(gradient.size, dtype=gradient.dtype)
    magnitude = torch.zeros_like(value)
    for factor in gradient.factors:
        term = factor.squares(scratch)
        value, magnitude = value + term.value, magnitude + _magnitude(term)
    for a, b in combinations(gradient.factors, 2):
        term = cross(a, b, scratch)
        value, magnitude = value + 2 * term.value, magnitude + 2 * _magnitude(term)
    # factors may cancel each other
    return Terms(value.to(gradient.dtype), (magnitude + value.abs()).to(gradient.dtype))


def safe_norms(gradient: Gradient, scratch: int) -> Tensor:
    """Norms from entries of the rows, as `_tree.row_norms` has them, some entries or samples at a time."""
    none = gradient.like.new_zeros(gradient.size, dtype=gradient.dtype)
    if not gradient.factors or not gradient.size:
        return none
    if len(gradient.factors) > 1 or isinstance(gradient.factors[0], Mapped):
        step = fitting(scratch, gradient.like.numel())
        parts = [row_norms({"": gradient.select(at).dense()}) for at in spans(gradient.size, step)]
        return torch.cat(parts).to(none)
    (factor,) = gradient.factors
    if isinstance(factor, Outer) and factor.x.shape[1] == 1:
        return _product_norms(factor).to(none)
    if not isinstance(factor, (Outer, Unfolded)):
        return _by_pieces(factor, scratch).to(none)
    at = _alive(factor).nonzero()[:, 0]
    return none.index_copy(0, at, _by_pieces(factor.select(at), scratch).to(none))


def _by_pieces(factor: Factor, scratch: int) -> Tensor:
    norms = factor.tensors[-1].new_zeros(factor.size, dtype=factor.dtype)
    for _, block in factor.pieces(fitting(scratch, factor.size)):
        norms = _hypot([norms, row_norms({"": block})])
    return norms


def _alive(factor: Outer | Unfolded) -> Tensor:
    """Samples whose rows are not surely 0: samples without a loss are many, and need no product."""
    x, g = (
        torch.linalg.vector_norm(half.flatten(1), torch.inf, dim=1) if half[:1].numel() else None
        for half in factor.tensors
    )
    if x is None or g is None:
        return torch.zeros(factor.size, dtype=torch.bool, device=factor.x.device)
    zero: Tensor = (x == 0) & g.isfinite() | (g == 0) & x.isfinite()
    return ~zero


def _product_norms(factor: Outer) -> Tensor:
    """`|x| |g|`; NaN, as in the rows, where an infinite entry of one half meets a 0 of the other."""
    x, g = (row_norms({"": half.to(factor.dtype)}) for half in (factor.x, factor.g))
    meets = x.isinf() & (factor.g == 0).any(2)[:, 0] | g.isinf() & (factor.x == 0).any(2)[:, 0]
    empty = math.prod(factor.features) == 0
    return torch.zeros_like(x) if empty else torch.where(meets, torch.nan, x * g)


def _hypot(parts: Sequence[Tensor]) -> Tensor:
    return row_norms({"": torch.stack(list(parts), 1)})


def _doubted(value: Tensor, magnitude: Tensor) -> Tensor:
    return ~(value.isfinite() & (magnitude <= TRUST * value))


def _magnitude(term: Terms) -> Tensor:
    return term.value.abs() if term.magnitude is None else term.magnitude


def _on_one_device(terms: list[Terms]) -> list[Terms]:
    device = terms[0].value.device
    return [Terms(term.value.to(device), _magnitude(term).to(device)) for term in terms]
