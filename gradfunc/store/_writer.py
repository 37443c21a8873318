"""The one writer of a store: an open shard in memory, full ones on disk."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import filelock
from torch import Tensor

from .._errors import GradfuncWarning, message
from .._factors import Projection
from .._files import partials
from .._per_sample import PerSampleGrads
from ._columns import Part, parted
from ._error import reason, refused
from ._ids import ids_of
from ._layout import filling
from ._manifest import Manifest, read_manifest
from ._seen import Seen
from ._shards import write_shard
from ._taken import taken
from ._view import View

LOCK = "writer.lock"


def locked(call: str, folder: Path) -> filelock.BaseFileLock:
    """The lock of the only writer; the system gives it back when its process ends, however it ends."""
    lock = filelock.FileLock(folder / LOCK, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        do = "Close the other, or write parts of your own and merge them."
        raise refused(call, got="a store that another writer has open", expected="one writer", do=do) from error
    except OSError as error:
        do = "Nothing was written."
        raise refused(call, got=reason(error), expected="a folder that can be written", do=do) from error
    return lock


def recover(call: str, folder: Path, manifest: Manifest) -> tuple[str, ...]:
    """Take away what a killed writer left that it had not acknowledged: files that the manifest does not name."""
    named = {shard.file for shard in manifest.shards}
    left = [path for path in (*folder.glob("rows-*.safetensors"), *partials(folder)) if path.name not in named]
    try:
        for path in left:
            path.unlink()
    except OSError as error:
        do = "Nothing was written."
        raise refused(call, got=reason(error), expected="a folder that can be written", do=do) from error
    names = tuple(sorted(path.name for path in left))
    if names:
        text = f"{call}: dropped the open shard of a writer that was stopped: {', '.join(names)}. "
        warnings.warn(text + f"All {manifest.rows} rows that it acknowledged are there.", GradfuncWarning, stacklevel=4)
    return names


@dataclass(frozen=True)
class _State:
    """What is on disk, what waits, and what was on the way when something interrupted: replaced as one."""

    manifest: Manifest
    waiting: tuple[Part, ...] = ()
    trying: tuple[Manifest, int] | None = None

    @property
    def count(self) -> int:
        """Rows that wait."""
        return sum(part.count for part in self.waiting)


class Writer:
    """Appends rows to a store. Made by `store.writer()`; a context manager.

    Rows wait in memory until they fill a shard; then, or on `flush()` and `close()`, the shard is written and synced,
    and after it the manifest. From then on they are acknowledged: neither the end of the process nor of power takes
    them away. What waits is lost with the process; whatever else is raised, `with` writes it.

    Attributes:
        dropped: files of a writer that was stopped, which this one took away when it opened the store.
    """

    def __init__(
        self, call: str, folder: Path, view: View, projection: Projection | None, closed: Callable[[], None]
    ) -> None:
        self._call = call
        self._folder = folder
        self._projection = projection
        self._closed = closed
        self._lock: filelock.BaseFileLock | None = locked(call, folder)
        self._owner = os.getpid()
        try:
            self._state = _State(read_manifest(call, folder))
            self.dropped = recover(call, folder, self._state.manifest)
            if self._state.manifest.shards != view.manifest.shards or len(view) != view.manifest.rows:
                view = View.of(call, folder, "raise")
            self._seen = Seen(view)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def acknowledged(self) -> int:
        """Rows of the store that are on disk for good."""
        return self._settled().manifest.rows

    @property
    def waiting(self) -> int:
        """Rows of the open shard, in memory."""
        return self._settled().count

    def append(self, g: PerSampleGrads | Tensor, ids: Any = None, metadata: Mapping[str, Any] | None = None) -> int:
        """Add rows; returns how many rows of the store are acknowledged by now, in the order of appends.

        Args:
            g: per-sample gradients, which go through the store's projection chunk by chunk, or whose factors are kept
                as they are; or, but for factors, rows `[B, size]` that went through it already.
            ids: `[B]` integers, or strings, each once in a store; default: the numbers of the rows.
            metadata: `{name: [B, ...]}` of numbers or bools; the first append says which names, types and shapes.

        Raises:
            TypeError, ValueError: something else, an id that is there, ids of another kind than those before, a row
                that is not finite or that the store's dtype cannot hold. Nothing was taken.
            StoreError: gradients of another model. Nothing was taken. Or a full shard could not be written: the rows
                are held and `flush()` tries again.

        Example:
            >>> import tempfile, torch, gradfunc as gf
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     store = gf.store.GradientStore.create(folder, size=3)
            ...     with store.writer() as w:
            ...         w.append(torch.eye(3), ids=[7, 8, 9], metadata={"label": [0, 1, 0]}), w.flush()
            (0, 3)
        """
        call = f"{self._call}.append(g, ids, metadata)"
        state = self._settled()
        count = state.manifest.rows + state.count
        part, manifest = taken(call, g, ids, metadata, state.manifest, self._projection, count)
        if not part.count:
            return state.manifest.rows
        own = ids_of([part], manifest.ids)
        self._seen.check(call, own)
        self._seen.add(own)
        self._state = _State(manifest, (*state.waiting, part))
        while (each := filling(manifest, self._state.waiting)) is not None:
            self._write(each)
        return self._state.manifest.rows

    def flush(self) -> int:
        """Write what waits, as a shard of its own; returns how many rows of the store are acknowledged: all.

        Raises:
            StoreError: it cannot be written. Rows are held, and a later flush tries again.
        """
        count = self._settled().count
        if count:
            self._write(count)
        return self._state.manifest.rows

    def close(self) -> None:
        """Flush, and let another writer in; also where the flush fails, which loses what waited."""
        if self._lock is None:
            return
        try:
            self.flush()
        finally:
            self._lock.release()
            self._lock = None
        self._closed()

    def _write(self, count: int) -> None:
        """The first rows that wait, as a shard; the state changes when it is on disk."""
        state = self._state
        first, _ = parted(state.waiting, count)
        name, manifest = state.manifest.file(), state.manifest
        try:
            shard = write_shard(self._folder, name, first)
            made = manifest.added(shard)
            self._state = replace(state, trying=(made, count))
            made.write(self._folder)
        except OSError as error:
            self._settled()
            got = f"{reason(error)}, while {name} was written"
            held = f"All {manifest.rows} acknowledged rows are there, {state.count} are held"
            do = f"{held}: free some space, then flush()."
            raise refused(self._call, got=got, expected="a file that can be written", do=do) from error
        self._settled()

    def _settled(self) -> _State:
        """The state, once it is known whether a manifest that was on its way has arrived."""
        if self._lock is None:
            raise ValueError(message(self._call, got="a writer that is closed", expected="one inside of its `with`"))
        if os.getpid() != self._owner:
            do = "Write parts of your own and merge them."
            raise refused(self._call, got="a writer of another process", expected="the process that opened it", do=do)
        state = self._state
        if state.trying is not None:
            made, count = state.trying
            arrived = read_manifest(self._call, self._folder).shards == made.shards
            _, rest = parted(state.waiting, count)
            self._state = _State(made, tuple(rest)) if arrived else replace(state, trying=None)
        return self._state
