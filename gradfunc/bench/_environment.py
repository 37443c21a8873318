"""Where it ran: versions, processor, threads and the day; no names of machines and no paths."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy
import torch

from ._contender import version_of
from ._peers import versions

# What moves the timings of a CPU.
_SETTINGS = (
    "OMP_NUM_THREADS",
    "OMP_PROC_BIND",
    "OMP_PLACES",
    "OMP_WAIT_POLICY",
    "GOMP_CPU_AFFINITY",
    "GOMP_SPINCOUNT",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "MKL_NUM_THREADS",
    "CUDA_LAUNCH_BLOCKING",
)


def environment(device: torch.device) -> dict[str, Any]:
    """JSON-ready. `threads` and `load` (the machine's over the last minute) are those of the moment.

    `peers` are the versions of other libraries that are installed.
    """
    on_gpu = device.type == "cuda"
    return {
        "date": datetime.date.today().isoformat(),
        "gradfunc": version_of("gradfunc"),
        "commit": commit(Path(__file__).parent),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "peers": versions(),
        "cuda": torch.version.cuda if on_gpu else None,
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "cpu": _cpu(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "settings": {name: os.environ.get(name) for name in _SETTINGS},
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "system": platform.system(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def commit(folder: Path) -> str | None:
    """The commit that `folder` is at, with "-dirty" where files differ from it; None where git does not track it."""

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, check=False)
        except OSError:  # no git
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # a package installed inside somebody else's repository is not tracked there
    tracked = git("ls-files", "--error-unmatch", "__init__.py")
    return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") if tracked else None


def _cpu() -> str:
    """The processor's name, from the system where Python does not know it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
