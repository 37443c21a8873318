"""Any sequence of appends, flushes, kills, compactions and merges against two plain lists."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

import gradfunc as gf
from gradfunc.store import _maintain, _writer

SIZE = 3


class StoreMachine(RuleBasedStateMachine):
    """`there`: rows that must be on disk; `waits`: rows that an open writer holds. A row is (id, seed)."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = gf.store.GradientStore.create(self.folder / "s", size=SIZE, dtype="float32", shard_bytes=5 * 12)
        self.writer = None
        self.there, self.waits = [], []
        self.next, self.parts = 0, 0

    def teardown(self):
        if self.writer is not None:
            self.writer._lock.release()
        shutil.rmtree(self.folder)

    def new(self, count):
        ids = list(range(self.next, self.next + count))
        self.next += count
        return ids

    @rule()
    @precondition(lambda self: self.writer is None)
    def opened(self):
        left = self.store.info().left
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            self.writer = gf.store.GradientStore.open(self.folder / "s").writer()
        assert self.writer.dropped == left
        assert bool(said) == bool(left)

    @rule(count=st.integers(0, 13), down=st.booleans())
    @precondition(lambda self: self.writer is not None)
    def appended(self, count, down):
        ids = self.new(count)[:: -1 if down else 1]
        said = self.writer.append(rows(ids), ids=ids, metadata={"k": ids})
        self.waits += ids
        full = len(self.waits) // 5 * 5
        self.there, self.waits = self.there + self.waits[:full], self.waits[full:]
        assert said == len(self.there)

    @rule()
    @precondition(lambda self: self.writer is not None and self.there)
    def appended_twice(self):
        ids = self.there[:1]
        with pytest.raises(ValueError, match="ids that the store has"):
            self.writer.append(rows(ids), ids=ids, metadata={"k": ids})

    @rule()
    @precondition(lambda self: self.writer is not None)
    def flushed(self):
        self.there, self.waits = self.there + self.waits, []
        assert self.writer.flush() == len(self.there)

    @rule()
    @precondition(lambda self: self.writer is not None)
    def closed(self):
        self.writer.close()
        self.writer = None
        self.there, self.waits = self.there + self.waits, []

    @rule(orphan=st.booleans(), partial=st.booleans())
    @precondition(lambda self: self.writer is not None)
    def killed(self, orphan, partial):
        name = self.writer._state.manifest.file()
        self.writer._lock.release()
        self.writer, self.waits = None, []
        if orphan:
            (self.folder / "s" / name).write_bytes(b"not acknowledged")
        if partial:
            (self.folder / "s" / f".{name}.partial-host-1").write_bytes(b"half")

    @rule()
    @precondition(lambda self: self.writer is None)
    def compacted(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", gf.GradfuncWarning)
            self.store.compact()
        sizes = [shard.rows for shard in self.store.manifest.shards]
        assert not any(a < 5 and b < 5 for a, b in itertools.pairwise(sizes))

    @rule(count=st.integers(0, 7))
    @precondition(lambda self: self.writer is None)
    def merged(self, count):
        part = gf.store.GradientStore.create(self.folder / f"p{self.parts}", size=SIZE, dtype="float32", shard_bytes=36)
        self.parts += 1
        ids = self.new(count)
        with part.writer() as w:
            w.append(rows(ids), ids=ids, metadata={"k": ids})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", gf.GradfuncWarning)
            assert self.store.merge([part]) == count
        self.there += ids

    @invariant()
    def a_reader_sees_what_must_be_there(self):
        store = gf.store.GradientStore.open(self.folder / "s")
        assert store.ids.tolist() == self.there
        assert store.rows().equal(rows(self.there))
        assert not self.there or store.metadata["k"].tolist() == self.there
        assert store.verify().ok
        if self.there:
            query = torch.tensor([[1.0, 0.0, 0.0]])
            best = store.top_k(query, min(3, len(self.there))).ids[0].tolist()
            assert best == sorted(self.there, key=lambda i: (-(i * 7 % 11), self.there.index(i)))[: len(best)]


def rows(ids):
    return torch.tensor([[i * 7 % 11, i, -i] for i in ids], dtype=torch.float32).reshape(len(ids), SIZE)


def run(examples, steps, **options):
    chosen = settings(max_examples=examples, stateful_step_count=steps, deadline=None, **options)
    run_state_machine_as_test(StoreMachine, settings=chosen)


def goes_red():
    """Some failure, the first that is met."""
    with pytest.raises((AssertionError, gf.store.StoreError)):
        run(100, 20, report_multiple_bugs=False, phases=[Phase.generate])


def test_any_sequence():
    run(8, 15)


@pytest.mark.slow
def test_any_sequence_at_length():
    run(100, 40)


def test_the_machine_catches_a_recovery_that_takes_too_much(monkeypatch):
    real = _writer.recover

    def greedy(call, folder, manifest):
        for shard in manifest.shards[-1:]:
            (folder / shard.file).unlink()
        return real(call, folder, manifest)

    monkeypatch.setattr(_writer, "recover", greedy)
    goes_red()


def test_the_machine_catches_a_compaction_that_forgets(monkeypatch):
    real = _maintain.parted
    monkeypatch.setattr(_maintain, "parted", lambda parts, count: (real(parts, count)[0], real(parts, count)[1][1:]))
    goes_red()


def test_the_machine_catches_a_merge_that_turns_parts_round(monkeypatch):
    monkeypatch.setattr(_maintain, "_check_ids", lambda *_: None)
    monkeypatch.setattr(
        gf.store.Manifest,
        "added",
        lambda self, *shards: _writer.replace(self, shards=(*shards, *self.shards), next=self.next + len(shards)),
    )
    goes_red()
