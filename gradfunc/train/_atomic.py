"""A file that is replaced as a whole, or not at all."""

from __future__ import annotations

import contextlib
import glob
import os
import platform
from pathlib import Path


def replace(path: Path, data: bytes) -> None:
    """Write `data` to `path`: at any moment it is the old file or the new one."""
    _swept(path)
    partial = partial_of(path)
    try:
        with open(partial, "wb") as file:
            file.write(data)
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


def _prefix(path: Path) -> str:
    """Of files on the way: of this checkpoint, on this machine."""
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
