"""Work in a process of its own, whose memory can be read off."""

from __future__ import annotations

import math
import multiprocessing
import resource
import signal
import time
from collections.abc import Callable
from typing import Any


def apart(work: Callable[..., dict[str, Any]], *args: Any, seconds: int | None = None) -> dict[str, Any]:
    """In a new process, with the most memory that was resident in it: its own, and pages of files.

    Args:
        work: a function of a module, and its arguments.
        seconds: of the processor, all threads of the work together, after which the process is ended; None for no end.
            Waiting for others on the machine is not charged.

    Raises:
        RuntimeError: what was raised there, in a line; or the seconds were spent.
        EOFError: the process ended without a word.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=_child, args=(there, work, args, seconds))
    child.start()
    there.close()
    try:
        found: dict[str, Any] = here.recv()
    except EOFError:
        child.join()
        if child.exitcode == -signal.SIGXCPU:
            raise RuntimeError(f"no answer within {seconds} s of the processor") from None
        raise
    finally:
        child.join()
    if "raised" in found:
        raise RuntimeError(found["raised"])
    return found


def _child(pipe: Any, work: Any, args: tuple[Any, ...], seconds: int | None) -> None:
    if seconds is not None:
        limit, at_most = math.ceil(time.process_time()) + seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (limit, at_most))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        found = work(*args)
    except Exception as error:
        pipe.send({"raised": f"{type(error).__name__}: {' '.join(str(error).split())}"})
        return
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pipe.send({**found, "peak_bytes": peak * 1024, "of_that_before": before * 1024})
