"""What is appended: rows in the store's type, ids, metadata; checked before anything is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._errors import kind_of, message
from .._rounding import unit_roundoff
from .._tree import Tensors
from ._manifest import Manifest
from ._shards import METADATA

_WHOLE = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_KEPT = {*_WHOLE, torch.bool, torch.float16, torch.bfloat16, torch.float32, torch.float64}


class Part(NamedTuple):
    """Rows that belong together, as a shard holds them."""

    rows: Tensor
    ids: Tensor
    metadata: Tensors

    def tensors(self) -> Tensors:
        """By the names that a shard has for them."""
        named = {METADATA + name: value for name, value in self.metadata.items()}
        held = {"rows": self.rows, "ids": self.ids, **named}
        return {name: value.contiguous() for name, value in held.items()}


def joined(parts: Sequence[Part]) -> Part:
    """One after the other; at least one."""
    metadata = {name: torch.cat([part.metadata[name] for part in parts]) for name in parts[0].metadata}
    return Part(torch.cat([part.rows for part in parts]), torch.cat([part.ids for part in parts]), metadata)


def cut(part: Part, start: int, stop: int | None = None) -> Part:
    """Some of the rows."""
    at = slice(start, stop)
    return Part(part.rows[at], part.ids[at], {name: value[at] for name, value in part.metadata.items()})


def stored(call: str, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Copies of rows in another type, on the CPU.

    Raises:
        ValueError: a row is not finite, overflows, or loses more than rounding does: its error is beyond two unit
            roundoffs of its norm, since its numbers are below the smallest normal ones.
    """
    rows = rows.detach().cpu()
    if not rows.isfinite().all():
        k = int((~rows.isfinite()).any(1).nonzero()[0])
        do = "Leave the sample out: g.select(...)."
        raise ValueError(message(call, got=f"row {k} with NaN or inf", expected="finite gradients", do=do))
    out = rows.to(dtype, copy=True).contiguous()
    if dtype == rows.dtype:
        return out
    top = rows.abs().amax(1, keepdim=True)  # squares of what is divided by it neither overflow nor vanish
    scale = torch.where(top > 0, top, torch.ones_like(top))
    off = torch.linalg.vector_norm((rows - out.to(rows.dtype)) / scale, dim=1)
    lost = ~(off <= 2 * unit_roundoff(dtype) * torch.linalg.vector_norm(rows / scale, dim=1))
    if lost.any() and dtype.itemsize <= rows.dtype.itemsize:
        k = int(lost.nonzero()[0])
        size = float(rows[k].abs().max())
        got = f"row {k}, whose largest entry is {size:.3g}, beyond what {str(dtype).removeprefix('torch.')} holds"
        do = "Make the store with dtype='bfloat16' or 'float32', or scale the gradients alike."
        raise ValueError(message(call, got=got, expected="numbers that keep their digits", do=do))
    return out


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
