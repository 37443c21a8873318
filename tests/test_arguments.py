"""What a batch may be made of: `gf.static`, `gf.ragged`; what a loss may return: auxiliary values, several losses."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from oracle import check_queries, close_rows, same_bits, storages, truth, truth_batched
from torch import nn
from torch.nn import functional as F

import gradfunc as gf

F64 = torch.float64
ENGINES = ["factored", "vmap", "loop"]
W = {"w": torch.linspace(-1, 1, 3, dtype=F64)}
Pair = namedtuple("Pair", "a b")


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


# --- gf.static -------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_static_is_the_same_for_every_sample(engine, chunk_size, device):
    params, x, table = {"w": W["w"].to(device)}, rows(4, 3).to(device), rows(5, 3, seed=1).to(device)

    def loss(p, x, table, *, options):
        assert table.shape == (5, 3)
        assert options["shift"].shape == (4, 3)  # not split, although it has B rows
        return ((table + options["shift"].sum(0)) @ (p["w"] * x)).square().sum()

    options = {"shift": rows(4, 3, seed=2).to(device), "name": "x"}
    f = gf.per_sample_grads(loss, engine=engine, chunk_size=chunk_size)
    g = f(params, x, gf.static(table), options=gf.static(options))
    check_queries(g, truth(lambda p, x: loss(p, x, table, options=options), params, 4, (x,)))


def test_static_beside_a_native_batch():
    x, table = rows(4, 3), rows(3)
    f = gf.per_sample_grads(lambda p, x, t: (p["w"] * x * t).sum(1), batched=True)
    check_queries(f(W, x, gf.static(table)), truth_batched(lambda p, x: (p["w"] * x * table).sum(1), W, (x,)))


def test_a_static_tensor_is_watched():
    table = rows(3)
    g = gf.per_sample_grads(lambda p, x, t: (p["w"] * x * t[0]).sum(), chunk_size=1)(W, rows(4, 3), gf.static([table]))
    g.norms()
    table.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        g.norms()


def test_static_alone_is_no_batch():
    with pytest.raises(ValueError, match="a batch without a tensor"):
        gf.per_sample_grads(lambda p, t: (p["w"] * t).sum())(W, gf.static(rows(3)))


# --- gf.ragged -------------------------------------------------------------------------------------

LENGTHS = [3, 5, 3, 1, 5, 3, 2]


def recurrent(p, x, y):
    h = torch.zeros(2, dtype=F64, device=x.device)
    for t in x:
        h = torch.tanh(p["w"] @ t + p["u"] @ h)
    return gf.Weighted((h - y).square().sum() * len(x), torch.tensor(float(len(x)), device=x.device))


def ragged_problem(device="cpu"):
    params = {"w": rows(2, 3).to(device), "u": rows(2, 2, seed=1).to(device)}
    return params, [rows(n, 3, seed=n).to(device) + i for i, n in enumerate(LENGTHS)], rows(7, 2, seed=9).to(device)


def ragged_truth(loss, params, *columns):
    """One autograd call a sample, rows taken from lists."""
    one = torch.zeros(1)
    size = len(columns[0])
    whole = [truth(lambda p, _, i=i: loss(p, *[c[i] for c in columns]), params, 1, (one,)) for i in range(size)]
    return type(whole[0])(
        {k: torch.cat([w.rows[k] for w in whole]) for k in params},
        torch.cat([w.losses for w in whole]),
        torch.cat([w.weights for w in whole]),
    )


def check_ragged(engine, chunk_size, device="cpu"):
    params, x, y = ragged_problem(device)
    g = gf.per_sample_grads(recurrent, engine=engine, chunk_size=chunk_size)(params, gf.ragged(x), y)
    check_queries(g, ragged_truth(recurrent, params, x, y))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("chunk_size", [2, "auto", *(pytest.param(n, marks=pytest.mark.slow) for n in (None, 1, 3))])
def test_ragged_samples_equal_plain_autograd(engine, chunk_size, device):
    check_ragged(engine, chunk_size, device)


@pytest.mark.parametrize("engine", ["factored", "vmap"])
def test_samples_of_one_shape_run_together(engine):
    params, x, y = ragged_problem()
    shapes = []

    def loss(p, x, y):
        shapes.append(x.shape)
        return recurrent(p, x, y)

    gf.per_sample_grads(loss, engine=engine, verify=False)(params, gf.ragged(x), y)
    assert sorted(tuple(s) for s in shapes) == [(1, 3), (2, 3), (3, 3), (5, 3)]
    shapes.clear()
    g = gf.per_sample_grads(loss, engine=engine, chunk_size=2)(params, gf.ragged(x), y)
    shapes.clear()
    g.norms()
    assert len(shapes) == 5  # 3 + 2 + 1 + 1 samples of four lengths, two at a time


def test_ragged_nests_with_what_is_no_tensor():
    samples = [
        {"pair": Pair(rows(n, 3, seed=n), rows(3, seed=n + 1)), "power": power, "none": None}
        for n, power in [(2, 1), (2, 2), (4, 1), (2, 1)]
    ]

    def loss(p, sample, *, scale):
        return ((p["w"] * sample["pair"].a).sum(0) ** sample["power"] * sample["pair"].b * scale).sum()

    scale = rows(4)
    g = gf.per_sample_grads(loss)(W, gf.ragged(samples), scale=scale)
    check_queries(g, ragged_truth(lambda p, s, c: loss(p, s, scale=c), W, samples, scale))


def test_two_ragged_arguments():
    a = [rows(n, 3, seed=n) for n in (1, 2, 1)]
    b = [rows(n, 3, seed=n) for n in (2, 2, 3)]

    def loss(p, a, b):
        return (p["w"] * a).square().sum() * (p["w"] * b).sum()

    check_queries(gf.per_sample_grads(loss)(W, gf.ragged(a), gf.ragged(b)), ragged_truth(loss, W, a, b))


def test_an_empty_ragged_batch():
    g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())(W, gf.ragged([]))
    assert g.batch_size == 0
    assert torch.equal(g.sum()["w"], torch.zeros(3, dtype=F64))


BAD_RAGGED = {
    "a tensor": (lambda: gf.ragged(torch.ones(3, 2)), TypeError, "got a? ?Tensor|a tensor"),
    "sizes": (
        lambda: gf.per_sample_grads(lambda p, x, y: x)(W, gf.ragged([rows(3)]), rows(2)),
        ValueError,
        r"arguments of \[1, 2\] samples",
    ),
    "beside a number": (
        lambda: gf.per_sample_grads(lambda p, x, y: x)(W, gf.ragged([rows(3)]), torch.tensor(1.0)),
        ValueError,
        r"args\[1\] without a dimension",
    ),
    "beside a native batch": (
        lambda: gf.per_sample_grads(lambda p, x: x, batched=True)(W, gf.ragged([rows(3)])),
        TypeError,
        "a ragged argument",
    ),
    "numpy inside": (
        lambda: gf.per_sample_grads(lambda p, x: x)(W, gf.ragged([rows(3).numpy()])),
        TypeError,
        "numpy array in a ragged sample",
    ),
}


@pytest.mark.parametrize("name", BAD_RAGGED)
def test_bad_ragged_batches_are_told_what_is_wrong(name):
    bad, error, text = BAD_RAGGED[name]
    with pytest.raises(error, match=text):
        bad()


# --- auxiliary values ------------------------------------------------------------------------------


def with_aux(p, x):
    out = p["w"] * x
    return out.square().sum(), {"out": out, "pair": Pair(out.sum(), (x, p["w"]))}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_auxiliary_values_have_the_samples_first(engine, chunk_size, device):
    params, x = {"w": W["w"].to(device)}, rows(5, 3).to(device)
    g = gf.per_sample_grads(with_aux, engine=engine, chunk_size=chunk_size, has_aux=True)(params, x)
    out = params["w"] * x
    shared = params["w"].expand(5, 3)
    assert same_bits([g.aux["out"], g.aux["pair"].a, *g.aux["pair"].b], [out, out.sum(1), x, shared])
    assert not any(t.requires_grad for t in (g.aux["out"], g.aux["pair"].a))
    assert not storages(list(g.aux["pair"].b)) & storages([x, params["w"]])
    check_queries(g, truth(lambda p, x: with_aux(p, x)[0], params, 5, (x,)))
    chosen = gf.concatenate([g.select([4, 1]), g])
    assert same_bits(chosen.aux["out"], torch.cat([out[[4, 1]], out]))
    g.aux["out"].zero_()
    assert same_bits(g.aux["out"], out)


def test_auxiliary_values_of_ragged_samples():
    f = gf.per_sample_grads(lambda p, x: ((p["w"] * x).sum(), x.sum()), has_aux=True)
    g = f(W, gf.ragged([rows(n, 3) for n in (2, 1, 2)]))
    assert same_bits(g.aux, torch.stack([rows(n, 3).sum() for n in (2, 1, 2)]))


def test_auxiliary_values_of_a_native_batch():
    x = rows(4, 3)
    f = gf.per_sample_grads(lambda p, x: ((p["w"] * x).sum(1), x * 2), batched=True, has_aux=True)
    g = f(W, x)
    assert same_bits(g.aux, x * 2)
    assert same_bits(g.select([3]).aux, x[3:] * 2)


def test_no_auxiliary_values():
    assert gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())(W, rows(2, 3)).aux is None


BAD_AUX = {
    "none returned": (lambda p, x: (p["w"] * x).sum(), {}, TypeError, r"expected \(loss, aux\)"),
    "Weighted alone": (lambda p, x: gf.Weighted((p["w"] * x).sum(), 1.0), {}, TypeError, r"\(loss, aux\)"),
    "a number": (lambda p, x: ((p["w"] * x).sum(), {"n": 3}), {}, TypeError, "int in aux.*nest of tensors"),
    "none": (lambda p, x: ((p["w"] * x).sum(), None), {}, TypeError, "None.* in aux"),
    "batched, a scalar": (
        lambda p, x: ((p["w"] * x).sum(1), x.sum()),
        {"batched": True},
        ValueError,
        r"auxiliary values of shape \(\) beside 2 losses",
    ),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", BAD_AUX)
def test_bad_auxiliary_values_are_told_what_is_wrong(name, engine):
    loss, options, error, text = BAD_AUX[name]
    with pytest.raises(error, match=text):
        gf.per_sample_grads(loss, engine=engine, has_aux=True, **options)(W, rows(2, 3))


@pytest.mark.parametrize("chunk_size", [None, 1])
@pytest.mark.parametrize("engine", ENGINES)
def test_auxiliary_values_of_other_shapes(engine, chunk_size):
    f = gf.per_sample_grads(lambda p, x: ((p["w"] * x).sum(), x), has_aux=True, engine=engine, chunk_size=chunk_size)
    with pytest.raises(ValueError, match=r"auxiliary values of shapes \[\(1, 3\), \(2, 3\)\]"):
        f(W, gf.ragged([rows(2, 3), rows(1, 3)]))


def test_auxiliary_values_that_do_not_stack():
    f = gf.per_sample_grads(lambda p, x: ((p["w"] * x).sum(), x[: 1 + int(x.sum() > 0)]), engine="loop", has_aux=True)
    with pytest.raises(ValueError, match="auxiliary values of shapes"):
        f(W, torch.tensor([[1.0, 1, 1], [-1, -1, -1]], dtype=F64))


# --- several losses of one input ---------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_rows_are_losses(engine, chunk_size, device):
    torch.manual_seed(0)
    model = gf.stateless(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5)).to(device, F64))
    x, y = rows(7, 3).to(device), rows(7, 5, seed=1).to(device)

    def tasks(p, x, y):
        out = model(p, x)
        return {"mse": F.mse_loss(out, y), "l1": F.l1_loss(out, y), "norm": gf.Weighted(out.square().sum(), 7.0)}

    g = gf.row_grads(tasks, engine=engine, chunk_size=chunk_size)(model.params, x, y)

    def vector(p, x, y):
        out = model(p, x)
        each = torch.stack([F.mse_loss(out, y), F.l1_loss(out, y), out.square().sum()])
        return gf.Weighted(each, torch.tensor([1.0, 1.0, 7.0], device=device))

    check_queries(g, truth_batched(vector, model.params, (x, y)))
    for other in (vector, lambda p, x, y: list(tasks(p, x, y).values())):
        close_rows(gf.row_grads(other)(model.params, x, y).materialize(), g.materialize())


def test_the_jacobian_as_rows():
    g = gf.row_grads(lambda p, x: x @ p["w"])({"w": torch.ones(3)}, torch.arange(6.0).reshape(2, 3))
    assert torch.equal(g.materialize()["w"], torch.arange(6.0).reshape(2, 3))


def test_one_forward_pass_serves_all_losses():
    calls = []

    def tasks(p, x):
        calls.append(1)
        return [(p["w"] * x).sum(), (p["w"] * x).square().sum(), p["w"].sum()]

    gf.row_grads(tasks, verify=False)(W, rows(3)).norms()
    assert len(calls) == 1


BAD_ROWS = {
    "no function": (lambda: gf.row_grads(3), TypeError, r"gf\.row_grads\(losses\): got an? int"),
    "nothing": (lambda: gf.row_grads(lambda p: [])(W), ValueError, r"gf\.row_grads\(losses\)\(.*: got no losses"),
    "a number": (lambda: gf.row_grads(lambda p: 3.0)(W), TypeError, "float from the loss"),
    "a matrix": (lambda: gf.row_grads(lambda p: p["w"].expand(2, 3))(W), ValueError, r"shape \(2, 3\)"),
    "vectors": (lambda: gf.row_grads(lambda p: [p["w"]])(W), ValueError, r"shape \(3,\)"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_told_what_is_wrong(name):
    bad, error, text = BAD_ROWS[name]
    with pytest.raises(error, match=text):
        bad()
