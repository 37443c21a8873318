"""Whatever goes wrong with a store is said clearly, and nothing that was acknowledged is lost."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from test_store import filled, numbers

import gradfunc as gf
from gradfunc import _files
from gradfunc.store import StoreError, _manifest, _seen, _writer

Store = gf.store.GradientStore
ROOT = Path(__file__).parents[2]


def store_of(path, n=50, size=6):
    rows = numbers(n, size)
    return filled(path, rows), rows


@contextlib.contextmanager
def disk_of(size):
    """No file may grow beyond this: the system refuses the write half way, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def check_full_disk_loses_nothing(path):
    store, rows = store_of(path, 20)
    with store.writer() as w:
        w.append(numbers(15, 6, seed=1), ids=range(15), metadata={"label": [0] * 15, "position": torch.zeros(15, 1)})
        with (
            disk_of(300),
            pytest.raises(StoreError, match=r"too large.*All 20 acknowledged rows are there, 15 are held"),
        ):
            w.flush()
        assert Store.open(path).rows().equal(rows)
        assert not [name for name in os.listdir(path) if "partial" in name]
        more = {"label": [0] * 5, "position": torch.zeros(5, 1)}
        with disk_of(300), pytest.raises(StoreError, match="20 are held"):
            w.append(numbers(5, 6, seed=2), ids=range(15, 20), metadata=more)
        assert (w.acknowledged, w.waiting) == (20, 20)
        assert w.flush() == 40
    want = torch.cat([rows, numbers(15, 6, seed=1), numbers(5, 6, seed=2)])
    assert store.rows().equal(want)
    assert store.verify().ok


def test_a_full_disk_loses_nothing(tmp_path):
    check_full_disk_loses_nothing(tmp_path)


def check_full_disk_for_the_manifest(path):
    """The shard fits, the manifest does not: the rows are not acknowledged, and written again."""
    store, rows = store_of(path, 20)
    with store.writer() as w:
        w.append(numbers(3, 6, seed=1), ids=range(3), metadata={"label": [0] * 3, "position": torch.zeros(3, 1)})
        with disk_of(700), pytest.raises(StoreError, match="too large"):
            w.flush()
        assert gf.store.info(path).left == ("rows-00000001.safetensors",)
        assert Store.open(path).rows().equal(rows)
        assert (w.acknowledged, w.waiting) == (20, 3)
    assert store.rows().equal(torch.cat([rows, numbers(3, 6, seed=1)]))
    assert store.verify().ok


def test_a_disk_that_is_full_for_the_manifest_alone(tmp_path):
    check_full_disk_for_the_manifest(tmp_path)


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupt_while_the_manifest_is_replaced(when, tmp_path, monkeypatch):
    """Ctrl-C may fall just before or just after: rows are written once."""
    check_interrupt(when, tmp_path, monkeypatch)


def check_interrupt(when, path, monkeypatch):
    store, rows = store_of(path, 20)
    real = _manifest.replace_file

    def interrupted(place, data):
        monkeypatch.setattr(_manifest, "replace_file", real)
        if when == "after":
            real(place, data)
        raise KeyboardInterrupt

    def write():
        with store.writer() as w:
            w.append(numbers(3, 6, seed=1), ids=range(3), metadata={"label": [0] * 3, "position": torch.zeros(3, 1)})
            monkeypatch.setattr(_manifest, "replace_file", interrupted)
            w.flush()

    with pytest.raises(KeyboardInterrupt):
        write()
    assert store.rows().equal(torch.cat([rows, numbers(3, 6, seed=1)]))
    assert store.verify().ok


AS_NOBODY = """
    import os, sys
    sys.path.insert(0, {root!r})
    import gradfunc as gf
    if os.getuid() == 0:
        os.setgid(65534); os.setuid(65534)
    store = gf.store.GradientStore.open({path!r})
    print(len(store), len(store.top_k(store.rows([0]), 3).ids[0]), store.verify().ok)
    for attempt in (store.writer, store.compact, lambda: gf.store.GradientStore.create({path!r} + "/inside", size=3)):
        try:
            attempt()
        except gf.store.StoreError as error:
            print(error)
"""


def test_a_read_only_folder_is_read_and_refuses_a_writer(tmp_path):
    """In a process without the rights of root, which no folder refuses."""
    shared = Path("/tmp") / f"gradfunc-store-{os.getpid()}"
    try:
        store_of(shared)
        for path in (shared, *shared.iterdir()):
            path.chmod(0o555 if path.is_dir() else 0o444)
        code = textwrap.dedent(AS_NOBODY.format(root=str(ROOT), path=str(shared)))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[0] == "50 3 True"
        assert [("Permission denied" in line and "folder that can be written" in line) for line in lines[1:]] == [
            True
        ] * 3
    finally:
        shared.chmod(0o755)
        shutil.rmtree(shared)


def damage(path, how):
    """One file of the store, changed."""
    shard = sorted(path.glob("rows-*.safetensors"))[1]
    data = bytearray(shard.read_bytes())
    if how == "truncated":
        shard.write_bytes(data[:-10])
    elif how == "longer":
        shard.write_bytes(data + b"x")
    elif how == "missing":
        shard.unlink()
    elif how == "empty":
        shard.write_bytes(b"")
    elif how == "header":
        data[20] ^= 1
        shard.write_bytes(data)
    elif how == "header length":
        data[3] ^= 1
        shard.write_bytes(data)
    else:
        data[-5] ^= 1
        shard.write_bytes(data)


@pytest.mark.parametrize("how", ["truncated", "longer", "missing", "empty", "header", "header length", "flipped byte"])
def test_a_damaged_shard_is_named_and_the_others_are_read(how, tmp_path):
    _, rows = store_of(tmp_path)
    damage(tmp_path, how)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    report = gf.store.verify(tmp_path)
    assert not report.ok
    assert [(one.file, one.rows) for one in report.damaged] == [("rows-00000001.safetensors", 20)]
    assert "NOT SOUND: 20 of 50 rows damaged" in str(report)
    assert json.dumps(report.to_dict())
    if how == "flipped byte":  # lengths and headers are sound, so that only the checksum tells
        assert gf.store.info(tmp_path).ok
        with pytest.raises(StoreError, match="not those that were written"):
            Store.create(tmp_path.parent / "other", size=6, dtype="float32").merge([tmp_path])
    else:
        with pytest.raises(StoreError, match="rows-00000001"):
            Store.open(tmp_path)
        with pytest.warns(gf.GradfuncWarning, match="left out 20 rows"):
            rest = Store.open(tmp_path, damaged="skip")
        assert rest.rows().equal(torch.cat([rows[:20], rows[40:]]))
        assert rest.ids.equal(torch.cat([torch.arange(1000, 1020), torch.arange(1040, 1050)]))
        with pytest.raises(StoreError, match="rows-00000001"):
            rest.writer()
    for name, data in before.items():
        assert (tmp_path / name).read_bytes() == data


def test_compacting_does_not_launder_damage(tmp_path):
    store = Store.create(tmp_path, size=6, dtype="float32", shard_bytes=20 * 24)
    with store.writer() as w:
        for part in numbers(30, 6).split(6):
            w.append(part)
            w.flush()
    damage(tmp_path, "flipped byte")
    with pytest.raises(StoreError, match="not those that were written"):
        store.compact()
    assert not gf.store.verify(tmp_path).ok
    assert len(Store.open(tmp_path)) == 30


def changed(path, **facts):
    """The manifest with other facts, signed."""
    place = path / "manifest.json"
    place.write_text(json.dumps(_manifest.signed({**json.loads(place.read_text()), **facts})))


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("version", "a store of version 3; expected version 2 or before"),
        ("format", "it says it is 'other'"),
        ("byte", "corrupt manifest"),
        ("empty", "corrupt manifest"),
        ("list", "corrupt manifest"),
        ("number", "SHA-256"),
        ("missing", "no manifest"),
        ("field", "corrupt manifest"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused(what, says, tmp_path):
    store_of(tmp_path)
    place = tmp_path / "manifest.json"
    if what == "version":
        changed(tmp_path, version=3)
    elif what == "format":
        changed(tmp_path, format="other")
    elif what == "field":
        changed(tmp_path, more=1)
    elif what == "byte":
        place.write_bytes(place.read_bytes()[:-20] + b"\xff" + place.read_bytes()[-19:])
    elif what == "number":
        place.write_text(place.read_text().replace('"rows": 20', '"rows": 21', 1))
    elif what == "missing":
        place.unlink()
    else:
        place.write_text({"empty": "", "list": "[]"}[what])
    for attempt in (Store.open, gf.store.verify, gf.store.info):
        with pytest.raises(StoreError, match=says):
            attempt(tmp_path)
    assert len(list(tmp_path.glob("rows-*"))) == 3


def test_opening_executes_nothing_and_names_of_classes_are_not_looked_up(tmp_path):
    store_of(tmp_path)
    changed(tmp_path, projection={"kind": "own", "name": "os.abort"})
    assert Store.open(tmp_path).projection is None
    changed(tmp_path, projection={"kind": "gaussian", "size": "__import__('os').abort()", "seed": 0})
    with pytest.raises(StoreError, match="corrupt manifest"):
        Store.open(tmp_path)


def test_files_outside_of_the_folder_are_not_read(tmp_path):
    store_of(tmp_path / "a")
    store_of(tmp_path / "b")
    shards = json.loads((tmp_path / "a" / "manifest.json").read_text())["shards"]
    shards[0]["file"] = "../b/" + shards[0]["file"]
    changed(tmp_path / "a", shards=shards)
    with pytest.raises(StoreError, match="corrupt manifest"):
        Store.open(tmp_path / "a")


def test_a_second_writer_is_refused(tmp_path):
    check_second_writer(tmp_path)


def check_second_writer(path):
    store, _ = store_of(path)
    with store.writer():
        for attempt in (store.writer, Store.open(path).writer, store.compact, lambda: store.merge([])):
            with pytest.raises(StoreError, match="another writer has open"):
                attempt()
        code = f"import gradfunc as gf; gf.store.GradientStore.open({str(path)!r}).writer()"
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
        assert "another writer has open" in done.stderr
    with store.writer() as w:
        assert w.acknowledged == 50


def test_a_writer_does_not_follow_a_fork(tmp_path, monkeypatch):
    store, _ = store_of(tmp_path)
    with store.writer() as w:
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: -1)
            with pytest.raises(StoreError, match="a writer of another process"):
                w.append(numbers(1, 6))
        assert w.flush() == 50


def test_what_a_killed_writer_left_is_dropped_and_said(tmp_path):
    store, rows = store_of(tmp_path)
    (tmp_path / "rows-00000003.safetensors").write_bytes(b"whole, but not acknowledged")
    (tmp_path / ".rows-00000004.safetensors.partial-host-12345").write_bytes(b"half")
    assert store.verify().left == (".rows-00000004.safetensors.partial-host-12345", "rows-00000003.safetensors")
    assert store.verify().ok
    with pytest.warns(gf.GradfuncWarning, match=r"dropped the open shard.*All 50 rows"), store.writer() as w:
        assert len(w.dropped) == 2
    assert not store.verify().left
    assert store.rows().equal(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with store.writer() as w:
            assert w.dropped == ()


def refused_appends():
    rows = numbers(3, 6)
    meta = {"label": torch.zeros(3, dtype=torch.int64), "position": torch.zeros(3, 1)}
    nan, big, small = rows.clone(), rows.double(), rows.double()
    nan[1, 2], big[2, 0], small[0] = torch.nan, 1e300, 1e-300
    yield "type", TypeError, "expected per-sample gradients", lambda w: w.append([1.0], ids=[1], metadata=meta)
    yield "width", ValueError, r"\[B, 6\]", lambda w: w.append(numbers(3, 5), metadata=meta)
    yield "integers", ValueError, "floats", lambda w: w.append(rows.long(), metadata=meta)
    yield "NaN", ValueError, "row 1 with NaN", lambda w: w.append(nan, metadata=meta)
    yield "overflow", ValueError, "row 2, whose largest entry is 1e\\+300", lambda w: w.append(big, metadata=meta)
    yield "underflow", ValueError, "row 0, whose largest entry is 1e-300", lambda w: w.append(small, metadata=meta)
    yield "ids there", ValueError, "3 ids that the store has", lambda w: w.append(rows, [1000, 1001, 1049], meta)
    yield "ids twice", ValueError, "an id twice", lambda w: w.append(rows, [1, 2, 1], meta)
    yield "ids waiting", ValueError, "1 ids that the store has, such as 7", lambda w: w.append(rows, [7, 8, 9], meta)
    yield "few ids", ValueError, "ids of shape", lambda w: w.append(rows, [1, 2], meta)
    yield "float ids", TypeError, "integers", lambda w: w.append(rows, [0.5, 1.5, 2.5], meta)
    yield "no metadata", ValueError, "as in the rows before", lambda w: w.append(rows)
    yield "other metadata", ValueError, "as in the rows before", lambda w: w.append(rows, metadata={"a": [1, 2, 3]})
    yield "short metadata", ValueError, r"\[3, \.\.\.\]", lambda w: w.append(rows, metadata={"label": [1]})
    yield "texts", TypeError, "numbers", lambda w: w.append(rows, metadata={"label": ["a", "b", "c"]})


@pytest.mark.parametrize(("error", "says", "attempt"), [pytest.param(*a[1:], id=a[0]) for a in refused_appends()])
def test_what_is_refused_is_not_taken(error, says, attempt, tmp_path):
    store, rows = store_of(tmp_path)
    with store.writer() as w:
        w.append(rows[:1] + 1, ids=[7], metadata={"label": [1], "position": torch.zeros(1, 1)})
        with pytest.raises(error, match=says):
            attempt(w)
        assert (w.acknowledged, w.waiting) == (50, 1)
    assert store.rows().equal(torch.cat([rows, rows[:1] + 1]))


@pytest.mark.parametrize("scale", [1e-9, 3e-7])
def test_gradients_too_small_for_float16_are_refused_not_zeroed(scale, tmp_path):
    store = Store.create(tmp_path, size=6)
    with store.writer() as w:
        with pytest.raises(ValueError, match="dtype='bfloat16'"):
            w.append(numbers(3, 6) * scale)
        w.append(numbers(3, 6) * 1e-2)
        w.append(torch.zeros(2, 6))
    assert len(store) == 5


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, ValueError),
        ({"size": 0}, ValueError),
        ({"size": 2.0}, TypeError),
        ({"size": 3, "dtype": "int8"}, ValueError),
        ({"size": 3, "shard_bytes": 0}, ValueError),
        ({"projection": 3}, TypeError),
        ({"projection": gf.projections.gaussian(4), "size": 5}, ValueError),
    ],
    ids=str,
)
def test_what_makes_no_store_is_refused(options, error, tmp_path):
    with pytest.raises(error, match=r"GradientStore\.create"):
        Store.create(tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()


def test_a_folder_in_use_is_refused(tmp_path):
    store_of(tmp_path / "a")
    with pytest.raises(StoreError, match="a folder with a store in it"):
        Store.create(tmp_path / "a", size=6)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").touch()
    with pytest.raises(StoreError, match=r"thesis\.tex"):
        Store.create(tmp_path / "b", size=6)
    (tmp_path / "c").touch()
    with pytest.raises(StoreError, match="folder that can be written"):
        Store.create(tmp_path / "c", size=6)


def refused_questions():
    yield "k 0", ValueError, lambda s: s.top_k(numbers(1, 6), 0)
    yield "k many", ValueError, lambda s: s.top_k(numbers(1, 6), 51)
    yield "k float", TypeError, lambda s: s.top_k(numbers(1, 6), 2.0)
    yield "width", ValueError, lambda s: s.dot(numbers(1, 5))
    yield "vector", ValueError, lambda s: s.dot(numbers(1, 6)[0])
    yield "list", TypeError, lambda s: s.dot([[0.0] * 6])
    yield "NaN", ValueError, lambda s: s.dot(torch.full((1, 6), torch.nan))
    yield "position", IndexError, lambda s: s.rows([50])
    yield "mask", TypeError, lambda s: s.rows(torch.ones(50, dtype=torch.bool))
    yield "one position", TypeError, lambda s: s.rows(3)
    yield "words", TypeError, lambda s: s.rows(["3"])
    yield "blocks", ValueError, lambda s: next(s.blocks(0))
    yield "format", ValueError, lambda s: s.export("x", "csv")
    yield "damaged", ValueError, lambda s: Store.open(s.path, damaged="ignore")
    yield "store", TypeError, lambda s: s.gram(3)


@pytest.mark.parametrize(("error", "attempt"), [pytest.param(*a[1:], id=a[0]) for a in refused_questions()])
def test_what_is_no_question_is_refused(error, attempt, tmp_path):
    store, _ = store_of(tmp_path)
    with pytest.raises(error, match=r"GradientStore"):
        attempt(store)


# --- broken on purpose -------------------------------------------------------------------------------


def in_place(path, data):
    path.write_bytes(data)


def test_the_law_of_full_disks_catches_files_written_in_place(tmp_path, monkeypatch):
    monkeypatch.setattr(_manifest, "replace_file", in_place)
    with pytest.raises((AssertionError, StoreError)):
        check_full_disk_for_the_manifest(tmp_path)


def test_the_law_of_interrupts_catches_a_state_that_is_not_looked_up(tmp_path, monkeypatch):
    """A writer that takes what was interrupted for written loses it, one that takes it for lost writes over it."""

    def believing(arrived):
        return lambda call, folder: gf.store.Manifest(
            6, "float32", 480, {"kind": "none"}, ids="integers", shards=arrived(folder)
        )

    def named(folder):
        return tuple(gf.store.Shard(**one) for one in json.loads((folder / "manifest.json").read_text())["shards"])

    real, opened = _writer.read_manifest, []

    def first_real(call, folder):
        opened.append(1)
        return real(call, folder) if len(opened) == 1 else believing(lambda _: named(folder)[:1])(call, folder)

    monkeypatch.setattr(_writer, "read_manifest", first_real)
    with pytest.raises((AssertionError, StoreError)):
        check_interrupt("after", tmp_path, monkeypatch)


def test_the_law_of_one_writer_catches_a_lock_that_is_none(tmp_path, monkeypatch):
    class Free:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def release(self):
            pass

    monkeypatch.setattr(_writer, "locked", lambda call, folder: Free())
    with pytest.raises(BaseException, match="DID NOT RAISE"):
        check_second_writer(tmp_path)


def test_ids_are_looked_up_only_when_they_do_not_rise(tmp_path, monkeypatch):
    store, _ = store_of(tmp_path)
    asked = []
    monkeypatch.setattr(_seen.Seen, "_every", lambda self: asked.append(1) or set())
    with store.writer() as w:
        w.append(numbers(2, 6), ids=[2000, 2001], metadata={"label": [0, 0], "position": torch.zeros(2, 1)})
        assert not asked
        w.append(numbers(2, 6), ids=[5, 4], metadata={"label": [0, 0], "position": torch.zeros(2, 1)})
        assert asked


def test_digests_are_those_of_the_file(tmp_path):
    (tmp_path / "x").write_bytes(b"abc" * 10**6)
    done = subprocess.run(["sha256sum", str(tmp_path / "x")], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == _files.sha256_of(tmp_path / "x")
