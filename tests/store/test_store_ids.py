"""Samples are named by integers or by strings, one kind a store; stores of the first version stay readable."""

from __future__ import annotations

import base64
import json
import zlib

import numpy as np
import pytest
import torch

import gradfunc as gf
from gradfunc.store import StoreError, _ids, _taken

Store = gf.store.GradientStore
NAMES = ["a", "été", "文書/17", "with space", "b" * 300, "7", "\U0001f600", "-"]


def rows(n, seed=0):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


def named(path, names, each=3, shard_rows=2):
    store = Store.create(path, size=4, dtype="float32", shard_bytes=16 * shard_rows)
    with store.writer() as w:
        for start in range(0, len(names), each):
            own = names[start : start + each]
            w.append(rows(len(names))[start : start + each], ids=own)
    return store


def test_names_are_read_back(tmp_path):
    check_names(tmp_path)


def check_names(path):
    store = named(path, NAMES)
    for opened in (store, Store.open(path)):
        assert opened.ids.tolist() == NAMES
        assert opened.manifest.ids == "strings"
        assert opened.rows().equal(rows(8))
        assert opened.verify().ok
    found = store.top_k(rows(8)[[4, 2]], 3)
    assert found.ids.shape == (2, 3)
    assert found.ids.tolist() == [[NAMES[k] for k in own] for own in found.positions.tolist()]
    assert store.compact() == 0 or store.ids.tolist() == NAMES
    assert json.dumps(store.info().to_dict())
    assert "strings" in str(store.info())


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda names: np.array(names, dtype=object)])
def test_names_come_as_any_sequence(kind, tmp_path):
    store = Store.create(tmp_path, size=4, dtype="float32")
    with store.writer() as w:
        w.append(rows(8), ids=kind(NAMES))
    assert store.ids.tolist() == NAMES


@pytest.mark.parametrize("format", ["numpy", "torch", "arrow"])
def test_names_are_exported(format, tmp_path):
    store = named(tmp_path / "s", NAMES)
    store.export(tmp_path / "x", format)
    if format == "numpy":
        found = np.load(tmp_path / "x" / "ids.npy").tolist()
    elif format == "torch":
        found = torch.load(tmp_path / "x", weights_only=True)["ids"]
    else:
        found = pytest.importorskip("pyarrow").ipc.open_file(tmp_path / "x").read_all()["id"].to_pylist()
    assert found == NAMES


def test_an_index_gives_names(tmp_path):
    pytest.importorskip("faiss")
    store = named(tmp_path, NAMES)
    store.build_index()
    found = store.top_k(rows(8)[:2], 8, approximate=True)
    assert found.ids.tolist() == store.top_k(rows(8)[:2], 8).ids.tolist()


def test_named_parts_are_merged(tmp_path):
    a, b = named(tmp_path / "a", NAMES[:5]), named(tmp_path / "b", NAMES[5:])
    whole = Store.create(tmp_path / "whole", size=4, dtype="float32")
    assert whole.merge([a, b]) == 8
    assert whole.ids.tolist() == NAMES
    assert whole.compact() > 0
    assert whole.ids.tolist() == NAMES
    with pytest.raises(StoreError, match="3 ids that occur twice"):
        whole.merge([b])
    numbered = Store.create(tmp_path / "n", size=4, dtype="float32")
    with numbered.writer() as w:
        w.append(rows(2))
    with pytest.raises(StoreError, match="ids integers; expected ids strings"):
        whole.merge([numbered])
    assert Store.open(tmp_path / "whole").ids.tolist() == NAMES


BAD = {
    "integers": (TypeError, "expected strings, as in the rows before", [1, 2]),
    "none": (TypeError, "got no ids; expected strings", None),
    "mixed": (TypeError, "strings and an int", ["x", 3]),
    "empty": (ValueError, "not empty", ["x", ""]),
    "NUL": (ValueError, "without NUL", ["x", "y\0"]),
    "surrogate": (ValueError, "surrogates", ["x", "\ud800"]),
    "few": (ValueError, r"ids of shape \(1,\)", ["x"]),
    "one string": (TypeError, "integers or strings", "xy"),
    "bytes": (TypeError, "integers", [b"x", b"y"]),
    "twice": (ValueError, "an id twice", ["x", "x"]),
    "there": (ValueError, "1 ids that the store has, such as été", ["x", "été"]),
    "waiting": (ValueError, "1 ids that the store has, such as waits", ["x", "waits"]),
    "numbers after": (TypeError, "expected strings", np.arange(2)),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_names_are_refused_and_nothing_is_taken(case, tmp_path):
    error, says, ids = BAD[case]
    store = named(tmp_path, NAMES)
    with store.writer() as w:
        w.append(rows(1), ids=["waits"])
        with pytest.raises(error, match=says):
            w.append(rows(2), ids=ids)
        assert (w.acknowledged, w.waiting) == (8, 1)
    assert store.ids.tolist() == [*NAMES, "waits"]


def test_names_are_refused_where_samples_are_numbered(tmp_path):
    store = Store.create(tmp_path, size=4)
    with store.writer() as w:
        w.append(rows(2))
        with pytest.raises(TypeError, match="expected integers, as in the rows before"):
            w.append(rows(1), ids=["x"])
    assert store.ids.tolist() == [0, 1]


# A store of version 1, as it was written: three rows of a projection with seed 5, numbered 7, 5, 9.
FIRST = {
    "manifest.json": (
        "c-noD-EP}342AFg6o#+2LDawYDn&3*B-MIL?7;TcbwS^Kl9OQVfK3+yDT>s0jxJq4lzBPfHhk`f#|623pQvBAd6D5mE&h;Y9p|Z5"
        "p{48iOKNOd%-hSkB||yRxEa0QU!QQ{FZpGYwU)GPXXj=9Dzsh4T)Ms=zKs*N&ibC5ke*~|&F{w7M5JAEUH`gI!39sURi68l=NdfJ"
        ";JWp??T6O-2dO59TYnj+M_JCxIPF@COCU}=tq4`hk)zk%6tGC7IY|Zy3>*}ss7V`y;Ef`H;Ea~SyV}Zwj2qsGj+o_mryA-@-tNNs"
        "hr=6^-J|t(?Q-QEkGqx2{JeftxAkeoQUy=zTs2>HwR-dQn%!+Sa671zwexL|1(n1n=ar7)i4ikINJVo<PF3j`oG7DgsM>6_iHn6q"
        "F(n@`uxidV*#Gdszxm)jpN{r#KI3fQ<f^aif|UYbED@RL$VQAggsjOb(3~}cDvCl-x%O~&U=r_q-TvLfBtN&CDQ{kIiKqlhIZ?2P"
        "iIvhKCfexhe`nUokaa{r%3!1n#fsHRS;FXC@k968{RVV^&i?"
    ),
    "rows-00000000.safetensors": (
        "c-s5H00GrX@$tE-C5b7CC5iFzN><fM=|zbtX{C9|N>)n68Hq(H3i)XYi3%Xm%+$ORh2oO@qErP#rCJ@O%#>n~hLn=Zf>fYtPcsuG"
        "9grRnFWM+pM+t0bep*^_Y6(zfw1JMHSu9W=%s%~`#H7?5l8i7k(=j#znNgHqj$*l+u@SOP9b-(r#zs1(K>KSIK!6?Ue^v%mz=*<Y"
        "um=(jKm^1MK)k>K0R9<Lz5"
    ),
    "rows-00000001.safetensors": (
        "c-s5H00GrX@$tE-C5b7CC5iFzN><fM=|zbtX{C9|N>)n68Hq(H3i)XYi3%Xm%+$ORh2oO@qErP#rCJ@O%#>n~hLn=Zf>fYtPcsuG"
        "9grRnFWN9xM+t0bep*^_Y6(zfw1JLAEKnQFI{lo)q|_XeOt8=~Gy@q?lwXcwwVSaKvPK<aOs$4yIz~Y2YZV}X6Y75^1{gTtz`*bT"
        "h#4FKQlC-a"
    ),
}


def first_version(path):
    path.mkdir()
    for name, text in FIRST.items():
        (path / name).write_bytes(zlib.decompress(base64.b85decode(text)))
    return Store.open(path)


def test_a_store_of_the_first_version_is_read_and_goes_on(tmp_path):
    check_first_version(tmp_path)


def check_first_version(path):
    store = first_version(path / "s")
    assert json.loads((path / "s" / "manifest.json").read_text())["version"] == 1
    assert store.rows().equal(torch.arange(9.0).view(3, 3))
    assert store.ids.tolist() == [7, 5, 9]
    assert store.metadata["label"].tolist() == [0, 1, 2]
    assert store.projection == gf.projections.rademacher(3, seed=5)
    assert store.verify().ok
    other = Store.create(path / "t", projection=store.projection, params={"w": torch.zeros(2)}, dtype="float32")
    assert other.merge([store]) == 3
    with store.writer({"w": torch.zeros(2)}) as w:
        with pytest.raises(TypeError, match="expected integers"):
            w.append(torch.ones(1, 3), ids=["x"], metadata={"label": [3]})
        w.append(torch.ones(1, 3), ids=[1], metadata={"label": [3]})
    assert json.loads((path / "s" / "manifest.json").read_text())["version"] == 2
    assert Store.open(path / "s").ids.tolist() == [7, 5, 9, 1]
    assert Store.open(path / "s").rows()[:3].equal(torch.arange(9.0).view(3, 3))
    assert store.compact() > 0
    assert store.verify().ok


# --- broken on purpose -------------------------------------------------------------------------------


def characters(call, texts):
    """Lengths of text, not of its bytes."""
    made = real(call, texts)
    return _ids.Ragged(torch.tensor([len(text) for text in texts], dtype=torch.int32), made.tensors)


real = _ids._encoded


def test_the_law_of_names_catches_lengths_of_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(_ids, "_encoded", characters)
    with pytest.raises((AssertionError, StoreError)):
        check_names(tmp_path)


def test_the_law_of_names_catches_an_order_that_is_lost(tmp_path, monkeypatch):
    take = _ids.Ragged.take
    monkeypatch.setattr(_ids.Ragged, "take", lambda self, at: take(self, at.sort().values))
    with pytest.raises(AssertionError):
        check_names(tmp_path)


def test_the_law_of_first_versions_catches_ids_of_any_kind(tmp_path, monkeypatch):
    monkeypatch.setattr(
        _taken, "read_ids", lambda call, ids, count, first, kind: _ids.read_ids(call, ids, count, first, None)
    )
    with pytest.raises((StoreError, pytest.fail.Exception)):
        check_first_version(tmp_path)
