"""Files that are there whole or not at all, and what their bytes are."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path

Buffer = bytes | memoryview

_CHUNK = 2**20


def replace_file(path: Path, *data: Buffer) -> None:
    """Write `data`, one after the other, to `path`, by a file beside it that is synced and takes its place.

    At any moment, also after a loss of power, `path` is what it was before, or the new file.

    Raises:
        OSError: it cannot be written; what was there is as it was.
    """
    _swept(path)
    partial = partial_of(path)
    try:
        with open(partial, "wb") as file:
            for piece in data:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def target_of(path: str | os.PathLike[str]) -> Path:
    """The file itself, where `path` is a link to it."""
    return Path(os.path.realpath(path))


def partial_of(path: Path) -> Path:
    """The file on the way, of this process."""
    return path.parent / f"{_prefix(path)}{os.getpid()}"


def partials(folder: Path) -> Iterator[Path]:
    """Files on the way to their place, of whatever process."""
    return folder.glob(".*.partial-*")


def sha256_of(path: Path) -> str:
    """Of the bytes of a file, read a piece at a time: what `sha256sum` prints.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     sha256_of(Path(file.name))[:8]
        'e3b0c442'
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def _prefix(path: Path) -> str:
    """Of files on the way: to this one, on this machine."""
    return f".{path.name}.partial-{platform.node()}-"


def _swept(path: Path) -> None:
    """Take away what a process left that was killed while it wrote."""
    for partial in path.parent.glob(f"{glob.escape(_prefix(path))}*"):
        owner = partial.name.removeprefix(_prefix(path))
        if owner.isdigit() and not _alive(int(owner)):
            with contextlib.suppress(OSError):
                partial.unlink()


def _alive(process: int) -> bool:
    if os.name != "posix":  # where 0 is Ctrl-C
        return True
    try:
        os.kill(process, 0)  # signal 0 asks, and sends nothing
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _sync(folder: Path) -> None:
    """So that the new name outlives a loss of power, where the system can say so of a folder."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
