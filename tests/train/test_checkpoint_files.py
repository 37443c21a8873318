"""Checkpoints as files: what is written comes back, what is not as it was written is refused, no code is run."""

from __future__ import annotations

import errno
import json
import math
import os
import pickle
import random
import re
import resource
import signal
import stat
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from digits import F64, MODEL, loss, same, same_fit, train
from runs import in_a_process, processes
from tiers import every

import gradfunc as gf
from gradfunc import _files
from gradfunc.train import Checkpoint, CheckpointError, History, _checkpoint
from gradfunc.train._history import Series


def stored(params=None, state=None, series=None, **options):
    history = History({name: Series(np.arange(len(v)), v) for name, v in (series or {}).items()})
    return Checkpoint(params or {}, state or {}, history, **{"step": 3, "epoch": 1, "batch": 2, **options})


def same_history(a, b):
    return list(a) == list(b) and all(
        a.steps(k).tobytes() == b.steps(k).tobytes() and type(a[k]) is type(b[k]) and repr(a[k]) == repr(b[k])
        for k in a
    )


def same_checkpoint(a, b):
    return (
        alike(a.params, b.params)
        and alike(a.state, b.state)
        and same(a.generators, b.generators)
        and same_history(a.history, b.history)
        and (a.step, a.epoch, a.batch, a.identity) == (b.step, b.epoch, b.batch, b.identity)
    )


def alike(a, b):
    """Names in order, dtypes, shapes and bytes: NaN is the NaN it was."""

    def of(tensors):
        return [
            (k, v.dtype, v.shape, v.contiguous().reshape(-1).view(torch.uint8).tolist()) for k, v in tensors.items()
        ]

    return of(a) == of(b)


def there_and_back(tmp_path, checkpoint):
    gf.train.save_checkpoint(tmp_path / "a", checkpoint)
    assert os.listdir(tmp_path) == ["a"]
    return gf.train.load_checkpoint(tmp_path / "a")


DTYPES = [
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.bool, torch.int8,
    torch.uint8, torch.int16, torch.int32, torch.int64, torch.complex64, torch.complex128,
]  # fmt: skip
SHAPES = [(), (0,), (3, 0, 2), (1,), (2, 3), (2, 3, 4, 5)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_shape(dtype, tmp_path):
    params = {str(shape): (10 * torch.randn(shape, dtype=F64)).to(dtype) for shape in SHAPES}
    assert same_checkpoint(there_and_back(tmp_path, kept := stored(params, dict(params))), kept)


def test_numbers_that_are_none(tmp_path):
    odd = torch.tensor([math.nan, -math.nan, math.inf, -math.inf, -0.0, 5e-324], dtype=F64)
    assert same_checkpoint(there_and_back(tmp_path, kept := stored({"w": odd, "h": odd.half()})), kept)


def test_odd_names(tmp_path):
    names = ["", "/", "a/b", "params/a", "a.b.0", " ", "ü→😀", '"', "\\", "\n\0", "__metadata__", "state", "x" * 5000]
    tensors = {name: torch.tensor(float(k)) for k, name in enumerate(names)}
    kept = stored(tensors, dict(reversed(tensors.items())), {name: np.ones(1) for name in names})
    assert same_checkpoint(there_and_back(tmp_path, kept), kept)


def test_layouts_and_shared_storage(tmp_path):
    base = torch.randn(2, 3, 4, 5)
    params = {
        "last": base.contiguous(memory_format=torch.channels_last),
        "all": base,
        "part": base[1, :, ::2],
        "turned": base.transpose(0, 3),
        "repeated": base[:1].expand(7, 3, 4, 5),
        "conjugated": torch.randn(3, dtype=torch.complex64).conj(),
        "negated": torch.randn(3, dtype=torch.complex64).conj().imag,
        "tied": base,
        "parameter": torch.nn.Parameter(base),
    }
    kept = stored(params)
    found = there_and_back(tmp_path, kept)
    assert same(found.params, {name: value.detach() for name, value in params.items()})
    assert found.params["last"].is_contiguous(memory_format=torch.channels_last)
    assert found.params["turned"].stride() == params["turned"].stride()
    assert not any(value.requires_grad for value in found.params.values())


def test_layouts_are_those_of_the_moment(tmp_path):
    """Resumed, a parameter lies in memory as it lay (not as the one given first): sums then go in the same order."""
    params = {"w": torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last), "b": torch.randn(6, 4).T}
    data = torch.randn(24, 3, 2, 2)

    def go(epochs, **options):
        return gf.train.fit(
            lambda p, x: (p["w"] * x).square().sum() + (p["b"].sum() - x.sum()).square(),
            gf.mean() >> gf.adam(1e-2),
            params,
            data,
            epochs=epochs,
            batch_size=8,
            **options,
        )

    go(1, checkpoint=tmp_path / "a")
    resumed = go(2, checkpoint=tmp_path / "a", resume=True)
    assert {k: v.stride() for k, v in resumed.params.items()} == {k: v.stride() for k, v in go(1).params.items()}
    assert same_fit(resumed, go(2))


def test_histories(tmp_path):
    series = {
        "numbers": np.array([1.0, math.nan, math.inf, -0.0]),
        "whole": np.array([2**62, -1]),
        "flags": np.array([True, False]),
        "half": np.ones(3, np.float16),
        "unsigned": np.array([2**63], np.uint64),
        "tensors": np.random.default_rng(0).normal(size=(2, 3, 4)),
        "empty": np.zeros((2, 0, 3)),
        "ragged": [[1.0], [1.0, 2.0]],
        "text": ["a", "ü\n"],
        "none": [None, 1.5, math.nan, math.inf, "nan", True, {"a": [1]}],
    }
    assert same_checkpoint(there_and_back(tmp_path, kept := stored(series=series)), kept)


def test_what_a_training_captures_comes_back(tmp_path):
    """Interrupted anywhere, a history is what it would have been."""
    captured = {
        "ragged": lambda s: torch.arange(s.step % 3 + 1).bfloat16(),
        "late": lambda s: torch.ones(2 + (s.step > 4)),
        "mixed": lambda s: None if s.step % 2 else s.step + 0.1,
        "text": lambda s: "x" * s.step,
        "nan": lambda s: [math.nan, -math.inf],
        "widened": lambda s: 1 if s.step < 6 else 0.5,
        "flag": lambda s: np.bool_(s.step > 3),
        "report": lambda s: s.report,
        "big-endian": lambda s: np.arange(3, dtype=">f4"),
        "eighth": lambda s: torch.ones(2).to(torch.float8_e4m3fn),
    }
    whole = train(capture=captured, epochs=1)
    json.dumps(whole.history.to_dict(), allow_nan=False)
    for stop in range(7):
        path = tmp_path / str(stop)
        halt = [lambda s, stop=stop: "stop" if s.step == stop else None]
        train(capture=captured, epochs=1, checkpoint=path, callbacks=halt)
        resumed = train(capture=captured, epochs=1, checkpoint=path, resume=True)
        assert same_fit(resumed, whole)
        assert same_history(resumed.history, whole.history)


def test_what_was_read_no_longer_hangs_on_the_file(tmp_path):
    gf.train.save_checkpoint(tmp_path / "a", kept := stored({"w": torch.randn(5000)}, {}, {"loss": np.ones(5000)}))
    found = gf.train.load_checkpoint(tmp_path / "a")
    with (tmp_path / "a").open("r+b") as file:  # as `cp` does, the same file
        file.write(bytes((tmp_path / "a").stat().st_size))
    assert same_checkpoint(found, kept)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return written(tmp_path_factory.mktemp("good") / "a")


def written(path):
    """A checkpoint, and the file's bytes."""
    params = {"w": torch.randn(3, 2), "b": torch.randn(2, dtype=F64)}
    kept = stored(params, {"n": torch.tensor(4)}, {"loss": np.ones(5), "said": ["a", None]}, identity={"seed": 0})
    gf.train.save_checkpoint(path, kept)
    return kept, path.read_bytes()


def check_refused_or_same(path, data, kept):
    """What a file of these bytes gives: an error that names the file, or all of what was written."""
    path.write_bytes(data)
    error = None
    try:
        found = gf.train.load_checkpoint(path)
    except CheckpointError as caught:
        error = str(caught)
    assert path.read_bytes() == data
    assert str(path) in error if error else same_checkpoint(found, kept)
    return error is None


def test_a_file_cut_short(file, tmp_path):
    kept, data = file
    cuts = {*range(64), *range(64, len(data), 7), len(data) - 1}
    assert not any(check_refused_or_same(tmp_path / "a", data[:cut], kept) for cut in cuts)
    assert check_refused_or_same(tmp_path / "a", data, kept)
    for longer in (data + b"\0", data + data, b"\0" + data):
        assert not check_refused_or_same(tmp_path / "a", longer, kept)


@pytest.mark.parametrize("part", every(8, range(8)))
def test_a_byte_that_changed(file, tmp_path, part):
    check_changed(tmp_path, part, *file)


def check_changed(tmp_path, part, kept, data):
    draw, read = random.Random(part), 0
    for position in range(part, len(data), 8):
        for value in {data[position] ^ 1 << draw.randrange(8), draw.randrange(256)} - {data[position]}:
            read += check_refused_or_same(tmp_path / "a", data[:position] + bytes([value]) + data[position + 1 :], kept)
    assert read <= 16  # blanks that pad the header, at most


def test_zeroed_blocks(file, tmp_path):
    """What a file system may leave after a loss of power."""
    kept, data = file
    for start in range(0, len(data), 32):
        broken = data[:start] + bytes(min(32, len(data) - start)) + data[start + 32 :]
        assert broken == data or not check_refused_or_same(tmp_path / "a", broken, kept)


class Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_no_code_is_run(tmp_path):
    mark, path = tmp_path / "ran", tmp_path / "a"
    pickle.loads(pickle.dumps(Evil(mark)))
    mark.rmdir()  # it would
    torch.save({"params": Evil(mark)}, path)
    for data in (path.read_bytes(), pickle.dumps(Evil(mark)), b"import os; os.mkdir('ran')", b"", b"{}", b"\x80\x04."):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"expected a checkpoint.*left as it is"):
            gf.train.load_checkpoint(path)
        with pytest.raises(CheckpointError):
            train(checkpoint=path, resume=True)
        assert path.read_bytes() == data
    assert not mark.exists()


def forged(path, facts, tensors=None):
    """A file of our format with these facts, and the checksum that belongs to it."""
    tensors = tensors or {}
    if isinstance(facts, dict):
        facts = {**facts, "sha256": _checkpoint._digest(tensors, facts)}
    text = facts if isinstance(facts, str) else json.dumps(facts)
    safetensors.torch.save_file(tensors, path, metadata={"gradfunc": _checkpoint.FORMAT, "facts": text})


FACTS = {"step": 1, "epoch": 0, "batch": 0, "identity": None, "texts": {}, "order": [], "complex": [], "strides": {}}
FORGED = {
    "nothing": {},
    "a list": [1],
    "text": '"sha256"',
    "no JSON": "{",
    "a step that is none": {**FACTS, "step": "x"},
    "an infinite step": {**FACTS, "step": math.inf},
    "a tensor that is not there": {**FACTS, "order": ["params/w"]},
    "a kind that is none": {**FACTS, "order": ["code/w"]},
    "numbers for names": {**FACTS, "order": [1]},
    "deep": "[" * 100000,
}


@pytest.mark.parametrize("kind", FORGED)
def test_facts_of_others_making(kind, tmp_path):
    forged(tmp_path / "a", FACTS)
    assert gf.train.load_checkpoint(tmp_path / "a").step == 1
    forged(tmp_path / "a", FORGED[kind], {"code/w": torch.ones(1)} if "kind" in kind else None)
    with pytest.raises(CheckpointError, match="a corrupt file"):
        gf.train.load_checkpoint(tmp_path / "a")


def test_files_of_other_formats(tmp_path):
    path = tmp_path / "a"
    safetensors.torch.save_file({"w": torch.ones(2)}, path)
    with pytest.raises(
        CheckpointError, match=r"a file of safetensors that says None; expected 'gradfunc checkpoint 1'"
    ):
        gf.train.load_checkpoint(path)
    safetensors.torch.save_file({}, path, metadata={"gradfunc": "gradfunc checkpoint 2"})
    with pytest.raises(CheckpointError, match=r"that says 'gradfunc checkpoint 2'; expected 'gradfunc checkpoint 1'"):
        train(checkpoint=path, resume=True)
    with pytest.raises(CheckpointError, match=r"load_checkpoint\('.*none'\): got FileNotFoundError"):
        gf.train.load_checkpoint(tmp_path / "none")


# -- what cannot be written


def saved_at_three(path):
    train(checkpoint=path, epochs=1, callbacks=[lambda s: "stop" if s.step == 2 else None])
    assert gf.train.load_checkpoint(path).step == 3
    return path.read_bytes()


FAILING = ["open", "write", "fsync", "replace"]


def fails(name, monkeypatch, number=errno.ENOSPC):
    def failing(*args):
        raise OSError(number, os.strerror(number))

    def opened(*args):
        return failing() if name == "open" else Full(open(*args), failing)

    if name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, failing)
    else:
        monkeypatch.setattr(_files, "open", opened, raising=False)


class Full:
    """A file that takes half of what is written."""

    def __init__(self, file, failing):
        self.file, self.failing = file, failing

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.file.close()

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        self.failing()


@pytest.mark.parametrize("name", FAILING)
def test_no_space_left(name, tmp_path, monkeypatch):
    check_no_space(name, tmp_path, monkeypatch)


def check_no_space(name, tmp_path, monkeypatch):
    path = tmp_path / "a"
    before = saved_at_three(path)
    with monkeypatch.context() as patch:
        fails(name, patch)
        with pytest.raises(CheckpointError, match="No space left on device") as caught:
            train(checkpoint=path, checkpoint_every=3, resume=True, epochs=1)
    assert caught.value.fit.steps == 6
    assert os.listdir(tmp_path) == ["a"]
    assert path.read_bytes() == before
    assert same_fit(train(checkpoint=path, resume=True, epochs=1), train(epochs=1))


def limited(path, before):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # else the process ends instead of the write
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(CheckpointError, match="File too large") as caught:
            train(checkpoint=path, checkpoint_every=3, resume=True, epochs=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert caught.value.fit.steps == 6
    assert os.listdir(path.parent) == [path.name]
    assert path.read_bytes() == before


def test_a_write_that_the_system_cuts_short(tmp_path):
    before = saved_at_three(tmp_path / "a")
    in_a_process(limited, tmp_path / "a", before)


def as_nobody(folder, text):
    if os.getuid() == 0:
        os.setuid(65534)
    ran = []
    for name in ("a", "new"):
        for resume in (False, True):
            with pytest.raises(CheckpointError, match=text):
                train(checkpoint=folder / name, resume=resume, callbacks=[ran.append])
    assert not ran


def test_bytes_are_on_disk_before_the_name_is_theirs(tmp_path, monkeypatch):
    """Or a loss of power might leave the name of a file without its bytes."""
    check_order(tmp_path, monkeypatch)


def check_order(tmp_path, monkeypatch):
    done, sync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "bytes")
        sync(descriptor)

    def replaced(source, target):
        done.append("name")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", synced)
        patch.setattr(os, "replace", replaced)
        gf.train.save_checkpoint(tmp_path / "a", stored())
    assert done == ["bytes", "name", "folder"]


@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_a_folder_that_is_read_only(mode, tmp_path_factory):
    folder = tmp_path_factory.mktemp("outer")
    for parent in [folder, *folder.parents][:3]:  # as pytest makes them: for us alone
        parent.chmod(parent.stat().st_mode | stat.S_IXOTH | stat.S_IXGRP)
    folder = folder / "inner"
    folder.mkdir()
    before = saved_at_three(folder / "a")
    folder.chmod(mode)
    try:
        in_a_process(as_nobody, folder, "Permission denied.*Nothing was run")
    finally:
        folder.chmod(0o755)
    assert (folder / "a").read_bytes() == before
    assert os.listdir(folder) == ["a"]


PLACES = {
    "no folder": ("none/a", "No such file or directory"),
    "a folder": ("folder", "Is a directory"),
    "a file for a folder": ("file/a", "Not a directory"),
    "too long a name": ("a" * 300, "File name too long"),
    "too long a name on the way": ("a" * 250, "File name too long"),
    "no name": ("a\0b", "null byte"),
}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("kind", PLACES)
def test_places_where_no_file_can_be(kind, resume, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    name, text = PLACES[kind]
    ran = []
    with pytest.raises(CheckpointError, match=re.escape(text) + ".*Nothing was run"):
        train(checkpoint=tmp_path / name, resume=resume, callbacks=[ran.append])
    assert not ran
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_system_that_writes_nothing():
    """/proc takes no files from anybody."""
    if not sys.platform.startswith("linux"):
        return
    with pytest.raises(CheckpointError, match="Nothing was run"):
        train(checkpoint="/proc/a")


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "far" / "b")
    train(checkpoint=tmp_path / "a", epochs=1)
    assert (tmp_path / "a").is_symlink()
    assert gf.train.load_checkpoint(tmp_path / "far" / "b").step == 7
    assert train(checkpoint=tmp_path / "a", resume=True).steps == 14


def test_what_no_file_can_hold_is_refused(tmp_path):
    gf.train.save_checkpoint(tmp_path / "a", kept := stored({"w": torch.ones(2)}))
    for params in ({"w": torch.eye(2).to_sparse()}, {"w": torch.zeros(2, device="meta")}):
        with pytest.raises(CheckpointError, match="save_checkpoint"):
            gf.train.save_checkpoint(tmp_path / "a", stored(params))
    assert same_checkpoint(gf.train.load_checkpoint(tmp_path / "a"), kept)
    assert os.listdir(tmp_path) == ["a"]


def test_only_what_the_dead_left_is_swept(tmp_path):
    path = tmp_path / "a"
    prefix = _files._prefix(path)
    child = processes().Process(target=int)
    child.start()
    child.join()
    names = {f"{prefix}{child.pid}": False, f"{prefix}{os.getppid()}": True, f"{prefix}x": True, "b": True}
    for name in names:
        (tmp_path / name).touch()
    gf.train.save_checkpoint(path, stored())
    assert {name: (tmp_path / name).exists() for name in names} == names


def test_a_checkpoint_belongs_to_one_run(tmp_path):
    path = tmp_path / "a"
    train(checkpoint=path, epochs=1)
    before = path.read_bytes()
    other = {name: value.float() for name, value in MODEL.params.items()}
    for options, text in [
        ({}, r"which is there.*resume=True"),
        ({"resume": True, "seed": 1}, r"another run: seed 0, here 1"),
        ({"resume": True, "loss": gf.per_sample_grads(loss, seed=4)}, r"seed of the loss 0, here 4"),
        ({"resume": True, "batch_size": 8}, r"batch_size 32, here 8"),
        ({"resume": True, "params": other}, r"another run: params"),
        ({"resume": True, "step": gf.mean() >> gf.sgd(0.1, momentum=0.9)}, r"a state that lacks"),
    ]:
        with pytest.raises(ValueError, match=text):
            train(checkpoint=path, **options)
    assert path.read_bytes() == before
