"""Compact and merge: files of a store replaced as a whole."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from .._files import replace_file, sha256_of
from ._columns import Part, parted
from ._error import StoreError, reason, refused
from ._ids import ids_of, repeated
from ._layout import filling, is_short
from ._manifest import Manifest, Shard, read_manifest
from ._shards import map_shard, write_shard
from ._writer import locked, recover


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
    kept: list[Shard] = []
    made = manifest
    for run in _runs(manifest):
        if len(run) == 1:
            kept.extend(run)
            continue
        waiting: list[Part] = []
        for k, shard in enumerate(run):
            _hold_to_checksum(call, folder, shard)
            waiting.append(map_shard(call, folder, shard, manifest).part)
            last = sum(part.count for part in waiting) if k == len(run) - 1 else None
            while waiting and (count := filling(manifest, waiting) or last):
                first, waiting = parted(waiting, count)
                kept.append(write_shard(folder, made.file(), first))
                made = replace(made, next=made.next + 1)
    return manifest if made is manifest else replace(made, shards=tuple(kept))


def _runs(manifest: Manifest) -> Iterator[list[Shard]]:
    """Short shards with those beside them, full ones alone: these stay as they are."""
    for short, group in itertools.groupby(manifest.shards, lambda shard: is_short(manifest, shard)):
        run = list(group)
        yield from [run] if short else [[shard] for shard in run]


def merge(call: str, folder: Path, parts: Sequence[Path]) -> int:
    """Copy the shards of parts behind those of the store; all of them are acknowledged at once, or none."""
    with locked(call, folder):
        manifest = read_manifest(call, folder)
        recover(call, folder, manifest)
        sources = [(part, read_manifest(call, part)) for part in parts]
        for part, theirs in sources:
            manifest = _alike(call, manifest, part, theirs)
        _check_ids(call, manifest, [(folder, manifest), *sources])
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
    """The store's manifest, which learns from the first part what it does not say yet, and from all their factors."""
    if not manifest.rows:
        learnt = {"parameters", "fingerprint", "metadata", "ids"}
        manifest = replace(manifest, **{k: getattr(manifest, k) or getattr(theirs, k) for k in learnt})
    for what in ("size", "dtype", "projection", "parameters", "fingerprint", "metadata", "ids"):
        mine, other = getattr(manifest, what), getattr(theirs, what)
        if mine != other and theirs.rows:
            do = "Only rows of one model through one projection can be compared."
            raise refused(call, got=f"{part} with {what} {other}", expected=f"{what} {mine}", do=do)
    names = dict.fromkeys((*manifest.factors, *theirs.factors))
    factors = {name: {**manifest.factors.get(name, {}), **theirs.factors.get(name, {})} for name in names}
    return replace(manifest, factors=factors)


def _check_ids(call: str, manifest: Manifest, sources: Sequence[tuple[Path, Manifest]]) -> None:
    parts = [map_shard(call, part, shard, own).part for part, own in sources for shard in own.shards]
    twice = repeated(ids_of(parts, manifest.ids))
    if twice:
        raise refused(call, got=f"{twice} ids that occur twice", expected="parts with samples of their own")


def _hold_to_checksum(call: str, folder: Path, shard: Shard) -> None:
    if sha256_of(folder / shard.file) != shard.sha256:
        raise _damaged(call, folder / shard.file)


def _damaged(call: str, path: Path) -> StoreError:
    do = "gf.store.verify(path) says what is damaged. Nothing was changed."
    return refused(call, got=f"{path}, whose bytes are not those that were written", expected="a sound shard", do=do)
