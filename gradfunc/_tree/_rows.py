"""Rows: dictionaries whose tensors have a leading dimension of samples, one row a sample."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .._errors import message
from ._flat import Tensors

# Which samples: a stretch of them, or positions `[b]` on the CPU.
At = slice | Tensor


def count(at: At) -> int:
    """How many samples `at` names; a slice has both ends."""
    return int(at.stop - at.start) if isinstance(at, slice) else len(at)


def is_whole(at: At, size: int) -> bool:
    """Whether `at` is the stretch of all `size` samples."""
    return isinstance(at, slice) and (at.start, at.stop) == (0, size)


def at_positions(at: At) -> Tensor:
    """The positions that `at` names, `[b]`."""
    return torch.arange(at.start, at.stop) if isinstance(at, slice) else at


def compact(positions: Tensor) -> At:
    """The same positions, as a stretch where they are one."""
    first = int(positions[0]) if len(positions) else 0
    stretch = torch.equal(positions, torch.arange(first, first + len(positions)))
    return slice(first, first + len(positions)) if stretch else positions


def scattered(parts: list[tuple[At, Tensor]]) -> Tensor:
    """Values `[b, ...]` computed for some samples at a time, in the order of the samples.

    Raises:
        ValueError: shapes that differ, which only what a loss returns beside its value can have.
    """
    if len(shapes := {tuple(value.shape[1:]) for _, value in parts}) > 1:
        got, do = f"auxiliary values of shapes {sorted(shapes)}", "Pad them, or reduce them over what is ragged."
        raise ValueError(message("g.aux", got=got, expected="the same shape for every sample", do=do))
    joined = torch.cat([value for _, value in parts])
    if all(isinstance(at, slice) for at, _ in parts):  # stretches come in order
        return joined
    order = torch.cat([at_positions(at) for at, _ in parts]).argsort()
    return joined[order.to(joined.device)]


def weighed(values: Tensor, c: Tensor, dim: int = 0) -> Tensor:
    """`values`, one a sample along `dim`, times `c`; exact zeros where `c` is 0, also for inf and NaN."""
    factor = c.to(values.device).reshape([-1 if d == dim else 1 for d in range(values.dim())])
    product = (values * factor.to(wide(values.dtype))).to(values.dtype)
    return torch.where(factor == 0, torch.zeros_like(product), product)


def row_norms(rows: Mapping[str, Tensor]) -> Tensor:
    """Euclidean norm of each row over all tensors: `[B]`, safe from overflow and underflow.

    Every row is divided by its largest entry before squaring, so a finite gradient has a finite norm
    wherever that norm is representable; inf gives inf and NaN gives NaN. Half types accumulate in float32.
    """
    flat = [_flat(value) for value in rows.values() if math.prod(value.shape[1:])]
    if not flat:
        some = next(iter(rows.values()))
        return some.new_zeros(len(some), dtype=wide(some.dtype))
    largest = torch.stack([torch.linalg.vector_norm(value, torch.inf, dim=1) for value in flat]).amax(0)
    unit = torch.where((largest > 0) & largest.isfinite(), largest, torch.ones_like(largest))
    parts = torch.stack([torch.linalg.vector_norm(value / unit[:, None], dim=1) for value in flat])
    norms: Tensor = unit * torch.linalg.vector_norm(parts, dim=0)
    return norms


def row_sum(rows: Mapping[str, Tensor], c: Tensor | None = None) -> Tensors:
    """Sum of the rows, or of `c[i]` times row i, in the accumulation dtype.

    A coefficient 0 leaves its row out, even one that holds inf or NaN (0 * NaN is NaN).
    """
    if c is None:
        return {name: value.to(wide(value.dtype)).sum(0) for name, value in rows.items()}
    kept = (c != 0).nonzero()[:, 0]
    out = {}
    for name, value in rows.items():
        chosen = value if len(kept) == len(c) else value[kept]
        flat = _flat(chosen)
        out[name] = (c[kept].to(flat.dtype) @ flat).reshape(value.shape[1:])
    return out


def _flat(value: Tensor) -> Tensor:
    """`[B, *shape]` as `[B, entries]` in the accumulation dtype."""
    return value.reshape(len(value), math.prod(value.shape[1:])).to(wide(value.dtype))


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums are held: float32 for the half types, else the dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def zeros(params: Mapping[str, Tensor]) -> Tensors:
    """Beside each tensor, without a graph, in the accumulation dtype: half types would lose squares and small steps."""
    return {name: torch.zeros_like(value, dtype=wide(value.dtype)).detach() for name, value in params.items()}
