"""What was appended is what is read, bit by bit, and what is asked is what the rows say."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import threading

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

import gradfunc as gf
from gradfunc._rounding import gamma, unit_roundoff
from gradfunc.store import StoreError, _query, _taken, _view

Store = gf.store.GradientStore
DTYPES = ["float16", "bfloat16", "float32", "float64"]


def numbers(n, size, seed=0, dtype=torch.float32):
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def filled(path, rows, each=13, *, shard_rows=20, dtype="float32", **options):
    """A store of these rows, in appends of `each`, files of `shard_rows`."""
    dtype = str(dtype).removeprefix("torch.")
    width = rows.shape[1] * getattr(torch, dtype).itemsize
    store = Store.create(path, size=rows.shape[1], dtype=dtype, shard_bytes=shard_rows * width, **options)
    with store.writer() as w:
        for part, ids in zip(rows.split(each), torch.arange(len(rows)).split(each), strict=True):
            w.append(part, ids=ids + 1000, metadata={"label": ids % 3, "position": ids[:, None].float()})
    return store


def model_and_batch(n=12):
    model = gf.stateless(gf.models.mlp([6, 8, 3]))
    return model, gf.per_sample_grads(lambda p, x: model.sample(p, x).sin().sum()), numbers(n, 6)


# --- what is on disk ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_read_back_bit_by_bit(dtype, tmp_path):
    rows = numbers(75, 9, dtype=getattr(torch, dtype))
    rows[3], rows[4, 0] = 0.0, -0.0
    store = filled(tmp_path / "s", rows, dtype=dtype)
    for opened in (store, Store.open(tmp_path / "s")):
        assert opened.rows().view(torch.uint8).equal(rows.view(torch.uint8))
        assert opened.ids.equal(torch.arange(1000, 1075))
        assert opened.metadata["label"].equal(torch.arange(75) % 3)
        assert opened.metadata["position"].equal(torch.arange(75.0)[:, None])
        assert len(opened) == 75
        assert opened.verify().ok


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_wider_rows_are_rounded_once_to_nearest(dtype, tmp_path):
    rows = numbers(40, 9, dtype=torch.float64)
    assert filled(tmp_path / "s", rows, dtype=dtype).rows().equal(rows.to(getattr(torch, dtype)))


def test_files_are_read_without_gradfunc(tmp_path):
    """Rows, ids and metadata by safetensors, names and checksums by json and hashlib."""
    rows = numbers(50, 7)
    filled(tmp_path, rows)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["format"], manifest["version"]) == ("gradfunc store", 2)
    found = []
    for shard in manifest["shards"]:
        data = (tmp_path / shard["file"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
        found.append(safetensors.numpy.load(data))
    assert np.array_equal(np.concatenate([shard["rows"] for shard in found]), rows.numpy())
    assert np.array_equal(np.concatenate([shard["ids"] for shard in found]), np.arange(1000, 1050))
    assert np.array_equal(np.concatenate([shard["metadata/label"] for shard in found]), np.arange(50) % 3)
    assert [shard["rows"] for shard in manifest["shards"]] == [20, 20, 10]
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    assert manifest["sha256"] == hashlib.sha256(text.encode()).hexdigest()


def test_append_says_what_is_acknowledged(tmp_path):
    """Nothing until a shard is full or flushed; then a reader sees it."""
    store = Store.create(tmp_path, size=4, dtype="float32", shard_bytes=10 * 16)
    with store.writer() as w:
        said = [w.append(part) for part in numbers(24, 4).split(4)]
        assert said == [0, 0, 10, 10, 20, 20]
        assert (w.acknowledged, w.waiting) == (20, 4)
        assert len(Store.open(tmp_path)) == 20
        assert w.flush() == 24
        assert (w.acknowledged, w.waiting) == (24, 0)
        assert len(Store.open(tmp_path)) == 24
        assert len(store) == 0  # opened before
    assert len(store) == 24
    with pytest.raises(ValueError, match="a writer that is closed"):
        w.append(numbers(1, 4))


def test_what_waits_is_written_when_something_else_is_raised(tmp_path):
    store = Store.create(tmp_path, size=4, dtype="float32")

    def stopped():
        with store.writer() as w:
            w.append(numbers(3, 4))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert store.rows().equal(numbers(3, 4))


def test_a_later_writer_goes_on_exactly(tmp_path):
    rows = numbers(60, 5)
    whole = filled(tmp_path / "whole", rows, each=7)
    store = filled(tmp_path / "parts", rows[:28], each=7)
    for start in (28, 42):
        store = Store.open(tmp_path / "parts")
        with store.writer() as w:
            for at in range(start, min(start + 14, 60) if start == 28 else 60, 7):
                ids = torch.arange(at, min(at + 7, 60))
                w.append(rows[ids], ids=ids + 1000, metadata={"label": ids % 3, "position": ids[:, None].float()})
    assert store.rows().equal(whole.rows())
    assert store.ids.equal(whole.ids)
    assert store.metadata["label"].equal(whole.metadata["label"])


# --- gradients -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [None, 5])
def test_gradients_go_through_the_projection_that_is_written_down(chunk, tmp_path):
    model, f, x = model_and_batch()
    projection = gf.projections.two_sided((4, 4), seed=3)
    Store.create(tmp_path, projection=projection, params=model.params, dtype="float32")
    store = Store.open(tmp_path, projection=projection, params=model.params)
    assert Store.open(tmp_path).projection == projection
    want = f(model.params, x).project(projection)
    with Store.open(tmp_path).writer(model.params) as w:
        w.append(gf.per_sample_grads(f.loss, chunk_size=chunk)(model.params, x) if chunk else f(model.params, x))
    store.refresh()
    assert torch.allclose(store.rows(), want, rtol=0, atol=1e-5 * float(want.norm(dim=1).max()))
    asked = f(model.params, x[:2])
    assert store.dot(asked).equal(store.dot(asked.project(projection)))


def test_whole_gradients_are_the_rows_of_all_parameters(tmp_path):
    model, f, x = model_and_batch()
    store = Store.create(tmp_path, params=model.params, dtype="float32")
    with store.writer() as w:
        w.append(f(model.params, x))
    rows = f(model.params, x).materialize()
    assert store.rows().equal(torch.cat([rows[name].flatten(1) for name in model.params], 1))
    flat = store.rows().double()
    sizes = flat.norm(dim=1)
    bound = 2 * gamma(flat.shape[1] + 2, unit_roundoff(torch.float32)) * sizes.outer(sizes)  # both are float32
    assert bool(((store.gram().double() - f(model.params, x).gram()).abs() <= bound).all())


def test_a_projection_of_ones_own_is_given_again(tmp_path):
    class Sums:
        size = 1

        def apply(self, name, factor):
            return factor.dense().flatten(1).sum(1, keepdim=True)

    model, f, x = model_and_batch()
    Store.create(tmp_path, projection=Sums(), params=model.params, dtype="float32")
    with (
        pytest.raises(StoreError, match="a projection to take them through"),
        Store.open(tmp_path).writer() as w,
    ):
        w.append(f(model.params, x))
    store = Store.open(tmp_path, projection=Sums())
    with store.writer() as w:
        w.append(f(model.params, x))
    assert store.rows().equal(f(model.params, x).project(Sums()))


def test_building_resumes(tmp_path):
    torch.manual_seed(0)
    module, criterion = torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.Dropout(0.5)), torch.nn.CrossEntropyLoss()
    batch = numbers(30, 6), torch.arange(30) % 3
    projection = gf.projections.rademacher(16)
    whole = gf.store.build(tmp_path / "a", module, criterion, batch, projection=projection, dtype="float32", at_once=8)
    seen = []

    def stop(done, total):
        seen.append((done, total))
        if len(seen) == 2:
            raise KeyboardInterrupt

    options = {"projection": projection, "dtype": "float32"}
    with pytest.raises(KeyboardInterrupt):
        gf.store.build(tmp_path / "b", module, criterion, batch, at_once=7, progress=stop, **options)
    assert seen == [(7, 30), (14, 30)]
    assert len(Store.open(tmp_path / "b")) == 14
    store = gf.store.build(tmp_path / "b", module, criterion, batch, at_once=11, **options)
    assert store.ids.equal(torch.arange(30))
    assert torch.allclose(store.rows(), whole.rows(), rtol=0, atol=1e-6)
    with torch.no_grad():
        module[0].weight += 1
    with pytest.raises(StoreError, match="a model of SHA-256"):
        gf.store.build(tmp_path / "b", module, criterion, batch, **options)


# --- questions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [3, 512])
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_questions_are_those_of_the_rows(block, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(_view.View.blocks, "__defaults__", (0, None, block))
    rows = numbers(75, 9, dtype=getattr(torch, dtype))
    store, queries = filled(tmp_path, rows, dtype=dtype), numbers(4, 9, seed=1)
    check_questions(store, rows, queries)


def check_questions(store, rows, queries):
    wide = torch.promote_types(rows.dtype, torch.float32)
    exact = rows.double() @ queries.double().T
    scale = rows.double().norm(dim=1)[:, None] * queries.double().norm(dim=1)
    bound = (2 * rows.shape[1] * torch.finfo(wide).eps / 2) * scale  # of so many terms, in any order
    assert store.dot(queries).dtype == wide
    assert bool(((store.dot(queries).double() - exact).abs() <= bound).all())
    found = store.top_k(queries, 7)
    best = exact.topk(7, dim=0)
    assert found.positions.equal(best.indices.T)
    assert found.ids.equal(store.ids[found.positions])
    assert bool(((found.values.double() - best.values.T).abs() <= bound.max()).all())
    square = rows.double() @ rows.double().T
    norms = rows.double().norm(dim=1)
    limit = 2 * rows.shape[1] * torch.finfo(wide).eps / 2 * norms[:, None] * norms
    assert bool(((store.gram().double() - square).abs() <= limit).all())
    assert store.gram().equal(store.gram().T)
    assert torch.cat([block.clone() for _, block in store.blocks(5)]).equal(rows.to(wide))
    for at in ([5, 2, -1, 2], slice(3, 60, 7), torch.tensor([74]), [], None):
        assert store.rows(at).equal(rows[torch.arange(75)[slice(None) if at is None else at]])


def test_of_equal_products_the_earlier_row_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(_view.View.blocks, "__defaults__", (0, None, 4))
    rows = torch.zeros(40, 2)
    rows[[3, 9, 20, 33], 0] = 1.0
    store = filled(tmp_path, rows)
    check_ties(store)


def check_ties(store):
    assert store.top_k(torch.tensor([[1.0, 0.0]]), 6).positions.tolist() == [[3, 9, 20, 33, 0, 1]]
    assert store.top_k(torch.tensor([[0.0, 1.0]]), 3).positions.tolist() == [[0, 1, 2]]


def test_memory_beside_the_answer_is_some_blocks(tmp_path):
    """Of 40 MB of rows the largest tensor that a query makes has the size of a block."""
    rows = numbers(2000, 500)
    store = filled(tmp_path, rows, each=500, shard_rows=300)
    made = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            made.extend(t.numel() for t in (out if isinstance(out, (tuple, list)) else [out]) if torch.is_tensor(t))
            return out

    with Watch():
        store.top_k(numbers(3, 500, seed=1), 10)
    assert max(made) <= _view.BLOCK * 500


def test_two_stores_are_compared(tmp_path):
    rows = numbers(50, 6)
    a, b = filled(tmp_path / "a", rows[:30]), filled(tmp_path / "b", rows[30:])
    assert torch.allclose(a.gram(b), rows[:30] @ rows[30:].T, atol=1e-5)
    out = torch.zeros(30, 30)
    for i, j, block in a.gram_blocks(size=7):
        out[i, j] = block
        assert j.start >= i.start
    assert torch.allclose(out.triu(), a.gram().triu(), atol=1e-6)
    with pytest.raises(StoreError, match="size 5"):
        a.gram(filled(tmp_path / "c", numbers(3, 5)))


def test_an_approximate_index_stands_behind_the_same_question(tmp_path):
    pytest.importorskip("faiss")
    rows, queries = numbers(300, 12), numbers(5, 12, seed=1)
    store = filled(tmp_path, rows, dtype="float16")
    with pytest.raises(StoreError, match="no index to read"):
        store.top_k(queries, 3, approximate=True)
    store.build_index()
    want, got = store.top_k(queries, 10), store.top_k(queries, 10, approximate=True)
    same = (want.positions[:, :, None] == got.positions[:, None, :]).any(2)
    assert float(same.float().mean()) >= 0.9  # of 300 rows the search looks at 64 and more
    assert torch.allclose(got.values, store.dot(queries).T.gather(1, got.positions), atol=1e-5)
    assert store.top_k(queries, 300, approximate=True).positions.sort().values.equal(torch.arange(300).expand(5, -1))
    with store.writer() as w:
        w.append(rows[:1], ids=[5], metadata={"label": [0], "position": torch.zeros(1, 1)})
    with pytest.raises(StoreError, match="an index of other rows"):
        store.top_k(queries, 3, approximate=True)


@pytest.mark.parametrize("name", ["pyarrow", "faiss"])
def test_a_missing_extra_is_named(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    store = filled(tmp_path / "s", numbers(5, 3))
    with pytest.raises(StoreError, match=r"pip install 'gradfunc\[store\]'"):
        store.export(tmp_path / "x", "arrow") if name == "pyarrow" else store.build_index()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", ["numpy", "torch", "arrow"])
def test_exports_hold_the_same_values(format, dtype, tmp_path):
    rows = numbers(45, 5, dtype=getattr(torch, dtype))
    store = filled(tmp_path / "s", rows, dtype=dtype)
    store.export(tmp_path / "x", format)
    if format == "numpy":
        got = [np.load(tmp_path / "x" / f"{name}.npy") for name in ("rows", "ids", "metadata-label")]
    elif format == "torch":
        held = torch.load(tmp_path / "x", weights_only=True)
        assert held["rows"].equal(rows)
        got = [held["rows"].double().numpy(), held["ids"].numpy(), held["metadata"]["label"].numpy()]
    else:
        pa = pytest.importorskip("pyarrow")
        table = pa.ipc.open_file(tmp_path / "x").read_all()
        flat = table["row"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        got = [flat.reshape(45, 5), table["id"].to_numpy(), table["label"].to_numpy()]
        positions = table["position"].combine_chunks().flatten().to_numpy()
        assert np.array_equal(positions, np.arange(45))
    assert np.array_equal(got[0].astype(np.float64), rows.double().numpy())
    assert np.array_equal(got[1], np.arange(1000, 1045))
    assert np.array_equal(got[2], np.arange(45) % 3)
    with pytest.raises(StoreError, match="there already"):
        store.export(tmp_path / "x", format)


# --- as a whole ----------------------------------------------------------------------------------------


def test_compacting_joins_short_shards_and_keeps_rows(tmp_path):
    rows = numbers(97, 4)
    store = Store.create(tmp_path, size=4, dtype="float32", shard_bytes=10 * 16)
    with store.writer() as w:
        for part in rows.split([3, 4, 20, 1, 1, 1, 30, 9, 9, 9, 10]):
            w.append(part)
            w.flush()
    before = Store.open(tmp_path)
    assert store.compact() > 0
    sizes = [shard.rows for shard in store.manifest.shards]
    assert all(a == 10 or b == 10 for a, b in itertools.pairwise(sizes))
    for opened in (store, before, Store.open(tmp_path)):
        assert opened.rows().equal(rows)
        assert opened.ids.equal(torch.arange(97))
    assert store.verify().ok
    assert not store.verify().left
    assert store.compact() == 0


def test_parts_are_merged(tmp_path):
    rows = numbers(60, 4)
    parts = []
    for k in range(3):
        part = Store.create(tmp_path / f"part{k}", size=4, dtype="float32", shard_bytes=8 * 16)
        with part.writer() as w:
            w.append(rows[20 * k : 20 * k + 20], ids=range(20 * k, 20 * k + 20), metadata={"k": [k] * 20})
        parts.append(part)
    store = Store.create(tmp_path / "whole", size=4, dtype="float32", shard_bytes=8 * 16)
    assert store.merge([parts[0], tmp_path / "part1"]) == 40
    assert store.merge(parts[2:]) == 20
    assert store.rows().equal(rows)
    assert store.metadata["k"].equal(torch.arange(3).repeat_interleave(20))
    assert store.verify().ok
    with pytest.raises(StoreError, match="20 ids that occur twice"):
        store.merge(parts[:1])
    assert len(Store.open(tmp_path / "whole")) == 60


def other(**changed):
    model, _, _ = model_and_batch()
    options = {"projection": gf.projections.rademacher(8), "params": model.params, "dtype": "float32", **changed}

    def make(path):
        store = Store.create(path, **options)
        with store.writer() as w:
            w.append(numbers(2, options["projection"].size), ids=[500, 501])
        return store

    return make


def shifted():
    model, _, _ = model_and_batch()
    return {name: value + 1 for name, value in model.params.items()}


@pytest.mark.parametrize(
    "changed",
    [
        {"projection": gf.projections.rademacher(8, seed=1)},
        {"projection": gf.projections.gaussian(8)},
        {"projection": gf.projections.rademacher(9)},
        {"params": shifted()},
        {"params": {"w": torch.zeros(3)}},
        {"params": None},
        {"dtype": "float16"},
    ],
    ids=["seed", "kind", "size", "values", "parameters", "no model", "dtype"],
)
def test_what_cannot_be_compared_is_not_mixed(changed, tmp_path):
    store = other()(tmp_path / "a")
    part = other(**changed)(tmp_path / "b")
    with pytest.raises(StoreError, match=r"Only rows of one model|ids that occur twice"):
        store.merge([part])
    if "projection" in changed:
        with pytest.raises(StoreError, match="different projections"):
            Store.open(tmp_path / "a", projection=changed["projection"])
    if changed.get("params") is not None:
        with pytest.raises(StoreError, match=r"make another|SHA-256"):
            Store.open(tmp_path / "a", params=changed["params"])
    assert store.rows().equal(Store.open(tmp_path / "a").rows())


def test_gradients_of_another_model_are_not_appended(tmp_path):
    model, f, x = model_and_batch()
    wider = gf.stateless(gf.models.mlp([6, 9, 3]))
    g = gf.per_sample_grads(lambda p, x: wider.sample(p, x).sum())(wider.params, x)
    store = Store.create(tmp_path, projection=gf.projections.rademacher(8))
    with store.writer() as w:
        w.append(f(model.params, x))
        with pytest.raises(StoreError, match="A store holds one model's"):
            w.append(g, ids=range(50, 62))
    assert len(store) == 12
    with pytest.raises(StoreError, match="A store holds one model's"):
        store.dot(g)


def test_reading_goes_on_while_another_writes(tmp_path):
    """A reader in another thread, again and again, sees a beginning of the rows, never less than before."""
    rows = numbers(400, 6)
    store = Store.create(tmp_path, size=6, dtype="float32", shard_bytes=10 * 24)
    lengths, wrong, done = [], [], threading.Event()

    def read():
        while not done.is_set() or not lengths or lengths[-1] < 400:
            seen = Store.open(tmp_path)
            lengths.append(len(seen))
            if not seen.rows().equal(rows[: len(seen)]):
                wrong.append(len(seen))

    thread = threading.Thread(target=read)
    thread.start()
    with store.writer() as w:
        for part in rows.split(7):
            w.append(part)
    store.compact()
    done.set()
    thread.join()
    assert not wrong
    assert lengths == sorted(lengths)


# --- broken on purpose -------------------------------------------------------------------------------


def no_threshold(call, view, queries, count, k):
    """Only the first rows that fill k are looked at."""
    values, positions = [], []
    for at, rows in view.blocks():
        values.append(queries @ rows.T)
        positions.append(torch.arange(at.start, at.stop))
        if sum(map(len, positions)) >= k:
            break
    best = torch.cat(values, 1).topk(k)
    return _query.TopK(best.values, view.ids()[best.indices], best.indices)


def later_first(call, view, queries, count, k):
    found = torch.cat([queries @ rows.T for _, rows in view.blocks()], 1).flip(1)
    best = found.sort(dim=1, descending=True, stable=True)
    positions = found.shape[1] - 1 - best.indices[:, :k]
    return _query.TopK(best.values[:, :k], view.ids()[positions], positions)


ROWS = {
    "through half": lambda call, rows, dtype: rows.half().to(dtype),
    "towards zero": lambda call, rows, dtype: (rows.view(torch.int32) & -256).view(torch.float32).to(dtype),
    "minus zero": lambda call, rows, dtype: rows.to(dtype) + 0.0,
}


@pytest.mark.parametrize("mutant", ROWS)
def test_the_law_of_rows_catches_it(mutant, tmp_path, monkeypatch):
    monkeypatch.setattr(_taken, "stored", ROWS[mutant])
    with pytest.raises(AssertionError):
        test_rows_are_read_back_bit_by_bit("float32", tmp_path)


def test_the_law_of_rows_catches_other_rows(tmp_path, monkeypatch):
    real = _view.View.rows
    monkeypatch.setattr(_view.View, "rows", lambda self, at: real(self, at.flip(0)))
    with pytest.raises(AssertionError):
        test_rows_are_read_back_bit_by_bit("float32", tmp_path)


def test_the_law_of_resuming_catches_ids_that_begin_again(tmp_path, monkeypatch):
    monkeypatch.setattr(_taken, "read_ids", lambda call, ids, count, first, kind: torch.arange(count))
    with pytest.raises((AssertionError, ValueError)):
        test_a_later_writer_goes_on_exactly(tmp_path)


def test_the_laws_of_questions_catch_mutants(tmp_path, monkeypatch):
    monkeypatch.setattr(_view.View.blocks, "__defaults__", (0, None, 8))
    rows = numbers(75, 9)
    store = filled(tmp_path / "s", rows)
    check_questions(store, rows, numbers(4, 9, seed=1))
    ties = torch.zeros(40, 2)
    ties[[3, 9, 20, 33], 0] = 1.0
    tied = filled(tmp_path / "t", ties)
    check_ties(tied)
    with monkeypatch.context() as patch:
        patch.setattr(_query, "top_k", no_threshold)
        with pytest.raises(AssertionError):
            check_questions(store, rows, numbers(4, 9, seed=1))
    with monkeypatch.context() as patch:
        patch.setattr(_query, "top_k", later_first)
        with pytest.raises(AssertionError):
            check_ties(tied)
    with monkeypatch.context() as patch:
        rounded = _query.dot
        patch.setattr(_query, "dot", lambda view, queries, count: rounded(view, queries.half().float(), count))
        with pytest.raises(AssertionError):
            check_questions(store, rows, numbers(4, 9, seed=1))


def test_a_fingerprint_is_of_names_shapes_dtypes_and_values():
    params = {"a": torch.arange(4.0), "b": torch.zeros(2)}
    own = gf.store.fingerprint(params)
    assert own == gf.store.fingerprint({"b": torch.zeros(2), "a": torch.arange(4.0)})
    others = [
        {"a": torch.arange(4.0), "c": torch.zeros(2)},
        {"a": torch.arange(4.0).reshape(2, 2), "b": torch.zeros(2)},
        {"a": torch.arange(4.0), "b": torch.zeros(2, dtype=torch.int32)},  # the same bytes
        {"a": torch.arange(4.0), "b": torch.tensor([0.0, -0.0])},
        {"a": torch.arange(4.0)},
    ]
    assert own not in {gf.store.fingerprint(other) for other in others}
