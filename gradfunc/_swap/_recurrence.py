"""Which scan runs a recurrent layer: the one by hand wherever it can, under vmap on all samples at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.autograd import forward_ad

from .._recurrent import Cell, State, Step, fast, plain
from ._flat import once
from ._levels import is_batched, levels


def quickest(
    x: Tensor, sizes: Sequence[int] | None, state: State, cell: Cell, step: Step, *, reverse: bool
) -> tuple[Tensor, State]:
    """`fast`, or `plain` for packed sequences, forward-mode derivatives, weights of each sample's own, and inside
    transforms that differentiate."""
    given, running = (x, *state), levels()
    weights = [t for t in cell if t is not None]
    if sizes is None and not any(forward_ad.unpack_dual(t).tangent is not None for t in (*given, *weights)):
        if not running:
            return fast(x, sizes, state, cell, step, reverse=reverse)
        if all(running) and any(map(is_batched, given)) and not any(map(is_batched, weights)):

            def folded(dims: tuple[int | None, ...], *given: Tensor) -> tuple[Tensor, ...]:
                return _folded(dims, *given, cell=cell, step=step, reverse=reverse)

            y, *last = once(folded, *given)
            return y, tuple(last)
    return plain(x, sizes, state, cell, step, reverse=reverse)


def _folded(dims: tuple[int | None, ...], *given: Tensor, **options: Any) -> tuple[Tensor, ...]:
    """Each of `[T, B, features]`, `[B, n]`, with samples in `dims`, as one batch of all samples' rows."""
    samples = next(t.shape[d] for t, d in zip(given, dims, strict=True) if d is not None)

    def rows(tensor: Tensor, dim: int | None) -> Tensor:
        """The samples before the rows, in the last dimension but one."""
        lead = tensor.dim() - (2 if dim is None else 3)
        apart = tensor.movedim(dim, lead) if dim is not None else _repeated(tensor.unsqueeze(lead), lead, samples)
        return apart.flatten(lead, lead + 1)

    x, *state = (rows(t, d) for t, d in zip(given, dims, strict=True))
    y, last = quickest(x, None, tuple(state), **options)
    return y.unflatten(1, (samples, -1)).movedim(1, 0), *(s.unflatten(0, (samples, -1)) for s in last)


def _repeated(tensor: Tensor, dim: int, count: int) -> Tensor:
    return tensor.expand(*tensor.shape[:dim], count, *tensor.shape[dim + 1 :])
