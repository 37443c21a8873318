"""A store at one moment: its manifest and its shards, mapped."""

from __future__ import annotations

import bisect
import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .._errors import GradfuncWarning
from .._tree import Tensors
from ._error import StoreError
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
        starts = itertools.accumulate((len(shard.ids) for shard in shards), initial=0)
        return cls(manifest, tuple(shards), tuple(starts))

    def __len__(self) -> int:
        return self.starts[-1]

    @property
    def dtype(self) -> torch.dtype:
        """In which products are taken."""
        return torch.promote_types(self.manifest.torch_dtype, torch.float32)

    def ids(self) -> Tensor:
        """Of all rows, `[n]`."""
        out = torch.empty(len(self), dtype=torch.int64)
        for start, shard in zip(self.starts, self.shards, strict=False):
            out[start : start + len(shard.ids)] = shard.ids
            shard.done()
        return out

    def metadata(self) -> Tensors:
        """What is kept with each row, `{name: [n, ...]}`."""
        kinds = (self.manifest.metadata or {}).items()
        out = {name: torch.empty(len(self), *shape, dtype=getattr(torch, dtype)) for name, (dtype, shape) in kinds}
        for start, shard in zip(self.starts, self.shards, strict=False):
            for name, value in shard.metadata.items():
                out[name][start : start + len(value)] = value
            shard.done()
        return out

    def rows(self, at: Tensor) -> Tensor:
        """Copies of the rows at positions `[m]`: `[m, size]`."""
        out = torch.empty(len(at), self.manifest.size, dtype=self.manifest.torch_dtype)
        order = at.argsort(stable=True)
        places = at[order].tolist()
        first = 0
        while first < len(places):
            k = bisect.bisect_right(self.starts, places[first]) - 1
            last = bisect.bisect_left(places, self.starts[k + 1], first)
            out[order[first:last]] = self.shards[k].rows[at[order[first:last]] - self.starts[k]]
            self.shards[k].done()
            first = last
        return out

    def blocks(self, start: int = 0, stop: int | None = None, block: int = BLOCK) -> Iterator[tuple[slice, Tensor]]:
        """Some rows at a time, in the type of products: `(positions, [b, size])`, all in one place in memory."""
        stop = len(self) if stop is None else stop
        room = torch.empty(block, self.manifest.size, dtype=self.dtype)
        for first, shard in zip(self.starts, self.shards, strict=False):
            low, high = max(start - first, 0), min(stop - first, len(shard.rows))
            for at in range(low, high, block):
                part = shard.rows[at : min(at + block, high)]
                yield slice(first + at, first + at + len(part)), room[: len(part)].copy_(part)
            if low < high:
                shard.done()
