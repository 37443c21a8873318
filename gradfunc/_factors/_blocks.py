"""How work is cut so that what lives beside the answer stays within a budget of entries."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def fitting(scratch: int, each: int) -> int:
    """How many items of `each` entries fit; one always does."""
    return max(1, scratch // max(1, each))


def spans(stop: int, step: int, start: int = 0) -> Iterator[slice]:
    """Stretches of at most `step`, and 1 at least, that cover [start, stop)."""
    step = max(1, step)
    return (slice(first, min(first + step, stop)) for first in range(start, stop, step))


def flat_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """`[B, T, m]` and `[B, T, n]` as rows `[B T, m]`, `[B T, n]`, or `[T B, .]` where that order copies less."""
    early = sum(t.numel() for t in (a, b) if not _is_flat(t))
    late = sum(t.numel() for t in (a, b) if not _is_flat(t.transpose(0, 1)))
    if late < early:
        a, b = a.transpose(0, 1), b.transpose(0, 1)
    return a.flatten(0, 1), b.flatten(0, 1)


def _is_flat(t: Tensor) -> bool:
    return t.shape[0] <= 1 or t.shape[1] <= 1 or t.stride(0) == t.shape[1] * t.stride(1)


def slack(dtype: torch.dtype, entries: int) -> float:
    """What `entries` products that underflow can be off by, in units of the roundoff: `entries * tiny / u`."""
    limits = torch.finfo(dtype)
    return entries * limits.tiny / (limits.eps / 2)
