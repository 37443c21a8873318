"""Planted mistakes in training and its checkpoints, each with the test that must notice it."""

from __future__ import annotations

import contextlib
import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import test_checkpoint_files as files
import test_fit
import test_fit_in_use as in_use
import torch

import gradfunc as gf
from gradfunc import _files
from gradfunc._transform import _states
from gradfunc.train import _checkpoint, _history, _loop, _resume
from gradfunc.train._data import InMemory, Loader
from gradfunc.train._history import Recorder
from gradfunc.train._snapshot import Snapshot

Loop, Place = _loop.Loop, _loop.Place
epoch_in_memory, epoch_of_loader = InMemory.epoch, Loader.epoch
saved, opened, filled = Loop.checkpoint, _checkpoint.safe_open, _states._filled
Function = type(gf.per_sample_grads(lambda p: p))
named = Function.at


def in_place(path, data):
    with vars(_files).get("open", open)(path, "wb") as file:
        file.write(data)


def unsynced(path, data):
    partial = _files.partial_of(path)
    partial.write_bytes(data)
    _files.os.replace(partial, path)
    _files._sync(path.parent)


def from_the_first_batch(self, epoch, skip=0):
    return epoch_in_memory(self, epoch)


def loader_from_the_first_batch(self, epoch, skip=0):
    return epoch_of_loader(self, epoch)


def global_order(self, epoch, skip=0):
    return self._cut(torch.randperm(self.size), range(skip, self.batches))


def mean_of_means(self, params):
    losses, _ = self.recorder.since(self.at.step - self.at.batch, "loss", "weight")
    self.recorder.add("epoch_loss", self.at.step, float(np.mean(losses)))
    return {}


def generators_of_now(self):
    at = self.at
    history = self.recorder.history(before=at.step)
    state, generators = gf.flatten_state(at.state), self.setup.states()
    return gf.train.Checkpoint(at.params, state, history, at.step, at.epoch, at.batch, generators, self.setup.identity)


def all_of_the_history(self):
    checkpoint = saved(self)
    history = self.recorder.history()
    return gf.train.Checkpoint(**{**vars(checkpoint), "history": history})


def moved_first(self, snapshot):
    self.at = Place(snapshot.next_params, snapshot.next_state, snapshot.step + 1, snapshot.epoch, self.at.batch + 1)
    return asked(self, snapshot)


asked = Loop._asked


def said_of_the_next(self, snapshot):
    f = self.setup.run.f.at(snapshot.step, snapshot.index)
    rows = self.setup.run.rows(f, snapshot.next_params, snapshot.args, snapshot.kwargs, spent=False)
    return said(self, Snapshot(**{**vars_of(snapshot), "_rows": lambda: rows}))


def vars_of(snapshot):
    return {name: getattr(snapshot, name) for name in Snapshot.__dataclass_fields__}


said = Loop._said


def unpickled(path, **options):
    with contextlib.suppress(Exception), open(path, "rb") as file:
        pickle.load(file)
    return opened(path, **options)


def as_kept(self, name, series):
    if isinstance(series.values, np.ndarray):
        self._arrays[name] = series
    return series


def joined_anyway(a, b):
    return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.shape[1:] == b.shape[1:]


def cut(like, flat, path):
    out = filled(like, flat, path)
    return type(like)(out) if isinstance(like, int) else out


class Folders:
    """A fresh folder each time."""

    def __init__(self, folder):
        self.folder, self.numbers = folder, itertools.count()

    def mktemp(self, name):
        path = self.folder / f"{name}{next(self.numbers)}"
        path.mkdir()
        return path


def goes_on(at):
    test_fit.goes_on(at, 3, 2)


def mixed_histories(at):
    for values in ([1, 2, 0.5], [np.int16(1), np.uint16(2), np.float32(0.5)]):
        pieces, once = Recorder(), Recorder()
        for step, value in enumerate(values):
            pieces.add("a", step, value)
            pieces.history()
            once.add("a", step, value)
        assert pieces.history()["a"].tobytes() == once.history()["a"].tobytes()
        assert pieces.history()["a"].dtype == once.history()["a"].dtype


# mutant -> (where, attribute, the mistake, the test, of a maker of folders)
MUTANTS = {
    "written in place": (_checkpoint, "replace_file", in_place, lambda at: no_space("write", at)),
    "renamed before it is on disk": (_checkpoint, "replace_file", unsynced, lambda at: order(at)),
    "what is broken stays": (Path, "unlink", lambda self, missing_ok=False: None, lambda at: no_space("write", at)),
    "what the dead left stays": (
        _files,
        "_swept",
        lambda path: None,
        lambda at: files.test_only_what_the_dead_left_is_swept(at.mktemp("a")),
    ),
    "what the living write is swept": (
        _files,
        "_alive",
        lambda process: False,
        lambda at: files.test_only_what_the_dead_left_is_swept(at.mktemp("a")),
    ),
    "the checksum not compared": (
        _checkpoint,
        "_digest",
        lambda tensors, facts: "0",
        lambda at: files.check_changed((path := at.mktemp("a")), 0, *files.written(path / "good")),
    ),
    "unpickled": (_checkpoint, "safe_open", unpickled, lambda at: files.test_no_code_is_run(at.mktemp("a"))),
    "layouts forgotten": (
        _checkpoint,
        "_plain",
        lambda value: value.stride(),
        lambda at: files.test_layouts_and_shared_storage(at.mktemp("a")),
    ),
    "a link replaced": (_checkpoint, "target_of", Path, lambda at: files.test_a_link_stays_a_link(at.mktemp("a"))),
    "a file of another run replaced": (
        Loop,
        "owns",
        property(lambda self: True, lambda self, value: None),
        lambda at: in_use.test_two_runs_that_share_a_path(at.mktemp("a")),
    ),
    "batches that are done, again": (InMemory, "epoch", from_the_first_batch, goes_on),
    "batches of a loader that are done, again": (
        Loader,
        "epoch",
        loader_from_the_first_batch,
        lambda at: test_fit.test_a_loader_goes_on_as_well(at.mktemp("a"), False, 4),
    ),
    "the chain's state forgotten": (_resume, "unflatten_state", lambda flat, like: like, goes_on),
    "numbers of the state cut to what they were": (
        _states,
        "_filled",
        cut,
        lambda at: in_use.test_chains_and_parameters_of_every_kind_go_on("own stage", at.mktemp("a")),
    ),
    "an order from the global generator": (InMemory, "epoch", global_order, goes_on),
    "generators as they are, not as the epoch began": (
        Loop,
        "checkpoint",
        generators_of_now,
        lambda at: in_use.test_an_error_anywhere_in_an_epoch_loses_nothing("own generator", at.mktemp("a")),
    ),
    "a step that was not made in the history": (
        Loop,
        "checkpoint",
        all_of_the_history,
        lambda at: in_use.test_functions_that_fail("callbacks", 6, at.mktemp("a")),
    ),
    "moved on before the callbacks": (
        Loop,
        "_asked",
        moved_first,
        lambda at: in_use.test_functions_that_fail("callbacks", 6, at.mktemp("a")),
    ),
    "an epoch's mean of its batches' means": (
        Loop,
        "_ended",
        mean_of_means,
        lambda at: test_fit.test_an_epoch_s_mean_is_over_samples_not_over_batches(),
    ),
    "a step that is not finite, made": (
        Loop,
        "_nonfinite",
        lambda self, batch, after: None,
        lambda at: test_fit.test_it_stops_before_what_is_not_finite_and_says_where_that_began(
            "a loss", False, at.mktemp("a")
        ),
    ),
    "draws that no step names": (
        Function,
        "at",
        lambda self, step, index=None: named(self, 0, index),
        lambda at: draws(),
    ),
    "a report of the next parameters": (
        Loop,
        "_said",
        said_of_the_next,
        lambda at: test_fit.test_a_snapshot_computes_what_nobody_kept_as_it_was(),
    ),
    "a history that its readers write": (
        Recorder,
        "_remembered",
        as_kept,
        lambda at: in_use.test_a_history_is_the_caller_s_own(),
    ),
    "pieces of other dtypes joined": (_history, "_alike", joined_anyway, mixed_histories),
}


def no_space(name, at):
    with pytest.MonkeyPatch.context() as patch:
        files.check_no_space(name, at.mktemp("a"), patch)


def order(at):
    with pytest.MonkeyPatch.context() as patch:
        files.check_order(at.mktemp("a"), patch)


def draws():
    """Epochs that differ in nothing but the step have other losses."""
    options = {"loss": test_fit.noisy, "shuffle": False, "batch_size": 200}
    fit = test_fit.train(gf.mean() >> gf.sgd(0.0), **options)
    assert len(set(fit.history["loss"])) == 2


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_mistake_is_noticed(name, tmp_path, monkeypatch):
    where, attribute, mistake, law = MUTANTS[name]
    law(at := Folders(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(where, attribute, mistake)
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            law(at)
