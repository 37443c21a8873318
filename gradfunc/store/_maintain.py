"""Compact and merge: files of a store replaced as a whole."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from .._files import replace_file, sha256_of
from ._error import StoreError, reason, refused
from ._manifest import Manifest, Shard, read_manifest
from ._rows import Part, columns, parted
from ._shards import map_shard, write_shard
from ._writer import locked, recover, rows_a_shard


def compact(call: str, folder: Path) -> int:
    """Join short shards; returns how many files fewer there are. Until the last moment the old ones are what counts."""
    with locked(call, folder):
        manifest = read_manifest(call, folder)
        recover(call, folder, manifest)
        try:
            made = _compacted(call, folder, manifest)
            if made is not manifest:
                made.write(folder)
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            do = "The store is as it was; free some space."
            raise refused(call, got=reason(error), expected="room for the rows of short shards", do=do) from error
        gone = {shard.file for shard in manifest.shards} - {shard.file for shard in made.shards}
        for name in gone:
            (folder / name).unlink(missing_ok=True)
        return len(manifest.shards) - len(made.shards)


def _compacted(call: str, folder: Path, manifest: Manifest) -> Manifest:
    each = rows_a_shard(manifest)
    kept: list[Shard] = []
    made = manifest
    for run in _runs(manifest.shards, each):
        if len(run) == 1:
            kept.extend(run)
            continue
        waiting: list[Part] = []
        for k, shard in enumerate(run):
            _hold_to_checksum(call, folder, shard)
            mapped = map_shard(call, folder, shard, manifest)
            waiting.append(Part(mapped.rows, mapped.ids, mapped.metadata))
            last = k == len(run) - 1
            while waiting and (sum(len(part.ids) for part in waiting) >= each or last):
                first, waiting = parted(waiting, each)
                kept.append(write_shard(folder, made.file(), columns(first)))
                made = replace(made, next=made.next + 1)
    return manifest if made is manifest else replace(made, shards=tuple(kept))


def _runs(shards: Sequence[Shard], each: int) -> Iterator[list[Shard]]:
    """Short shards with those beside them, full ones alone: these stay as they are."""
    for is_short, group in itertools.groupby(shards, lambda shard: shard.rows < each):
        run = list(group)
        yield from [run] if is_short else [[shard] for shard in run]


def merge(call: str, folder: Path, parts: Sequence[Path]) -> int:
    """Copy the shards of parts behind those of the store; all of them are acknowledged at once, or none."""
    with locked(call, folder):
        manifest = read_manifest(call, folder)
        recover(call, folder, manifest)
        sources = [(part, read_manifest(call, part)) for part in parts]
        for part, theirs in sources:
            manifest = _alike(call, manifest, part, theirs)
        _check_ids(call, [(folder, manifest), *sources])
        rows = manifest.rows
        try:
            for part, theirs in sources:
                for shard in theirs.shards:
                    data = (part / shard.file).read_bytes()
                    if hashlib.sha256(data).hexdigest() != shard.sha256:
                        raise _damaged(call, part / shard.file)
                    name = manifest.file()
                    replace_file(folder / name, data)
                    manifest = manifest.added(replace(shard, file=name))
            manifest.write(folder)
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            do = "The store is as it was; free some space."
            raise refused(call, got=reason(error), expected="parts to read, and room for them", do=do) from error
        return manifest.rows - rows


def _alike(call: str, manifest: Manifest, part: Path, theirs: Manifest) -> Manifest:
    """The store's manifest, which learns from the first part what it does not say yet."""
    if not manifest.rows:
        learnt = {"parameters", "fingerprint", "metadata"}
        manifest = replace(manifest, **{k: getattr(manifest, k) or getattr(theirs, k) for k in learnt})
    for what in ("size", "dtype", "projection", "parameters", "fingerprint", "metadata"):
        mine, other = getattr(manifest, what), getattr(theirs, what)
        if mine != other and theirs.rows:
            do = "Only rows of one model through one projection can be compared."
            raise refused(call, got=f"{part} with {what} {other}", expected=f"{what} {mine}", do=do)
    return manifest


def _check_ids(call: str, sources: Sequence[tuple[Path, Manifest]]) -> None:
    ids = [map_shard(call, part, shard, manifest).ids for part, manifest in sources for shard in manifest.shards]
    every = torch.cat([torch.empty(0, dtype=torch.int64), *ids])
    twice = len(every) - len(every.unique())
    if twice:
        raise refused(call, got=f"{twice} ids that occur twice", expected="parts with samples of their own")


def _hold_to_checksum(call: str, folder: Path, shard: Shard) -> None:
    if sha256_of(folder / shard.file) != shard.sha256:
        raise _damaged(call, folder / shard.file)


def _damaged(call: str, path: Path) -> StoreError:
    do = "gf.store.verify(path) says what is damaged. Nothing was changed."
    return refused(call, got=f"{path}, whose bytes are not those that were written", expected="a sound shard", do=do)
