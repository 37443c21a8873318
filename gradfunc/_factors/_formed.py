"""Which rows are formed as soon as they are captured, and which stay factors.

Formed rows answer every question from one product, where clipping by factors needs one for norms and one for the sum.
Factors of few positions are smaller than rows by far.
"""

from __future__ import annotations

from ._dense import Dense
from ._gradients import Gradient, Gradients

# All that is held, as rows or factors, stays within this share of the factors alone, unless rows are no larger than
# what their product reads: that is a bound on memory, and what remains of it goes where rows are the least larger.
SPARE = 1.3


def formed(rows: Gradients) -> frozenset[str]:
    """The names whose rows should be formed by `Gradient.formed`.

    First, where rows take no more than what their product reads, or no more than twice that if norms would form them
    anyway; never more than four times what is held, in bytes, since a convolution reads windows that it does not hold.
    Then rows up to twice as large as their factors, the least larger first, while memory allows.
    """
    open_ = {name: g for name, g in rows.items() if g.factors and not any(isinstance(f, Dense) for f in g.factors)}
    chosen = {name for name, gradient in open_.items() if _surely(gradient)}
    held = {name: (_held(gradient), _rows(gradient)) for name, gradient in open_.items()}
    total = sum(factors for factors, _ in held.values())
    taken = sum(held[name][name in chosen] for name in held)
    for name in sorted(held, key=lambda name: held[name][1] / max(1, held[name][0])):
        factors, each = held[name]
        more = taken - factors + each
        if name not in chosen and each <= 2 * factors and more <= SPARE * total:
            chosen.add(name)
            taken = more
    return frozenset(chosen)


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
