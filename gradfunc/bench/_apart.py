"""Work in a process of its own, whose memory can be read off."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from typing import Any


def apart(work: Callable[..., dict[str, Any]], *args: Any, seconds: float | None = None) -> dict[str, Any]:
    """In a new process, with the most memory that was resident in it: its own, and pages of files.

    Raises:
        RuntimeError: what was raised there, in a line; or nothing came within so many seconds.
        EOFError: the process ended without a word.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=_child, args=(there, work, args))
    child.start()
    there.close()
    try:
        if not here.poll(seconds):
            child.kill()
            raise RuntimeError(f"no answer within {seconds:g} s")
        found: dict[str, Any] = here.recv()
    finally:
        child.join()
    if "raised" in found:
        raise RuntimeError(found["raised"])
    return found


def _child(pipe: Any, work: Any, args: tuple[Any, ...]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        found = work(*args)
    except Exception as error:
        pipe.send({"raised": f"{type(error).__name__}: {' '.join(str(error).split())}"})
        return
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pipe.send({**found, "peak_bytes": peak * 1024, "of_that_before": before * 1024})
