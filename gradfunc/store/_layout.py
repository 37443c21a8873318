"""Which columns a shard has, as the manifest says, and how many rows fill one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .._tree import Tensors
from ._columns import LENGTHS, Part, Ragged
from ._ids import IDS, STRINGS, UTF8
from ._kinds import FACTORS
from ._manifest import Manifest, Shard

ROWS, METADATA, LOSSES, WEIGHTS = "rows", "metadata/", "losses", "weights"
# The type and the shape of an entry, as a manifest says them.
Entry = Sequence[Any]


def group_of(name: str, key: str) -> str:
    """What a shard calls a factor of a parameter."""
    return f"{FACTORS}/{name}/{key}"


def read_part(tensors: Tensors, count: int, manifest: Manifest) -> Part:
    """The rows of a shard, held to what the manifest says of them; of values, only how many entries rows have is read.

    Raises:
        ValueError, KeyError, TypeError: something is not what it says.
    """
    plain: dict[str, Entry] = {METADATA + name: entry for name, entry in (manifest.metadata or {}).items()}
    groups: dict[str, Mapping[str, Entry]] = {}
    if manifest.ids == STRINGS:
        groups[IDS] = {UTF8: ["uint8", []]}
    else:
        plain[IDS] = ["int64", []]
    if manifest.is_factored:
        plain |= {LOSSES: ["float64", []], WEIGHTS: ["float64", []]}
        for name, factors in manifest.factors.items():
            own = {group_of(name, key): facts["tensors"] for key, facts in factors.items()}
            groups |= {group: entries for group, entries in own.items() if f"{group}/{LENGTHS}" in tensors}
    else:
        plain[ROWS] = [manifest.dtype, [manifest.size]]
    held = {name: _held(tensors, name, entry, count) for name, entry in plain.items()}
    ragged = {group: _ragged(tensors, group, entries, count) for group, entries in groups.items()}
    known = len(held) + sum(1 + len(group.tensors) for group in ragged.values())
    if len(tensors) != known:
        raise ValueError(f"{len(tensors)} tensors, of which {known} are known")
    return Part(count, held, ragged)


def filling(manifest: Manifest, parts: Sequence[Part]) -> int | None:
    """How many of the first rows fill a shard; None where all of them do not."""
    if not manifest.is_factored:
        each = _rows_a_shard(manifest)
        return each if sum(part.count for part in parts) >= each else None
    rows, size = 0, 0
    for part in parts:
        if size + int(part.sizes.sum()) >= manifest.shard_bytes:
            return rows + 1 + int((size + part.sizes.cumsum(0) < manifest.shard_bytes).sum())
        rows, size = rows + part.count, size + int(part.sizes.sum())
    return None


def is_short(manifest: Manifest, shard: Shard) -> bool:
    """Whether there is room in a shard for more rows."""
    if manifest.is_factored:
        return shard.bytes < manifest.shard_bytes
    return shard.rows < _rows_a_shard(manifest)


def _rows_a_shard(manifest: Manifest) -> int:
    return max(1, manifest.shard_bytes // max(1, manifest.size * manifest.torch_dtype.itemsize))


def _held(tensors: Tensors, name: str, entry: Entry, count: int) -> Tensor:
    """A tensor of so many entries."""
    value, (dtype, shape) = tensors[name], entry
    if (str(value.dtype), list(value.shape)) != (f"torch.{dtype}", [count, *shape]):
        raise ValueError(f"{name} of shape {tuple(value.shape)} and {value.dtype}")
    return value


def _ragged(tensors: Tensors, group: str, entries: Mapping[str, Entry], count: int) -> Ragged:
    lengths = _held(tensors, f"{group}/{LENGTHS}", ["int32", []], count)
    if count and int(lengths.min()) < 0:
        raise ValueError(f"{group} of {int(lengths.min())} entries")
    total = int(lengths.sum())
    return Ragged(lengths, {name: _held(tensors, f"{group}/{name}", entry, total) for name, entry in entries.items()})
