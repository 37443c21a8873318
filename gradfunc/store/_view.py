"""A store at one moment: its manifest and its shards, mapped."""

from __future__ import annotations

import bisect
import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .._errors import GradfuncWarning
from .._tree import Tensors
from ._columns import Part, joined
from ._error import StoreError
from ._ids import IDS, Ids, ids_of
from ._layout import METADATA, ROWS
from ._manifest import Manifest, read_manifest
from ._shards import Mapped, map_shard

# Rows that are widened at a time: few enough for a core's cache, many enough for a product.
BLOCK = 512


@dataclass(frozen=True, eq=False)
class View:
    """What was acknowledged when it was opened. Later writes, and files taken away by `compact`, leave it as it is."""

    manifest: Manifest
    shards: tuple[Mapped, ...]
    starts: tuple[int, ...]

    @classmethod
    def of(cls, call: str, folder: Path, damaged: str) -> View:
        """Map what the manifest names; once more if it has been replaced meanwhile."""
        manifest = read_manifest(call, folder)
        while True:
            try:
                return cls._mapped(call, folder, manifest, damaged)
            except StoreError:
                again = read_manifest(call, folder)
                if again.shards == manifest.shards:
                    raise
                manifest = again

    @classmethod
    def _mapped(cls, call: str, folder: Path, manifest: Manifest, damaged: str) -> View:
        shards, left_out = [], []
        for shard in manifest.shards:
            try:
                shards.append(map_shard(call, folder, shard, manifest))
            except StoreError:
                if damaged == "raise" or read_manifest(call, folder).shards != manifest.shards:
                    raise
                left_out.append(shard)
        if left_out:
            rows = sum(shard.rows for shard in left_out)
            names = ", ".join(shard.file for shard in left_out)
            warnings.warn(f"{call}: left out {rows} rows of damaged shards: {names}", GradfuncWarning, stacklevel=4)
        starts = itertools.accumulate((shard.part.count for shard in shards), initial=0)
        return cls(manifest, tuple(shards), tuple(starts))

    def __len__(self) -> int:
        return self.starts[-1]

    @property
    def dtype(self) -> torch.dtype:
        """In which products are taken."""
        return torch.promote_types(self.manifest.torch_dtype, torch.float32)

    def ids(self) -> Ids:
        """Of all rows, `[n]`."""
        return ids_of([self._held(k, [IDS]) for k in range(len(self.shards))], self.manifest.ids)

    def column(self, name: str, like: Tensor) -> Tensor:
        """What all rows have under a name, `[n, ...]`, whose entries look like `like`."""
        parts = [self._held(k, [name]).plain[name] for k in range(len(self.shards))]
        return torch.cat([like.new_empty(0, *like.shape), *parts])

    def metadata(self) -> Tensors:
        """What is kept with each row, `{name: [n, ...]}`."""
        kinds = (self.manifest.metadata or {}).items()
        likes = {name: torch.empty(shape, dtype=getattr(torch, dtype)) for name, (dtype, shape) in kinds}
        return {name: self.column(METADATA + name, like) for name, like in likes.items()}

    def part(self, at: Tensor) -> Part:
        """Copies of all that is held of the rows at positions `[m]`, m >= 1."""
        order, parts = at.argsort(stable=True), []
        for k, own in self._shares(at[order]):
            parts.append(self.shards[k].part.take(at[order[own]] - self.starts[k]))
            self.shards[k].done()
        whole = joined(parts)
        return whole if order.equal(torch.arange(len(at))) else whole.take(order.argsort())

    def rows(self, at: Tensor) -> Tensor:
        """Copies of the rows at positions `[m]`: `[m, size]`."""
        out = torch.empty(len(at), self.manifest.size, dtype=self.manifest.torch_dtype)
        order = at.argsort(stable=True)
        for k, own in self._shares(at[order]):
            out[order[own]] = self.shards[k].part.plain[ROWS][at[order[own]] - self.starts[k]]
            self.shards[k].done()
        return out

    def blocks(self, start: int = 0, stop: int | None = None, block: int = BLOCK) -> Iterator[tuple[slice, Tensor]]:
        """Some rows at a time, in the type of products: `(positions, [b, size])`, all in one place in memory."""
        stop = len(self) if stop is None else stop
        room = torch.empty(block, self.manifest.size, dtype=self.dtype)
        for first, shard in zip(self.starts, self.shards, strict=False):
            held = shard.part.plain[ROWS]
            low, high = max(start - first, 0), min(stop - first, len(held))
            for at in range(low, high, block):
                part = held[at : min(at + block, high)]
                yield slice(first + at, first + at + len(part)), room[: len(part)].copy_(part)
            if low < high:
                shard.done()

    def _held(self, k: int, names: Sequence[str]) -> Part:
        """Copies of some columns of a shard."""
        part = self.shards[k].part.chosen(names)
        copied = part.take(torch.arange(part.count))
        self.shards[k].done()
        return copied

    def _shares(self, places: Tensor) -> Iterator[tuple[int, slice]]:
        """Of positions that rise: each shard that has some of them, and which."""
        wanted, first = places.tolist(), 0
        while first < len(wanted):
            k = bisect.bisect_right(self.starts, wanted[first]) - 1
            last = bisect.bisect_left(wanted, self.starts[k + 1], first)
            yield k, slice(first, last)
            first = last
