"""What goes wrong with a store of factors, whose samples have names: said clearly, and nothing acknowledged is lost."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from forms import Factors
from test_store_failures import AS_NOBODY, ROOT, changed, damage, disk_of, in_place
from tiers import quick

import gradfunc as gf
from gradfunc.store import StoreError, _layout, _manifest, _shards

Store = gf.store.GradientStore
FORM = Factors()


def filled(path, n=40):
    store = FORM.create(path)
    with store.writer() as w:
        for ids in torch.arange(n).split(10):
            w.append(FORM.values(ids), ids=FORM.names(ids), metadata={"twice": ids * 2})
            w.flush()
    return store


def check(store, n):
    FORM.check(store, torch.arange(n))
    assert store.metadata["twice"].equal(torch.arange(n) * 2)
    assert store.verify().ok


def more(w, start, stop):
    ids = torch.arange(start, stop)
    return w.append(FORM.values(ids), ids=FORM.names(ids), metadata={"twice": ids * 2})


def check_full_disk(path, what):
    """Neither a shard that does not fit, nor a manifest, loses rows or counts them twice."""
    store = filled(path)
    size = 300 if what == "shard" else (path / "manifest.json").stat().st_size - 1
    assert what == "shard" or all(shard.bytes < size for shard in store.manifest.shards)
    with store.writer() as w:
        more(w, 40, 44)
        with (
            disk_of(size),
            pytest.raises(StoreError, match=r"too large.*All 40 acknowledged rows are there, 4 are held"),
        ):
            w.flush()
        check(Store.open(path), 40)
        assert not [name for name in os.listdir(path) if "partial" in name]
        assert (w.acknowledged, w.waiting) == (40, 4)
        assert w.flush() == 44
    check(store, 44)


@pytest.mark.parametrize("what", quick(["shard"], ["shard", "manifest"]))
def test_a_full_disk_loses_nothing(what, tmp_path):
    check_full_disk(tmp_path, what)


@pytest.mark.slow
def test_a_full_disk_while_files_are_joined_or_copied(tmp_path):
    filled(tmp_path / "a")
    changed(tmp_path / "a", shard_bytes=10**6)  # all are short now
    store, part = Store.open(tmp_path / "a"), FORM.create(tmp_path / "b")
    with part.writer() as w:
        more(w, 40, 80)
    for attempt in (store.compact, lambda: store.merge([part])):
        with disk_of(900), pytest.raises(StoreError, match="some space"):
            attempt()
        check(Store.open(tmp_path / "a"), 40)
        with pytest.warns(gf.GradfuncWarning) if store.verify().left else contextlib.nullcontext():
            store.writer().close()
    assert store.merge([part]) == 40
    check(store, 80)


@pytest.mark.slow
def test_a_read_only_folder_is_read_and_refuses_a_writer():
    shared = Path("/tmp") / f"gradfunc-forms-{os.getpid()}"
    try:
        filled(shared)
        for path in (shared, *shared.iterdir()):
            path.chmod(0o555 if path.is_dir() else 0o444)
        code = textwrap.dedent(AS_NOBODY.format(root=str(ROOT), path=str(shared)))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[0] == "40 3 True"
        assert len(lines) == 4
        assert all("Permission denied" in line and "folder that can be written" in line for line in lines[1:])
    finally:
        shared.chmod(0o755)
        shutil.rmtree(shared)


WAYS = ["truncated", "longer", "missing", "empty", "header", "header length", "flipped byte"]


@pytest.mark.parametrize("how", quick(["flipped byte"], WAYS))
def test_a_damaged_shard_is_named_and_the_others_are_read(how, tmp_path):
    filled(tmp_path)
    damage(tmp_path, how)
    report = gf.store.verify(tmp_path)
    assert [(one.file, one.rows) for one in report.damaged] == [("rows-00000001.safetensors", 10)]
    if how == "flipped byte":  # lengths and headers are sound, so that only the checksum tells
        assert gf.store.info(tmp_path).ok
        with pytest.raises(StoreError, match="not those that were written"):
            FORM.create(tmp_path.parent / f"{tmp_path.name}-other").merge([tmp_path])
        changed(tmp_path, shard_bytes=10**6)  # all are short now
        with pytest.raises(StoreError, match="not those that were written"):
            Store.open(tmp_path).compact()
        return
    with pytest.raises(StoreError, match="rows-00000001"):
        Store.open(tmp_path)
    with pytest.warns(gf.GradfuncWarning, match="left out 10 rows"):
        rest = Store.open(tmp_path, damaged="skip")
    FORM.check(rest, torch.cat([torch.arange(10), torch.arange(20, 40)]))


def test_lengths_that_are_changed_are_seen_when_a_store_is_opened(tmp_path):
    check_lengths(tmp_path)


def check_lengths(path):
    """How many entries a row has decides whose the others are: held to how many there are, before any is read."""
    filled(path)
    shard = sorted(path.glob("rows-*"))[1]
    data = bytearray(shard.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    first = start + header["factors/w/outer-10-6/lengths"]["data_offsets"][0]
    for value in (2, -1, 2**31 - 1):
        data[first : first + 4] = value.to_bytes(4, "little", signed=True)
        shard.write_bytes(data)
        with pytest.raises(StoreError, match=r"factors/w/outer-10-6"):
            Store.open(path)


def test_a_column_that_nobody_told_of_is_refused(tmp_path):
    filled(tmp_path)
    facts = json.loads((tmp_path / "manifest.json").read_text())["factors"]
    changed(tmp_path, factors={name: own for name, own in facts.items() if name != "bias"})
    with pytest.raises(StoreError, match="of which"):
        Store.open(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("facts", "says"),
    [({"version": 3}, "version 2 or before"), ({"ids": "integers"}, "ids"), ({"dtype": "float16"}, "")],
)
def test_a_manifest_of_something_else_is_refused(facts, says, tmp_path):
    filled(tmp_path)
    changed(tmp_path, **facts)
    if "dtype" in facts:  # factors say theirs themselves
        FORM.check(Store.open(tmp_path), torch.arange(40))
        return
    with pytest.raises(StoreError, match=says):
        Store.open(tmp_path)


@pytest.mark.slow
def test_a_second_writer_is_refused(tmp_path):
    store = filled(tmp_path)
    with store.writer():
        for attempt in (store.writer, Store.open(tmp_path).writer, store.compact, lambda: store.merge([])):
            with pytest.raises(StoreError, match="another writer has open"):
                attempt()
    check(store, 40)


# --- broken on purpose -------------------------------------------------------------------------------


def test_the_law_of_full_disks_catches_files_written_in_place(tmp_path, monkeypatch):
    monkeypatch.setattr(_shards, "replace_file", lambda path, *data: in_place(path, b"".join(data)))
    monkeypatch.setattr(_manifest, "replace_file", in_place)
    with pytest.raises((AssertionError, StoreError)):
        check_full_disk(tmp_path, "manifest")


def test_the_law_of_lengths_catches_a_reader_that_believes_them(tmp_path, monkeypatch):
    def believing(tensors, group, entries, count):
        held = {name: tensors[f"{group}/{name}"] for name in entries}
        return _layout.Ragged(tensors[f"{group}/lengths"], held)

    monkeypatch.setattr(_layout, "_ragged", believing)
    with pytest.raises(pytest.fail.Exception):
        check_lengths(tmp_path)
