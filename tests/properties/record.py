"""What a run of the properties has shown, as JSON: results, examples, mistakes noticed, and where it ran."""

from __future__ import annotations

import datetime
import json
import platform
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from coverage_of import MEASURED
from examples import COUNTS
from matrix import MATRIX


def record(path: Path, reporter: pytest.TerminalReporter) -> None:
    """Write the run to `path`."""
    results = {kind: len(reporter.stats.get(kind, [])) for kind in ("passed", "failed", "skipped", "error")}
    laws = {law: n for (law, what, _), n in COUNTS.items() if what == "examples"}
    noticed = {mistake: [law for law, seen in row.items() if seen == "x"] for mistake, row in MATRIX.items()}
    run = {"environment": environment(), "results": results, "examples": laws, "mistakes_noticed_by": noticed}
    run["shares_of_drawn_cases"] = MEASURED
    path.write_text(json.dumps(run, indent=1) + "\n")


def environment() -> dict[str, Any]:
    """Versions, devices, threads and the day."""
    cuda = torch.cuda.is_available()
    return {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "hypothesis": hypothesis.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if cuda else None,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else ["cpu"],
    }
