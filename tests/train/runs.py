"""Trainings that another process runs, and dies of."""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.forkserver
import os
import signal
from pathlib import Path

import pytest
import torch
from digits import MODEL, X, Y, loss, train
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gradfunc as gf
from gradfunc import _files

EVERY = 3
SIZE = 80
STEPS = 15  # 3 epochs of 5 batches


@functools.cache
def processes():
    """What starts processes: forks of a server that has imported all of it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["runs"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # a pool of threads does not survive a fork
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        multiprocessing.forkserver.ensure_running()
    return context


def in_a_process(function, *args):
    """Run a function in a process of its own, which may change its limits and its user."""
    process = processes().Process(target=function, args=args)
    process.start()
    process.join(120)
    assert process.exitcode == 0


def noisy(params, x, y):
    return loss(params, nn.functional.dropout(x, 0.3), y)


def loader():
    data = TensorDataset(torch.tensor(X[:SIZE]), torch.tensor(Y[:SIZE]))
    return DataLoader(data, batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(3))


CLIPPED = gf.clip_per_sample(0.5) >> gf.mean() >> gf.adam(1e-2)
GATHERED = gf.accumulate(gf.mean(), every=2) >> gf.sgd(0.1, momentum=0.9)
IN_MEMORY = {"data": (X[:SIZE], Y[:SIZE]), "batch_size": 16}
VALIDATED = {"validation": (X[80:99], Y[80:99]), "capture": {"norm": lambda s: s.grads["fc1.bias"].norm()}}
KINDS = {
    "clipped": lambda: {"step": CLIPPED, **IN_MEMORY, **VALIDATED},
    "gathered": lambda: {"step": GATHERED, **IN_MEMORY},
    "from a loader": lambda: {"data": loader(), "batch_size": None, "validation": loader()},
}


def run(kind, path=None, **options):
    """One training, alike each time; on from `path` if it is there."""
    options = {"epochs": 3, "loss": noisy, **KINDS[kind](), **options}
    if path is not None:
        options |= {"checkpoint": path, "checkpoint_every": EVERY, "resume": True}
    return train(options.pop("step", None), params=MODEL.params, **options)


def logged(kind, path, log, handler=None):
    """The same; a byte for each step that comes to its end, and no return."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs in the background ignores it
    if handler is not None:
        signal.signal(signal.SIGTERM, handler)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(snapshot):
        os.write(file, b".")

    run(kind, path, callbacks=[note])
    signal.pause()


STAGES = ("before", "opened", "half", "written", "synced", "replaced")  # of writing a file, in order


def dies_within(kind, path, stage, save):
    """The same, dead at this stage of this save, counted from 1."""
    torch.set_num_threads(1)
    _patched(lambda: os.kill(os.getpid(), signal.SIGKILL), stage, save)
    run(kind, path)
    signal.pause()


def _patched(die, stage, save):
    count = [0]
    sync, replace = os.fsync, os.replace

    def opened(path, mode):
        count[0] += 1
        now = stage if count[0] == save else None
        if now == "before":
            die()
        return File(open(path, mode), now, die)

    def synced(descriptor):
        if count[0] == save and stage == "written":
            die()
        sync(descriptor)

    def replaced(source, target):
        if count[0] == save and stage == "synced":
            die()
        replace(source, target)
        if count[0] == save and stage == "replaced":
            die()

    _files.open = opened
    os.fsync, os.replace = synced, replaced


class File:
    """A file whose writing ends the process."""

    def __init__(self, file, stage, die):
        self.file, self.stage, self.die = file, stage, die

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.file.close()

    def write(self, data):
        if self.stage == "opened":
            self.die()
        if self.stage == "half":
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            self.die()
        self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)
