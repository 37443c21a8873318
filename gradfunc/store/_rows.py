"""Numbers as they are kept: rows in the store's type, metadata; checked before anything is taken."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._errors import kind_of, message
from .._factors import fitting
from .._rounding import unit_roundoff
from .._tree import Tensors
from ._manifest import Manifest

_WHOLE = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_KEPT = {*_WHOLE, torch.bool, torch.float16, torch.bfloat16, torch.float32, torch.float64}

# Entries that are rounded at a time, and between what their squares are numbers of float32 with all digits.
_IN_CACHE = 2**17
_SAFE = 1e-12, 1e12
# Bytes from which memory is asked of the system.
_PAGES = 2**16


def stored(call: str, rows: Tensor, dtype: torch.dtype, at: Tensor | None = None) -> Tensor:
    """Copies of rows in another type, on the CPU, some at a time so that they stay in a core's cache.

    Args:
        call: for messages.
        rows: `[n, size]`.
        dtype: theirs on disk.
        at: what messages call them, `[n]`; by default their numbers.

    Raises:
        ValueError: a row is not finite, overflows, or loses more than rounding does: its error is beyond two unit
            roundoffs of its norm, since its numbers are below the smallest normal ones.
    """
    rows = rows.detach().cpu()
    if not rows.shape[1]:
        return torch.empty(rows.shape, dtype=dtype)
    out = _room(rows.shape, dtype)
    step = fitting(_IN_CACHE, rows.shape[1])
    at = torch.arange(len(rows)) if at is None else at
    for start in range(0, len(rows), step):
        some = slice(start, start + step)
        _round(call, rows[some], out[some], at[some])
    return out


def _room(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Memory that the system takes back when the rows are on disk: freed among others, it leaves a heap in pieces."""
    length = shape.numel() * dtype.itemsize
    if length < _PAGES:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(mmap.mmap(-1, length), dtype=dtype, count=shape.numel()).view(shape)


def _round(call: str, rows: Tensor, out: Tensor, at: Tensor) -> None:
    top = rows.abs().amax(1)
    if not top.isfinite().all():
        k = int(at[~top.isfinite()][0])
        do = "Leave the sample out: g.select(...)."
        raise ValueError(message(call, got=f"row {k} with NaN or inf", expected="finite gradients", do=do))
    out.copy_(rows)
    if out.dtype == rows.dtype or out.dtype.itemsize > rows.dtype.itemsize:
        return
    off = out.to(rows.dtype).sub_(rows)
    if not _SAFE[0] < float(top.min()) <= float(top.max()) < _SAFE[1]:  # squares would overflow or vanish
        scale = torch.where(top > 0, top, 1.0)[:, None]
        rows, off = rows / scale, off / scale
    allowed = 2 * unit_roundoff(out.dtype) * torch.linalg.vector_norm(rows, dim=1)
    lost = ~(torch.linalg.vector_norm(off, dim=1) <= allowed)
    if lost.any():
        k = int(lost.nonzero()[0])
        name = str(out.dtype).removeprefix("torch.")
        got = f"row {int(at[k])}, whose largest entry is {float(top[k]):.3g}, beyond what {name} holds"
        do = "Make the store with dtype='bfloat16' or 'float32', or scale the gradients alike."
        raise ValueError(message(call, got=got, expected="numbers that keep their digits", do=do))


def metadata_of(call: str, metadata: Mapping[str, Any] | None, count: int, manifest: Manifest) -> Tensors:
    """`{name: [count, ...]}`, copies, of the names, types and shapes that the store has."""
    if metadata is not None and not isinstance(metadata, Mapping):
        raise TypeError(message(call, got=f"metadata: {kind_of(metadata)}", expected="a dict {name: values}"))
    found = {}
    for name, values in (metadata or {}).items():
        value = _tensor(call, f"metadata[{name!r}]", values)
        if value.dtype not in _KEPT or not value.dim() or len(value) != count:
            got = f"metadata[{name!r}] of shape {tuple(value.shape)} and {value.dtype}"
            raise ValueError(message(call, got=got, expected=f"[{count}, ...] numbers or bools, one entry a row"))
        found[str(name)] = value.clone()
    if manifest.metadata is not None and described_metadata(found) != dict(manifest.metadata):
        expected = f"{dict(manifest.metadata)}, as in the rows before"
        raise ValueError(message(call, got=f"metadata {described_metadata(found)}", expected=expected))
    return found


def described_metadata(metadata: Tensors) -> dict[str, Any]:
    """`{name: [dtype, shape]}`, as a manifest holds it."""
    return {
        name: [str(value.dtype).removeprefix("torch."), list(value.shape[1:])]
        for name, value in sorted(metadata.items())
    }


def _tensor(call: str, name: str, values: Any) -> Tensor:
    try:
        return values.detach().cpu() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    except (TypeError, ValueError) as error:
        raise TypeError(message(call, got=f"{name}: {kind_of(values)}", expected="numbers, one entry a row")) from error
