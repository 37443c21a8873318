"""Rows that keep their derivative, as one query holds them: plain functions of tensors, nothing in place.

Nothing is asked of values, so that all of it also runs under a vmap around the call, and twice differentiable rows give
twice differentiable answers.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from .. import _factors
from .._tree import Tensors, wide
from ._piece import Piece
from ._scales import Names


class LivePiece(Piece):
    """A piece whose rows are read as dense ones, `{name: [b, *shape]}`."""

    def scaled(self, values: Tensor, c: Tensor | None, dim: int = 0) -> Tensor:
        """`values`, one a sample along `dim`, times coefficients."""
        return values if c is None else times(values, c, dim)

    def total(self, parts: list[Tensor]) -> Tensor:
        """Differentiable where a part is 0."""
        return norms({str(k): norm.to(parts[0].device)[:, None] for k, norm in enumerate(parts)})

    def norms_each(self) -> Tensors:
        """Norms of each parameter's part."""
        return {name: self._sized(norms({name: self._dense[name]}), self.coefficient(name)) for name in self.names}

    def gram(self, other: Piece) -> Tensors:
        """Products of matrices."""
        theirs = _factors.dense(other.rows)
        return {
            name: self.scaled(
                other.scaled(_flat(self._dense[name]) @ _flat(theirs[name]).T, other.coefficient(name), dim=1),
                self.coefficient(name),
            )
            for name in self.names
        }

    def dots(self, direction: Mapping[str, Tensor]) -> Tensor:
        """Products with a vector."""
        parts = []
        for name in self.names:
            value = self._dense[name]
            product = _flat(value) @ direction[name].flatten().to(wide(value.dtype))
            parts.append(self.scaled(product, self.coefficient(name)))
        return torch.stack([part.to(parts[0].device) for part in parts]).sum(0)

    def dense(self) -> Tensors:
        """Always copies: nothing can be asked of storage."""
        return {name: self.scaled(self._dense[name], self.coefficient(name)).clone() for name in self.names}

    def weighted_sum(self, c: Tensor | None, *, spent: bool = False) -> Tensors:
        """Sums of products; the graph holds the rows."""
        sums = {}
        for name in self.names:
            value = self.scaled(self._dense[name].to(wide(self._dense[name].dtype)), self.coefficient(name))
            sums[name] = (value if c is None else times(value, c)).sum(0)
        return sums

    @functools.cached_property
    def _dense(self) -> Tensors:
        return _factors.dense(self.rows)

    def _measured(self, names: Names) -> Tensor:
        return norms({name: self._dense[name] for name in names})

    def _sized(self, norms: Tensor, c: Tensor | None) -> Tensor:
        return norms if c is None else times(norms, c.abs())


def norms(rows: Tensors) -> Tensor:
    """Euclidean norms, `[b]`, safe from overflow; where a row is 0 all derivatives are 0, the first a subgradient.

    The squares of all parameters are added under one root: norms of norms would lose the second derivative where one
    parameter's part of a row is 0. The unit, each row's largest entry, cancels in every derivative.
    """
    flat = [_flat(value) for value in rows.values()]
    some = flat[0]
    filled = [value.detach().abs().amax(1) for value in flat if value.shape[1]]
    if not filled:
        return some.new_zeros(len(some))
    largest = torch.stack([value.to(some.device) for value in filled]).amax(0)
    unit = torch.where((largest > 0) & largest.isfinite(), largest, torch.ones_like(largest))
    square = torch.stack([(v / unit.to(v)[:, None]).square().sum(1).to(some.device) for v in flat]).sum(0)
    zero = largest == 0
    root = torch.where(zero, torch.ones_like(square), square).sqrt()
    return unit * torch.where(zero, torch.zeros_like(root), root)


def times(values: Tensor, c: Tensor, dim: int = 0) -> Tensor:
    """`values`, one a sample along `dim`, times `c`; exact zeros where `c` is 0, also for inf and NaN.

    As `_tree.weighed`, but a coefficient 0 still has its derivative, the value, where that is finite.
    """
    factor = c.to(values.device).reshape([-1 if d == dim else 1 for d in range(values.dim())])
    kept = torch.where((factor == 0) & ~values.isfinite(), torch.zeros_like(values), values)
    return (kept * factor.to(wide(values.dtype))).to(values.dtype)


def readable(tensor: Tensor) -> bool:
    """Whether Python may look at the values: not where a vmap around the call maps over them."""
    try:
        bool((tensor == tensor).all())
    except RuntimeError:
        return False
    return True


def _flat(value: Tensor) -> Tensor:
    """`[b, *shape]` as `[b, entries]` in the accumulation dtype."""
    return value.flatten(1).to(wide(value.dtype)) if value.dim() > 1 else value[:, None].to(wide(value.dtype))
