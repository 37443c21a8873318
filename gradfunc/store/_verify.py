"""What a folder holds, and whether it is as it was written."""

from __future__ import annotations

import os
from pathlib import Path

from .._files import partials, sha256_of
from ._error import StoreError, reason
from ._ids import ids_of, repeated
from ._manifest import read_manifest
from ._report import Damage, StoreReport
from ._shards import map_shard


def verify(path: str | os.PathLike[str]) -> StoreReport:
    """Hold every byte of a store to its checksum, and say what is damaged; the store is only read.

    Raises:
        StoreError: there is no store, or its manifest is damaged.

    Example:
        >>> import tempfile, gradfunc as gf
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = gf.store.GradientStore.create(folder, size=3)
        ...     gf.store.verify(folder).ok
        True
    """
    return _inspected(f"gf.store.verify({str(path)!r})", Path(path), check=True)


def info(path: str | os.PathLike[str]) -> StoreReport:
    """What a store holds, from its manifest; the lengths and headers of its files alone are checked.

    Raises:
        StoreError: there is no store, or its manifest is damaged.

    Example:
        >>> import tempfile, gradfunc as gf
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = gf.store.GradientStore.create(folder, size=3)
        ...     gf.store.info(folder).manifest.rows
        0
    """
    return _inspected(f"gf.store.info({str(path)!r})", Path(path), check=False)


def _inspected(call: str, folder: Path, *, check: bool) -> StoreReport:
    manifest = read_manifest(call, folder)
    damaged, parts = [], []
    for shard in manifest.shards:
        try:
            mapped = map_shard(call, folder, shard, manifest)
            if check and sha256_of(folder / shard.file) != shard.sha256:
                raise ValueError("its bytes are not those that were written (SHA-256)")
            parts.append(mapped.part)
        except (StoreError, ValueError) as error:
            cause = error.__cause__ or error
            why = reason(cause) if isinstance(cause, OSError) else str(cause)
            damaged.append(Damage(shard.file, shard.rows, why))
    named = {shard.file for shard in manifest.shards}
    left = [path.name for path in (*folder.glob("rows-*.safetensors"), *partials(folder)) if path.name not in named]
    twice = repeated(ids_of(parts, manifest.ids))
    return StoreReport(manifest, check, tuple(damaged), twice, tuple(sorted(left)))
