"""The benchmark of a store runs, finds what it planted, and leaves nothing but its JSON."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_a_small_one(tmp_path):
    command = [sys.executable, "-m", "gradfunc.bench.rows_on_disk", str(tmp_path / "rows"), "--rows", "3000"]
    done = subprocess.run(
        [*command, "--size", "1024", "--out", str(tmp_path / "out.json")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["rows"] == 3000
    assert found["steps"]["top_k of 16, cold"]["found"] is True
    assert found["steps"]["verify, warm"]["ok"] is True
    assert {"torch", "cpu", "threads"} <= set(found["environment"])
    assert not (tmp_path / "rows").exists()
