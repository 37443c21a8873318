"""Which rows are formed as soon as they are captured, and which stay factors.

Formed rows answer every question from one product, where clipping by factors needs one for norms and one for the sum.
Factors of few positions are smaller than rows by far.
"""

from __future__ import annotations

from collections.abc import Container

from ._dense import Dense
from ._gradients import Gradient, Gradients

# What is held beyond rows that are no larger than what their product reads stays within this share of the factors.
SPARE = 1.3


def formed(rows: Gradients) -> frozenset[str]:
    """The names whose rows should be formed by `Gradient.formed`.

    First, where rows take no more than what their product reads, or no more than twice that if norms would form them
    anyway; never more than four times what is held, in bytes, since a convolution reads windows that it does not hold.
    Then rows up to twice as large as their factors, the least larger first, while all that is held, as rows or factors,
    stays within 1.3 times the factors. What several factors share is held once, and until the last of them is formed.
    """
    open_ = {name: g for name, g in rows.items() if g.factors and not any(isinstance(f, Dense) for f in g.factors)}
    chosen = {name for name, gradient in open_.items() if _surely(gradient)}
    total = _all(open_, set())
    for name in sorted(open_, key=lambda name: _rows(open_[name]) / max(1, _held(open_[name]))):
        small = name not in chosen and _rows(open_[name]) <= 2 * _held(open_[name])
        if small and _all(open_, {*chosen, name}) <= SPARE * total:
            chosen.add(name)
    return frozenset(chosen)


def _all(rows: Gradients, chosen: Container[str]) -> int:
    """Bytes of the rows of those that are chosen and of the factors of all others."""
    factors = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for name, gradient in rows.items()
        if name not in chosen
        for factor in gradient.factors
        for tensor in factor.tensors
    }
    return sum(factors.values()) + sum(_rows(gradient) for name, gradient in rows.items() if name in chosen)


def _surely(gradient: Gradient) -> bool:
    anyway = all(factor.method(2**16).name == "direct" for factor in gradient.factors)
    reads = sum(factor.reads for factor in gradient.factors)
    return gradient.like.numel() <= reads * (2 if anyway else 1) and _rows(gradient) <= 4 * _held(gradient)


def _held(gradient: Gradient) -> int:
    """Bytes of the factors."""
    return sum(tensor.numel() * tensor.element_size() for factor in gradient.factors for tensor in factor.tensors)


def _rows(gradient: Gradient) -> int:
    """Bytes of the rows."""
    return gradient.size * gradient.like.numel() * gradient.dtype.itemsize
