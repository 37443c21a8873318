"""What is appended: rows in the store's type, ids, metadata; checked before anything is taken."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._errors import kind_of, message
from .._factors import fitting
from .._rounding import unit_roundoff
from .._tree import Tensors
from ._manifest import Manifest
from ._shards import METADATA

_WHOLE = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_KEPT = {*_WHOLE, torch.bool, torch.float16, torch.bfloat16, torch.float32, torch.float64}

# Entries that are rounded at a time, and between what their squares are numbers of float32 with all digits.
_IN_CACHE = 2**17
_SAFE = 1e-12, 1e12
# Bytes from which memory is asked of the system.
_PAGES = 2**16


class Part(NamedTuple):
    """Rows that belong together, as a shard holds them."""

    rows: Tensor
    ids: Tensor
    metadata: Tensors


def columns(parts: Sequence[Part]) -> dict[str, list[Tensor]]:
    """What the parts hold, by the names that a shard has for it; at least one part."""
    named = {METADATA + name: [part.metadata[name] for part in parts] for name in parts[0].metadata}
    return {"rows": [part.rows for part in parts], "ids": [part.ids for part in parts], **named}


def parted(parts: Sequence[Part], count: int) -> tuple[list[Part], list[Part]]:
    """The first `count` rows, and the rest: views."""
    first: list[Part] = []
    for k, part in enumerate(parts):
        if len(part.ids) >= count:
            rest = [cut(part, count)] if len(part.ids) > count else []
            return [*first, cut(part, 0, count)], [*rest, *parts[k + 1 :]]
        first.append(part)
        count -= len(part.ids)
    return first, []


def cut(part: Part, start: int, stop: int | None = None) -> Part:
    """Some of the rows."""
    at = slice(start, stop)
    return Part(part.rows[at], part.ids[at], {name: value[at] for name, value in part.metadata.items()})


def stored(call: str, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Copies of rows in another type, on the CPU, some at a time so that they stay in a core's cache.

    Raises:
        ValueError: a row is not finite, overflows, or loses more than rounding does: its error is beyond two unit
            roundoffs of its norm, since its numbers are below the smallest normal ones.
    """
    rows = rows.detach().cpu()
    out = _room(rows.shape, dtype)
    step = fitting(_IN_CACHE, rows.shape[1])
    for start in range(0, len(rows), step):
        _round(call, rows[start : start + step], out[start : start + step], start)
    return out


def _room(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Memory that the system takes back when the rows are on disk: freed among others, it leaves a heap in pieces."""
    length = shape.numel() * dtype.itemsize
    if length < _PAGES:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(mmap.mmap(-1, length), dtype=dtype, count=shape.numel()).view(shape)


def _round(call: str, rows: Tensor, out: Tensor, first: int) -> None:
    top = rows.abs().amax(1)
    if not top.isfinite().all():
        k = first + int((~top.isfinite()).nonzero()[0])
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
        got = f"row {first + k}, whose largest entry is {float(top[k]):.3g}, beyond what {name} holds"
        do = "Make the store with dtype='bfloat16' or 'float32', or scale the gradients alike."
        raise ValueError(message(call, got=got, expected="numbers that keep their digits", do=do))


def ids_of(call: str, ids: Any, count: int, first: int) -> Tensor:
    """int64 `[count]`, a copy; from `first` on by default."""
    if ids is None:
        return torch.arange(first, first + count)
    given = _tensor(call, "ids", ids)
    if given.dtype not in _WHOLE:
        raise TypeError(message(call, got=f"ids of {given.dtype}", expected="integers, one a row"))
    if tuple(given.shape) != (count,):
        raise ValueError(message(call, got=f"ids of shape {tuple(given.shape)}", expected=f"[{count}], one a row"))
    return given.to(torch.int64, copy=True)


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
    if manifest.metadata is not None and described(found) != dict(manifest.metadata):
        expected = f"{dict(manifest.metadata)}, as in the rows before"
        raise ValueError(message(call, got=f"metadata {described(found)}", expected=expected))
    return found


def described(metadata: Tensors) -> dict[str, Any]:
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
