"""Writers that are killed: what a child process does, and what must hold afterwards."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time

import torch
from forms import FORMS

import gradfunc as gf

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["gradfunc", "kills", "forms"])


def create(path, form="rows"):
    return FORMS[form].create(path)


def write(path, pipe, seed, until=None, form="rows"):
    """Append for ever, or until so many rows; say after each append how many rows are acknowledged."""
    draw = random.Random(seed)
    torch.set_num_threads(1)
    store = gf.store.GradientStore.open(path)
    with store.writer() as w:
        at = w.acknowledged
        while until is None or at < until:
            ids = torch.arange(at, at + draw.randint(1, 11))
            at += len(ids)
            values = FORMS[form].values(ids, draw)
            said = w.append(values, ids=FORMS[form].names(ids), metadata={"twice": ids * 2})
            if draw.random() < 0.3:
                said = w.flush()
            os.write(pipe, b"%d\n" % said)


def crashing(path, pipe, seed, until, step, form="rows"):
    """The same, ended by the system without a word at the step-th call that changes a file or its name."""
    count = 0

    def counted(function):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == step:
                os._exit(9)
            return function(*args, **kwargs)

        return call

    for name in ("fsync", "replace"):
        setattr(os, name, counted(getattr(os, name)))
    write(path, pipe, seed, until, form)


def run(target, path, *args, kill_after=None):
    """Start a writer; with `kill_after`, kill -9 so many seconds after its first word. Its last word, and exit code."""
    reader, pipe = os.pipe()
    child = CONTEXT.Process(target=target, args=(str(path), _Shared(pipe), *args))
    child.start()
    os.close(pipe)
    heard = b""
    if kill_after is not None:
        heard = os.read(reader, 1)
        time.sleep(kill_after)
        os.kill(child.pid, signal.SIGKILL)
    while piece := os.read(reader, 65536):
        heard += piece
    os.close(reader)
    child.join()
    lines = heard.split(b"\n")[:-1]  # the last may be cut
    return int(lines[-1]) if lines else 0, child.exitcode


class _Shared:
    """A descriptor that goes to the child."""

    def __init__(self, number):
        self.number = number

    def __reduce__(self):
        return _received, (multiprocessing.reduction.DupFd(self.number),)


def _received(shared):
    return shared.detach()


def check(path, said, form="rows"):
    """Nothing that was acknowledged is lost, nothing is corrupt, and it is a beginning of what was written."""
    store = gf.store.GradientStore.open(path)
    count = len(store)
    assert count >= said, f"{said - count} acknowledged rows are lost"
    ids = torch.arange(count)
    FORMS[form].check(store, ids)
    assert not count or store.metadata["twice"].equal(ids * 2)
    assert store.verify().ok
    return count
