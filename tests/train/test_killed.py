"""A training that is killed, at any moment: one interval is lost at most, no file is broken, the end is the same."""

from __future__ import annotations

import functools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from digits import same_fit
from runs import EVERY, KINDS, STAGES, STEPS, dies_within, logged, processes, run
from tiers import every

import gradfunc as gf


@functools.cache
def whole(kind):
    """What an uninterrupted training comes to."""
    return run(kind)


def size(log):
    return log.stat().st_size if log.exists() else 0


def waited(process, log, count):
    """Until that many steps have come to their end."""
    end = time.monotonic() + 120
    while size(log) < count:
        assert process.is_alive() if hasattr(process, "is_alive") else process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.0005)


def check_saved(path, done):
    """`done` steps were seen to end, the last of them perhaps not saved: less than an interval is lost."""
    least = (done - 1) // EVERY * EVERY
    if not path.exists():
        assert least <= 0
        return 0
    step = gf.train.load_checkpoint(path).step
    assert least <= step <= done
    assert step % EVERY == 0
    return step


def check_end(kind, path):
    """The training goes on to the same end, and leaves one file."""
    assert same_fit(run(kind, path), whole(kind))
    assert same_fit(run(kind, path), whole(kind))
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("moment", every(25, range(50)))
def test_killed_at_any_moment(tmp_path, moment):
    """Twice: the first time, and once it goes on."""
    draw, kind = random.Random(moment), list(KINDS)[moment % len(KINDS)]
    path, start = tmp_path / "run" / "a.safetensors", 0
    path.parent.mkdir()
    for time_ in range(2):
        log = tmp_path / f"log{time_}"
        process = processes().Process(target=logged, args=(kind, path, log))
        process.start()
        waited(process, log, draw.randint(0, min(8, STEPS - start)))
        time.sleep(draw.random() * 0.02)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        start = check_saved(path, start + size(log))
    check_end(kind, path)


@pytest.mark.parametrize("moment", every(15, range(30)))
def test_ctrl_c_at_any_moment(tmp_path, moment):
    """It lands anywhere, also within a save: no step that was made is lost."""
    draw, kind = random.Random(moment), list(KINDS)[moment % len(KINDS)]
    path, log = tmp_path / "run" / "a.safetensors", tmp_path / "log"
    path.parent.mkdir()
    process = processes().Process(target=logged, args=(kind, path, log))
    process.start()
    waited(process, log, draw.randint(1, STEPS - 3))
    time.sleep(draw.random() * 0.02)
    for _ in range(12):
        if process.exitcode is None:  # Python drops an interrupt that lands in the end of an object's life
            os.kill(process.pid, signal.SIGINT)
            process.join(10)
    assert process.exitcode == 1
    assert size(log) - 1 <= gf.train.load_checkpoint(path).step <= size(log)
    check_end(kind, path)


def check_stage(path, stage, save, kind):
    process = processes().Process(target=dies_within, args=(kind, path, stage, save))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    there = save - (stage != "replaced")  # how many saves count
    assert path.exists() == (there > 0)
    if there:
        assert gf.train.load_checkpoint(path).step == there * EVERY
    beside = {name for name in os.listdir(path.parent) if name != path.name}
    assert len(beside) == (stage in ("opened", "half", "written", "synced"))
    check_end(kind, path)


@pytest.mark.parametrize("stage", every(3, STAGES))
@pytest.mark.parametrize("save", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_while_it_writes(tmp_path, stage, save):
    check_stage(tmp_path / "a.safetensors", stage, save, "clipped")


SCRIPT = """
import sys
sys.path[:0] = {folders!r}
from runs import logged
import signal
logged("clipped", {path!r}, {log!r}, {handler})
"""


@pytest.mark.parametrize(
    ("number", "handler", "leaves"),
    [
        (signal.SIGINT, "None", True),
        pytest.param(signal.SIGTERM, "None", False, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "signal.default_int_handler", True, marks=pytest.mark.slow),
    ],
    ids=["Ctrl-C", "SIGTERM", "SIGTERM as Ctrl-C"],
)
def test_asked_to_stop_by_a_signal(tmp_path, number, handler, leaves):
    """Ctrl-C saves what was reached; SIGTERM is a kill, unless the program makes it a Ctrl-C."""
    path, log, here = tmp_path / "run" / "a.safetensors", tmp_path / "log", Path(__file__).parent
    path.parent.mkdir()
    script = SCRIPT.format(folders=[str(here)], path=str(path), log=str(log), handler=handler)
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) as process:
        try:
            waited(process, log, 5)
            process.send_signal(number)
            _, said = process.communicate(timeout=120)
        finally:
            process.kill()
    if leaves:
        step = gf.train.load_checkpoint(path).step
        assert size(log) - 1 <= step <= size(log)
        assert f"Interrupted: training was interrupted after {step} updates; resume=True goes on from" in said
        assert process.returncode != 0
    else:
        check_saved(path, size(log))
        assert process.returncode == -number
    check_end("clipped", path)
