"""Factors on disk: what was appended is what is read, bit by bit, and what is asked is what the gradients say."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import safetensors.numpy
import torch
from forms import Factors, gradients, value_of
from tiers import quick
from torch import nn
from torch.func import functional_call, grad, vmap

import gradfunc as gf
from gradfunc import _factors
from gradfunc._factors import Dense, Grouped, Outer, Rows, Steps, Unfolded
from gradfunc._per_sample import factors_of
from gradfunc._rounding import unit_roundoff
from gradfunc._zoo import MODELS
from gradfunc.store import StoreError, _gradients, _kinds, _taken

Store = gf.store.GradientStore
CLOSE = 1e-12  # in float64, on the scale of the norms


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Words(nn.Module):
    """Tokens, a table that is the head too, a layer on every token and one on their mean."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(60, 12)
        self.each = nn.Linear(12, 12)
        self.norm = nn.LayerNorm(12)
        self.mean = nn.Linear(12, 12, bias=False)

    def forward(self, tokens):
        h = self.norm(self.table(tokens) + torch.tanh(self.each(self.table(tokens))))
        return (h + self.mean(h.mean(-2, keepdim=True))) @ self.table.weight.T


def words():
    torch.manual_seed(0)
    module = Words().double()
    model = gf.stateless(module)

    def loss(p, tokens):
        return gf.losses.cross_entropy(model.sample(p, tokens[:-1]), tokens[1:])

    batches = [torch.randint(60, shape, generator=torch.Generator().manual_seed(k)) for k, shape in enumerate(SIZES)]
    return model, gf.per_sample_grads(loss), batches


SIZES = [(4, 5), (3, 9), (2, 3), (5, 7)]  # samples, tokens: no two batches of one length


def truth(model, batches):
    """Rows by `vmap(grad)` of a plain function, one parameter behind the other, and weights."""
    module = Words().double()

    def loss(p, tokens):
        logits = functional_call(module, p, (tokens[:-1],), tie_weights=False)
        return nn.functional.cross_entropy(logits, tokens[1:], reduction="sum")

    rows = [vmap(grad(loss), (None, 0))(dict(model.params), tokens) for tokens in batches]
    flat = torch.cat([torch.cat([row[name].flatten(1) for name in model.params], 1) for row in rows])
    return flat, torch.cat([torch.full((len(tokens),), tokens.shape[1] - 1.0) for tokens in batches])


def filled(path, shard_bytes=6000, **options):
    model, f, batches = words()
    store = Store.create(path, params=model.params, factored=True, shard_bytes=shard_bytes, **options)
    with store.writer(model.params) as w:
        for k, tokens in enumerate(batches):
            w.append(
                f(model.params, tokens),
                ids=[f"text {k}.{i}" for i in range(len(tokens))],
                metadata={"k": [k] * len(tokens)},
            )
    return store


# --- questions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", quick([2**26], [1, 2**26]))
def test_questions_are_those_of_the_gradients(held, tmp_path, monkeypatch):
    """Batches of other lengths, a table that is the head too; read row by row, and a shard at once."""
    monkeypatch.setattr(_gradients, "_HELD", held)
    check_questions(tmp_path)


def check_questions(path):
    store = filled(path)
    assert len(store.manifest.shards) > 2
    model, f, batches = words()
    rows, weights = truth(model, batches)
    scale = rows.norm(dim=1)
    square, both = rows @ rows.T, scale.outer(scale)
    g = store.gradients()
    assert bool(((store.rows() - rows).norm(dim=1) <= CLOSE * scale).all())
    assert bool(((g.norms() - scale).abs() <= CLOSE * scale).all())
    assert g.weights.equal(weights.double())
    assert torch.allclose(g.losses.sum() / weights.sum(), g.mean_loss, rtol=CLOSE)
    for found in (store.gram(), g.gram(), store.dot(rows), store.dot(g), store.dot(f(model.params, batches[1]))):
        want = square if found.shape[1] == len(rows) else square[:, 4:7]
        assert bool(((found - want).abs() <= CLOSE * (both if found.shape == both.shape else both[:, 4:7])).all())
    out = torch.zeros_like(square)
    for i, j, block in store.gram_blocks(size=3):
        out[i, j] = block
        assert j.start >= i.start
    assert bool(((out - square.triu() - out.tril(-1)).abs() <= CLOSE * both).all())
    c = normal(len(rows), seed=3)
    for summed, wanted in (
        (g.sum(), rows.sum(0)),
        (g.weighted_sum(c), c @ rows),
        (g.mean(), rows.sum(0) / weights.sum()),
    ):
        flat = torch.cat([summed[name].flatten() for name in model.params])
        assert float((flat - wanted).norm()) <= CLOSE * float(scale.sum())
    best = square[:, [5, 0]].topk(6, dim=0)
    for queries in (g.select([5, 0]), rows[[5, 0]]):
        found = store.top_k(queries, 6)
        assert found.positions.equal(best.indices.T)
        assert found.ids.tolist() == store.ids[found.positions.numpy()].tolist()
    projection = gf.projections.two_sided((3, 3))
    fresh = torch.cat([f(model.params, tokens).project(projection) for tokens in batches])
    assert torch.allclose(g.project(projection), fresh, rtol=0, atol=CLOSE * float(fresh.norm(dim=1).max()))
    assert torch.cat([block.clone() for _, block in store.blocks(4)]).equal(store.rows())
    for at in ([5, 2, -1, 2], slice(3, 12, 4), []):
        where = torch.arange(len(rows))[at]
        assert store.rows(at).equal(store.rows()[where])
        assert torch.allclose(store.gradients(at).norms(), scale[where], rtol=CLOSE)
        assert store.gradients(at).weights.equal(weights[where].double())


def test_a_stored_value_goes_where_gradients_go(tmp_path):
    """Clipped, reduced, joined with fresh ones, asked for research quantities."""
    store = filled(tmp_path)
    model, f, batches = words()
    rows, _ = truth(model, batches)
    g, fresh = store.gradients(), [f(model.params, tokens) for tokens in batches]
    clip = gf.clip_per_sample(1.0) >> gf.mean()
    clipped, _ = clip.update(g, clip.init(model.params))
    again, _ = clip.update(gf.concatenate(fresh), clip.init(model.params))
    assert all(torch.allclose(clipped[name], again[name], rtol=0, atol=CLOSE) for name in again)
    whole = gf.concatenate([g, fresh[0]])
    assert torch.allclose(whole.norms(), torch.cat([rows, rows[:4]]).norm(dim=1), rtol=CLOSE)
    cosine = gf.quantities.cosine_similarity(g, fresh[1])
    unit = rows / rows.norm(dim=1, keepdim=True)
    assert torch.allclose(cosine, unit @ unit[4:7].T, rtol=0, atol=1e-10)
    assert g.unused == ()
    assert "store" in g.explain()


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize(
    "name", quick(["tied embedding and head", "experts of bounded capacity by bmm", "LSTM"], MODELS)
)
def test_every_model_of_the_zoo(name, tmp_path):
    model, g = of_zoo(name)
    store = Store.create(tmp_path, params=model.params, factored=True, shard_bytes=2000)
    with store.writer() as w:
        w.append(g.select(slice(0, 1)), ids=["é"])
        w.append(g.select(slice(1, g.batch_size)), ids=[f"s{k}" for k in range(1, g.batch_size)])
    assert store.compact() >= 0
    rows = torch.cat([row.reshape(g.batch_size, row[0].numel()) for row in g.materialize().values()], 1)
    norms = rows.norm(dim=1)
    size, both = float(norms.max()), norms.outer(norms)
    assert float((store.rows() - rows).norm(dim=1).max()) <= CLOSE * size
    for found in (store.dot(g), store.gram(), store.dot(rows), store.gradients().gram()):
        assert bool(((found - rows @ rows.T).abs() <= CLOSE * both.clamp(min=CLOSE * size**2)).all())
    assert store.verify().ok


def of_zoo(name):
    known = MODELS[name]
    torch.manual_seed(0)
    module = known.module().double()
    batch = [value.double() if value.is_floating_point() else value for value in known.batch()]
    criterion = known.criterion
    if isinstance(criterion, functools.partial):
        criterion = functools.partial(criterion, weight=criterion.keywords["weight"].double())
    model = gf.stateless(module, in_dims=known.in_dims, out_dims=known.out_dims)

    def losses(p, *args):
        *inputs, target = args
        found = criterion(model(p, *inputs), target, reduction="none")
        return found.flatten(1).sum(1) if found.dim() > 1 else found

    return model, gf.per_sample_grads(losses, batched=True)(model.params, *batch)


def test_no_query_forms_rows(tmp_path):
    """Of 40 rows of 90,000 numbers no query makes a tensor of one row, beside queries that are rows themselves."""
    check_no_rows(tmp_path)


def check_no_rows(path):
    n, wide = 40, 300
    x, g = normal(n, 2, wide, dtype=torch.float32), normal(n, 2, wide, seed=1, dtype=torch.float32)
    value = value_of({"w": Outer(x, g, (wide, wide))}, torch.zeros(n), torch.ones(n))
    store = Store.create(path, params={"w": torch.zeros(wide, wide)}, factored=True)
    with store.writer() as w:
        w.append(value)
    made = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            every = out if isinstance(out, (tuple, list)) else [out]
            made.extend(t.untyped_storage().nbytes() for t in every if torch.is_tensor(t) and t.is_floating_point())
            return out

    with Watch():
        store.top_k(value.select([3, 4]), 5)
        store.dot(value.select([3]))
        store.gram()
        store.gradients().norms()
    whole = sum(shard.bytes for shard in store.manifest.shards)
    assert whole < n * wide * wide * 4 / 50
    assert max(made) <= whole < wide * wide * 4 * 2


# --- on disk -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_factors_are_read_back_bit_by_bit(dtype, tmp_path):
    check_bits(tmp_path, getattr(torch, dtype))


def check_bits(path, dtype):
    ids = torch.arange(17) * 3 % 20
    params = {
        name: torch.zeros(shape, dtype=dtype) for name, shape in {"w": (6, 10), "table": (40, 4), "bias": (3,)}.items()
    }
    store = Store.create(path, params=params, factored=True, shard_bytes=600)
    assert store.manifest.dtype == str(dtype).removeprefix("torch.")
    parts = [gradients(ids[:4], 2, dtype), gradients(ids[4:5], 1, dtype), gradients(ids[5:], 3, dtype)]
    with store.writer() as w:
        for part in parts:
            w.append(part)
    assert len(store.manifest.shards) > 3
    for opened in (store, Store.open(path)):
        start = 0
        for part in parts:
            at = range(start, start + part.batch_size)
            ((_, want),) = factors_of(part, "test")
            got = _gradients.gradients(opened._view.part(torch.tensor(at)), opened.manifest)
            for name, gradient in want.items():
                for a, b in zip(gradient.factors, got[name].factors, strict=True):
                    assert a.kind == b.kind
                    for mine, theirs in zip(a.tensors, b.tensors, strict=True):
                        assert mine.dtype == theirs.dtype
                        assert mine.contiguous().view(torch.uint8).equal(theirs.contiguous().view(torch.uint8))
            start += part.batch_size
    assert store.gradients().losses.equal(ids.double() / 2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_halves_that_are_rounded_stay_within_the_bound(dtype, tmp_path):
    """(2 u + u^2) |x| |g|, and the halves themselves once, to nearest."""
    x, g = normal(9, 3, 20), normal(9, 3, 15, seed=1)
    value = value_of({"w": Outer(x, g, (15, 20))}, torch.zeros(9), torch.ones(9), torch.float64)
    store = Store.create(tmp_path, params={"w": torch.zeros(15, 20).double()}, factored=True, dtype=dtype)
    with store.writer() as w:
        w.append(value)
    u = unit_roundoff(getattr(torch, dtype))
    off = (store.rows().double() - (g.mT @ x).flatten(1)).norm(dim=1)
    wide = max(unit_roundoff(torch.float32), u)  # products of halves are taken in float32 at least
    bound = (2 * u + u**2 + 4 * wide) * x.flatten(1).norm(dim=1) * g.flatten(1).norm(dim=1)
    assert bool((off <= bound).all())
    kept = store._view.part(torch.arange(9)).ragged["factors/w/outer-20-15"].tensors
    assert kept["x"].equal(x.flatten(0, 1).to(getattr(torch, dtype)))
    assert kept["g"].equal(g.flatten(0, 1).to(getattr(torch, dtype)))


def kinds():
    """A factor of every kind, of 5 samples, in float64."""
    steps = Steps((4, 3, 3, 3), (2, 1), (1, 0), (1, 2))
    conv = nn.functional.conv2d(normal(1, 3, 8, 9), normal(4, 3, 3, 3), None, (2, 1), (1, 0), (1, 2))
    turned = Steps((3, 2, 3), (2,), (1,), (1,), 1, True)
    back = nn.functional.conv_transpose1d(normal(1, 3, 6), normal(3, 2, 3), None, 2, 1)
    index = torch.arange(20).reshape(5, 4) % 6
    return {
        "dense": Dense(normal(5, 2, 3)),
        "scalar": Dense(normal(5)),
        "outer": Outer(normal(5, 2, 8), normal(5, 2, 7, seed=1), (7, 8)),
        "rows": Rows(index, normal(5, 4, 3), (30, 3)),
        "grouped": Grouped(index % 3, normal(5, 4, 8), normal(5, 4, 7, seed=1), (3, 7, 8)),
        "unfolded": Unfolded(normal(5, 1, 3, 8, 9), normal(5, 1, *conv.shape[1:], seed=1), (4, 3, 3, 3), steps),
        "transposed": Unfolded(normal(5, 2, 3, 6), normal(5, 2, *back.shape[1:], seed=1), (3, 2, 3), turned),
    }


def of_kinds(path, monkeypatch):
    factors = kinds()
    monkeypatch.setattr(_taken, "_smaller", lambda gradient, itemsize: gradient)
    params = {name: torch.zeros(factor.shape).double() for name, factor in factors.items()}
    store = Store.create(path, params=params, factored=True)
    with store.writer() as w:
        w.append(value_of(factors, torch.zeros(5), torch.ones(5), torch.float64), ids=list("abcde"))
        w.append(
            value_of(
                {k: f.select(torch.tensor([4, 0])) for k, f in factors.items()},
                torch.zeros(2),
                torch.ones(2),
                torch.float64,
            ),
            ids=["ü", "g"],
        )
    return store, {name: factor.dense() for name, factor in factors.items()}


def test_factors_are_read_without_gradfunc(tmp_path, monkeypatch):
    """By safetensors, json and what the manifest says of each kind: every row is the factor's."""
    _, rows = of_kinds(tmp_path, monkeypatch)
    check_read(tmp_path, rows)


def check_read(path, rows):
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["version"], manifest["ids"], manifest["projection"]) == (2, "strings", {"kind": "factored"})
    assert {"outer", "dense", "grouped", "unfolded", "rows of a table"} <= set(manifest["reading"])
    held = safetensors.numpy.load((path / manifest["shards"][0]["file"]).read_bytes())
    ends = held["ids/lengths"].cumsum()
    names = [
        held["ids/utf8"][end - length : end].tobytes().decode()
        for end, length in zip(ends, held["ids/lengths"], strict=True)
    ]
    assert names == ["a", "b", "c", "d", "e", "ü", "g"]
    for name, factors in manifest["factors"].items():
        shape = manifest["parameters"][name][0]
        ((key, facts),) = factors.items()
        column = {half: held[f"factors/{name}/{key}/{half}"] for half in facts["tensors"]}
        lengths = held[f"factors/{name}/{key}/lengths"]
        for half, told in facts["tensors"].items():
            assert [str(column[half].dtype), list(column[half].shape[1:])] == told
        for k, whose in enumerate([0, 1, 2, 3, 4, 4, 0]):
            own = slice(lengths[:k].sum(), lengths[: k + 1].sum())
            parts = [{half: column[half][t] for half in column} for t in range(own.start, own.stop)]
            row = sum(entry(facts, shape, **halves) for halves in parts)
            assert np.allclose(row, rows[name][whose].numpy(), rtol=0, atol=1e-12), name


def entry(facts, shape, *, values=None, index=None, x=None, g=None):
    """What an entry gives, as `reading` has it, in numpy; a convolution by torch."""
    out = np.zeros(shape)
    if facts["kind"] == "dense":
        return values
    if facts["kind"] == "outer":
        return np.outer(g, x).reshape(shape)
    if facts["kind"] == "rows":
        out.reshape(-1, len(g))[index] = g
        return out
    if facts["kind"] == "grouped":
        out.reshape(-1, len(g), len(x))[index] = np.outer(g, x)
        return out
    laid = {name: tuple(v) if isinstance(v, list) else v for name, v in facts["steps"].items()}
    weight = torch.zeros(laid.pop("weight"), dtype=torch.float64, requires_grad=True)
    turned = laid.pop("transposed")
    convolve = getattr(nn.functional, f"conv{'_transpose' if turned else ''}{len(laid['stride'])}d")
    made = convolve(torch.from_numpy(x)[None], weight, **laid)
    return torch.autograd.grad(made, weight, torch.from_numpy(g)[None])[0].reshape(shape).numpy()


@pytest.mark.parametrize("format", ["numpy", "torch", "arrow"])
def test_exports_hold_the_same_factors(format, tmp_path, monkeypatch):
    store, rows = of_kinds(tmp_path / "s", monkeypatch)
    store.export(tmp_path / "x", format)
    check_export(tmp_path / "x", format, rows)


def check_export(path, format, rows):
    order = [0, 1, 2, 3, 4, 4, 0]
    if format == "arrow":
        pa = pytest.importorskip("pyarrow")
        table = pa.ipc.open_file(path).read_all()
        ids, weights = table["id"].to_pylist(), table["weights"].to_pylist()
        told = json.loads(table.schema.metadata[b"factors"])
        found = [
            {
                "parameter": name,
                **facts,
                **{half: table[f"factors/{name}/{key}/{half}"].to_pylist() for half in facts["tensors"]},
            }
            for name, own in told.items()
            for key, facts in own.items()
        ]
        entries = {
            one["parameter"]: [
                [
                    {half: one[half][k][t] for half in one["tensors"]}
                    for t in range(len(one[next(iter(one["tensors"]))][k]))
                ]
                for k in range(7)
            ]
            for one in found
        }
    else:
        if format == "numpy":
            ids, weights = np.load(path / "ids.npy").tolist(), np.load(path / "weights.npy").tolist()
            found = json.loads((path / "factors.json").read_text())["factors"]
            for one in found:
                one.update({half: np.load(path / file) for half, file in one["files"].items()})
        else:
            held = torch.load(path, weights_only=True)
            ids, weights, found = held["ids"], held["weights"].tolist(), held["factors"]
            found = [{k: v.numpy() if torch.is_tensor(v) else v for k, v in one.items()} for one in found]
        entries = {}
        for one in found:
            ends = np.concatenate([[0], np.cumsum(one["lengths"])])
            own = [range(ends[k], ends[k + 1]) for k in range(7)]
            entries[one["parameter"]] = [
                [{half: one[half][t] for half in one["tensors"]} for t in span] for span in own
            ]
    assert ids == ["a", "b", "c", "d", "e", "ü", "g"]
    assert weights == [1.0] * 7
    assert len(found) == len(rows)
    for one in found:
        for k, whose in enumerate(order):
            want = rows[one["parameter"]][whose]
            row = sum(
                entry(
                    one, want.shape, **{half: np.asarray(v).reshape(one["tensors"][half][1]) for half, v in own.items()}
                )
                for own in entries[one["parameter"]][k]
            )
            assert np.allclose(row, want.numpy(), rtol=0, atol=1e-12)


def test_rows_are_kept_where_they_are_smaller(tmp_path):
    """Of a long sequence the rows, of a short one the factors; a parameter may have both, and neither costs more."""
    params = {"w": torch.zeros(8, 8, dtype=torch.float64)}
    store = Store.create(tmp_path, params=params, factored=True)
    values = [
        value_of(
            {
                "w": Outer(
                    normal(3, t, 8, seed=t),
                    normal(3, t, 8, seed=t + 1),
                    (8, 8),
                )
            },
            torch.zeros(3),
            torch.ones(3),
            torch.float64,
        )
        for t in (1, 20)
    ]
    with store.writer() as w:
        for value in values:
            w.append(value)
    assert set(store.manifest.factors["w"]) == {"outer-8-8", "dense"}
    part = store._view.part(torch.arange(6))
    assert part.ragged["factors/w/outer-8-8"].lengths.tolist() == [1, 1, 1, 0, 0, 0]
    assert part.ragged["factors/w/dense"].lengths.tolist() == [0, 0, 0, 1, 1, 1]
    rows = torch.cat([value.materialize()["w"].flatten(1) for value in values])
    norms = torch.linalg.vector_norm(rows, dim=1)
    scale = CLOSE * norms[:, None] * norms
    assert ((store.rows() - rows).abs() <= CLOSE * norms[:, None]).all()
    assert ((store.gram() - rows @ rows.T).abs() <= scale).all()
    assert ((store.dot(values[0]) - rows @ rows[:3].T).abs() <= scale[:, :3]).all()


def test_what_other_engines_give_and_functions_of_entries_are_kept_whole(tmp_path):
    model, f, batches = words()
    store = Store.create(tmp_path, params=model.params, factored=True)
    g = gf.per_sample_grads(f.loss, engine="vmap")(model.params, batches[0])
    clip = gf.clip_value_per_sample(0.01)
    clipped, _ = clip.update(f(model.params, batches[0]), clip.init(model.params))
    scaled = f(model.params, batches[0]).scaled(torch.tensor([2.0, 0.0, -1.0, 1.0]).double())
    with store.writer() as w:
        w.append(g)
        w.append(clipped)
        w.append(scaled)
    rows, _ = truth(model, batches[:1])
    size = float(rows.norm(dim=1).max())
    want = torch.cat([rows, rows.clamp(-0.01, 0.01), rows * torch.tensor([[2.0], [0.0], [-1.0], [1.0]])])
    assert float((store.rows() - want).abs().max()) <= CLOSE * size
    assert set(store.manifest.factors["mean.weight"]) == {"dense", "outer-12-12"}


def test_merging_and_compacting_keep_factors(tmp_path):
    """Parts whose parameters were kept as other kinds, in other orders."""
    form = Factors()
    stores = [form.create(tmp_path / name) for name in "abc"]
    for k, store in enumerate(stores):
        with store.writer() as w:
            for start in range(20 * k, 20 * k + 20, 5):
                ids = torch.arange(start, start + 5)
                w.append(gradients(ids, 1 + k), ids=form.names(ids))
                w.flush()
    dense = form.create(tmp_path / "d")
    ids = torch.arange(60, 64)
    g = gradients(ids, 2)
    with dense.writer() as w:
        rows = {name: Dense(value) for name, value in g.materialize().items()}
        w.append(value_of(rows, g.losses, g.weights), ids=form.names(ids))
    whole = form.create(tmp_path / "whole")
    assert whole.merge(stores) == 60
    form.check(whole, torch.arange(60))
    files = len(whole.manifest.shards)
    assert whole.compact() > 0
    assert len(whole.manifest.shards) < files
    assert whole.compact() == 0
    form.check(whole, torch.arange(60))
    assert whole.merge([dense]) == 4
    assert whole.verify().ok
    assert whole.rows(range(60, 64)).equal(torch.cat([v.flatten(1) for v in g.materialize().values()], 1))
    with pytest.raises(StoreError, match="20 ids that occur twice"):
        whole.merge(stores[1:2])
    other = Store.create(
        tmp_path / "full",
        params={k: torch.zeros(v) for k, v in {"w": (6, 10), "table": (40, 4), "bias": (3,)}.items()},
        dtype="float32",
    )
    with other.writer() as w:
        w.append(g, ids=["x", "y", "z", "ä"])
    with pytest.raises(StoreError, match="projection"):
        whole.merge([other])
    with pytest.raises(StoreError, match="projection"):
        whole.gram(other)
    assert len(Store.open(tmp_path / "whole")) == 64


def test_building_factors_resumes(tmp_path):
    torch.manual_seed(0)
    module, criterion = nn.Sequential(nn.Linear(16, 13), nn.Dropout(0.5), nn.Linear(13, 3)), nn.CrossEntropyLoss()
    batch = normal(30, 16, dtype=torch.float32), torch.arange(30) % 3
    names = [f"image {k}" for k in range(30)]
    options = {"factored": True, "ids": names}
    whole = gf.store.build(tmp_path / "a", module, criterion, batch, at_once=8, **options)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gf.store.build(tmp_path / "b", module, criterion, batch, at_once=7, progress=stop, **options)
    assert len(Store.open(tmp_path / "b")) == 7
    store = gf.store.build(tmp_path / "b", module, criterion, batch, at_once=11, **options)
    assert store.ids.tolist() == names
    assert torch.allclose(store.rows(), whole.rows(), rtol=0, atol=1e-6)
    assert sum(shard.bytes for shard in store.manifest.shards) < store.rows().numel() * 4 / 2
    with pytest.raises(StoreError, match="one kind of gradients"):
        gf.store.build(tmp_path / "b", module, criterion, batch, ids=names)
    with pytest.raises(ValueError, match="an id twice"):
        gf.store.build(tmp_path / "c", module, criterion, batch, ids=["x"] * 30)


# --- refused -----------------------------------------------------------------------------------------


def refusals():
    yield (
        "rows",
        TypeError,
        "expected per-sample gradients",
        lambda s, f, p, x: append(s, torch.zeros(2, s.manifest.size)),
    )
    yield "query width", ValueError, r"\[q, ", lambda s, f, p, x: s.dot(torch.zeros(2, 3))
    yield "query NaN", ValueError, "NaN", lambda s, f, p, x: s.dot(torch.full((1, s.manifest.size), torch.nan))
    yield "gradient NaN", ValueError, "NaN", lambda s, f, p, x: s.dot(f(nan(p), x))
    yield "append NaN", ValueError, "row 0 with NaN", lambda s, f, p, x: append(s, f(nan(p), x))
    yield "index", StoreError, "rows, which an index copies", lambda s, f, p, x: s.build_index()
    yield (
        "approximate",
        StoreError,
        "rows, which an index copies",
        lambda s, f, p, x: s.top_k(f(p, x), 1, approximate=True),
    )
    yield (
        "projection",
        StoreError,
        "different projections",
        lambda s, f, p, x: Store.open(s.path, projection=gf.projections.gaussian(4)),
    )
    yield "model", StoreError, "one model's", lambda s, f, p, x: append(s, other())
    yield "query of another", StoreError, "one model's", lambda s, f, p, x: s.top_k(other(), 1)


def append(store, g):
    with store.writer() as w:
        w.append(
            g,
            ids=[f"new {k}" for k in range(len(g) if torch.is_tensor(g) else g.batch_size)],
            metadata={"k": [0] * (len(g) if torch.is_tensor(g) else g.batch_size)},
        )


def nan(params):
    return {name: value * torch.nan for name, value in params.items()}


def other():
    return gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())({"w": torch.ones(2)}, torch.ones(3, 2))


@pytest.mark.parametrize(("error", "says", "attempt"), [pytest.param(*a[1:], id=a[0]) for a in refusals()])
def test_what_makes_no_sense_is_refused(error, says, attempt, tmp_path):
    store = filled(tmp_path)
    model, f, batches = words()
    before = store.manifest
    with pytest.raises(error, match=says):
        attempt(store, f, model.params, batches[0])
    assert Store.open(tmp_path).manifest == before


def test_kinds_of_stores_are_not_mixed(tmp_path):
    params = {"w": torch.zeros(3)}
    for options, says in [
        ({"params": params, "projection": gf.projections.gaussian(4)}, "no projection"),
        ({"size": 3}, "expected params"),
    ]:
        with pytest.raises(ValueError, match=says):
            Store.create(tmp_path / "x", factored=True, **options)
    with pytest.raises(TypeError, match="a bool"):
        Store.create(tmp_path / "x", factored="yes", params=params)
    assert not (tmp_path / "x").exists()
    full = Store.create(tmp_path / "full", params=params)
    with pytest.raises(StoreError, match="factored=True"):
        full.gradients()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_halves_too_small_for_a_type_are_refused(dtype, tmp_path):
    store = Store.create(tmp_path, params={"w": torch.zeros(9, 9)}, factored=True, dtype=dtype)
    value = value_of(
        {"w": Outer(normal(2, 1, 9, dtype=torch.float32), normal(2, 1, 9, dtype=torch.float32) * 1e-8, (9, 9))},
        torch.zeros(2),
        torch.ones(2),
    )
    with store.writer() as w:
        if dtype == "float32":
            w.append(value)
        else:
            with pytest.raises(ValueError, match="beyond what float16 holds"):
                w.append(value)


def test_empty_stores_and_empty_appends(tmp_path):
    store = Factors().create(tmp_path / "s")
    assert store.rows().shape == (0, store.manifest.size)
    assert store.gradients().norms().shape == (0,)
    with store.writer() as w:
        assert w.append(gradients(torch.arange(0), 1), ids=[]) == 0
    for format in ("numpy", "torch", "arrow"):
        store.export(tmp_path / format, format)


# --- broken on purpose -------------------------------------------------------------------------------


def padded_with_last(values, lengths, length):
    out = values.new_zeros(len(lengths), length, *values.shape[1:])
    ends = lengths.cumsum(0)
    for k, (end, own) in enumerate(zip(ends.tolist(), lengths.tolist(), strict=True)):
        out[k] = values[[min(end - own + t, len(values) - 1) for t in range(length)]] if own else 0
    return out


def test_the_law_of_questions_catches_padding_that_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(_kinds, "_padded", padded_with_last)
    with pytest.raises(AssertionError):
        check_questions(tmp_path)


def test_the_law_of_questions_catches_a_lost_use(tmp_path, monkeypatch):
    real = _gradients.gradients

    def first(part, manifest):
        return {name: _factors.Gradient(g.like, g.size, g.factors[:1]) for name, g in real(part, manifest).items()}

    monkeypatch.setattr(_gradients, "gradients", first)
    with pytest.raises(AssertionError):
        check_questions(tmp_path)


def test_the_law_of_questions_catches_stretches_that_are_skipped(tmp_path, monkeypatch):
    def skipping(view, most=512, start=0):
        return (at for at in real(view, most) if at.start // 4 >= -(-start // 4))

    real = _gradients.stretches
    monkeypatch.setattr(_gradients, "_HELD", 1)
    monkeypatch.setattr(_gradients, "stretches", skipping)
    with pytest.raises(AssertionError):
        check_questions(tmp_path)


def test_the_law_of_questions_catches_weights_that_are_ones(tmp_path, monkeypatch):
    real = _gradients.from_source
    monkeypatch.setattr(
        _gradients, "from_source", lambda a, b, c, weights, e: real(a, b, c, torch.ones_like(weights), e)
    )
    with pytest.raises(AssertionError):
        check_questions(tmp_path)


KEPT = {
    "through bfloat16": lambda real: (
        lambda call, value, dtype, at: real(
            call, value.bfloat16().to(value.dtype) if value.is_floating_point() else value, dtype, at
        )
    ),
    "position behind sample": lambda real: (
        lambda call, value, dtype, at: real(call, value.transpose(0, 1), dtype, torch.arange(value.shape[1]))
    ),
    "minus zero": lambda real: lambda call, value, dtype, at: real(call, value.abs() * -1, dtype, at),
}


@pytest.mark.parametrize("mutant", KEPT)
def test_the_law_of_bits_catches_it(mutant, tmp_path, monkeypatch):
    monkeypatch.setattr(_taken, "_kept", KEPT[mutant](_taken._kept))
    with pytest.raises(AssertionError):
        check_bits(tmp_path, torch.float64)


def test_the_law_of_no_rows_catches_rows(tmp_path, monkeypatch):
    def by_rows(left, right, dtype):
        return _gradients.formed(left, dtype) @ _gradients.formed(right, dtype).T

    monkeypatch.setattr(_gradients, "inner", by_rows)
    with pytest.raises(AssertionError):
        check_no_rows(tmp_path)


def test_the_law_of_reading_catches_halves_that_change_places(tmp_path, monkeypatch):
    monkeypatch.setitem(_kinds._TENSORS, "outer", ("g", "x"))
    _, rows = of_kinds(tmp_path, monkeypatch)
    with pytest.raises(AssertionError):
        check_read(tmp_path, rows)
