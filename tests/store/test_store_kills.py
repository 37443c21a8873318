"""kill -9: zero corrupt rows, zero lost acknowledged rows."""

from __future__ import annotations

import itertools
import random
import warnings

import kills
import pytest
import torch
from forms import FORMS
from tiers import quick

import gradfunc as gf
from gradfunc import _files
from gradfunc.store import _columns, _shards, _writer

# Seconds within which a writer is killed: enough for some shards of its form.
SOON = {"rows": 0.05, "factors": 0.2}


def killed(path, times, seed, form="rows"):
    """Writers killed one after the other at random moments, each going on where the last one was stopped."""
    kills.create(path, form)
    draw, counts, left = random.Random(seed), [0], 0
    for k in range(times):
        said, code = kills.run(kills.write, path, 1000 * seed + k, None, form, kill_after=draw.uniform(0, SOON[form]))
        assert code == -9, code
        left += len(gf.store.info(path).left)
        counts.append(kills.check(path, said, form))
    assert counts == sorted(counts)
    return counts, left


def test_ten_kills_at_random_moments(tmp_path):
    counts, _ = killed(tmp_path / "s", 10, seed=1)
    assert counts[-1] > 0


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_two_hundred_kills_at_random_moments(form, tmp_path):
    counts, left = killed(tmp_path / "s", 200, seed=2, form=form)
    assert len(set(counts)) > 100  # writers did write
    assert left > 10  # and were killed while they did
    store = gf.store.GradientStore.open(tmp_path / "s")
    with pytest.warns(gf.GradfuncWarning) if gf.store.info(tmp_path / "s").left else warnings.catch_warnings():
        store.compact()
    assert kills.check(tmp_path / "s", counts[-1], form) == counts[-1]


@pytest.mark.parametrize("form", quick(["rows"], FORMS))
def test_an_end_before_each_step_of_a_write(form, tmp_path):
    """A sync of the file, its name, a sync of the folder; then the manifest's: every such call of a short run."""
    for step in itertools.count(1):
        path = tmp_path / f"s{step}"
        kills.create(path, form)
        said, code = kills.run(kills.crashing, path, 3, 12, step, form)
        count = kills.check(path, said, form)
        left = gf.store.info(path).left
        with pytest.warns(gf.GradfuncWarning, match="dropped") if left else warnings.catch_warnings():
            writer = gf.store.GradientStore.open(path).writer()
        assert writer.dropped == left
        writer.close()
        assert not gf.store.info(path).left
        assert kills.check(path, said, form) == count
        if code == 0:
            break
        assert code == 9
    assert step > 12  # of two shards and more


def crashed_at(path, step, form="rows"):
    """In this process: the state that an end at this step leaves on disk."""
    kills.create(path, form)
    store = gf.store.GradientStore.open(path)

    class End(BaseException):
        pass

    count = 0
    real = _files.os.replace

    def replace(*args):
        nonlocal count
        count += 1
        if count == step:
            raise End
        real(*args)

    writer = store.writer()
    said = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_files.os, "replace", replace)
        try:
            for at in range(0, 24, 8):
                ids = torch.arange(at, at + 8)
                values, names = FORMS[form].values(ids), FORMS[form].names(ids)
                said = writer.append(values, ids=names, metadata={"twice": ids * 2})
        except End:
            pass
    writer._lock.release()
    kills.check(path, said, form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_an_end_before_a_name(step, form, tmp_path):
    crashed_at(tmp_path / "s", step, form)


def manifest_first(self, count):
    """A writer that says what it has before it has it."""
    state = self._state
    columns = _columns.columns(_writer.parted(state.waiting, count)[0])
    name = state.manifest.file()
    data = b"".join(_shards.laid_out(columns))
    shard = _writer.replace(
        gf.store.Shard(name, count, len(data), _shards.hashlib.sha256(data).hexdigest()),
    )
    state.manifest.added(shard).write(self._folder)
    self._state = _writer._State(state.manifest.added(shard))
    _files.replace_file(self._folder / name, data)


def early_word(self, count):
    """A writer that acknowledges what waits."""
    self._state = _writer._State(
        _writer.replace(self._state.manifest, shards=(gf.store.Shard("rows-00000000.safetensors", 8 * count, 0, ""),))
    )


@pytest.mark.parametrize("mutant", [manifest_first, early_word])
def test_the_law_catches_it(mutant, tmp_path, monkeypatch):
    monkeypatch.setattr(_writer.Writer, "_write", mutant)

    def every_step():
        for step in (1, 2, 3, 4):
            crashed_at(tmp_path / f"s{step}", step)

    with pytest.raises((AssertionError, gf.store.StoreError)):
        every_step()
