"""Each notebook, run from a clean kernel in a temporary folder, says what its committed outputs say."""

from __future__ import annotations

import resource

import pytest
from notebook_files import NOTEBOOKS, differences, read, run

pytestmark = pytest.mark.slow
SECONDS = 120


def used():
    """Seconds of one core that processes which have ended took."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of the client and its loop
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_says_the_same(path):
    before, start = read(path), used()
    after = run(before)
    spent = used() - start
    found = differences(before, after)
    assert not found, "\n".join([*found, f"python tests/notebooks/notebook_files.py notebooks/{path.name}"])
    assert 1 < spent < SECONDS  # the kernel has ended, and is counted
