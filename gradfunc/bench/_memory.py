"""The peak of extra bytes during one call."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(call: Callable[[], Any], device: torch.device | str = "cpu") -> int:
    """How far torch's memory rises above where it was, at its highest, while `call()` runs; the result counts.

    On a CPU, from every allocation and release that the profiler notes, in order of time. What was there before and is
    released meanwhile is not taken off. Memory that is not torch's (numpy's, a library's own buffers) is not seen.

    Args:
        call: run once.
        device: "cpu", or the CUDA device whose memory is watched.

    Example:
        >>> import gradfunc as gf
        >>> gf.bench.peak_bytes(lambda: torch.zeros(1024, dtype=torch.float64))
        8192
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        result = call()
    del result
    # The exported trace is the public form of the profiler's memory events.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes: list[tuple[float, int, int]] = sorted(
        (e["ts"], e["args"]["Ev Idx"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]"
    )
    return max(itertools.accumulate([change for _, _, change in changes], initial=0))
