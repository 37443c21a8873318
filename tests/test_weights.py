"""`Weighted`, what a loss may return, and the accumulator."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from oracle import same_bits, storages

import gradfunc as gf

PARAMS = {"w": torch.tensor([1.0, -2.0])}
X = torch.arange(8.0).reshape(4, 2)
ENGINES = ["factored", "vmap", "loop"]


def plain(p, x):
    return (p["w"] * x).sum()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("weight", [3, 3.0, True, torch.tensor(3), torch.tensor(3.0, dtype=torch.float64)])
def test_a_weight_is_a_number_or_a_tensor(engine, weight):
    g = gf.per_sample_grads(lambda p, x: gf.Weighted(plain(p, x), weight), engine=engine)(PARAMS, X)
    assert g.weights.tolist() == [float(weight)] * 4
    assert torch.equal(g.mean()["w"], X.sum(0) / (4 * float(weight)))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_plain_scalar_has_weight_one(engine):
    g = gf.per_sample_grads(plain, engine=engine)(PARAMS, X)
    assert g.weights.tolist() == [1.0] * 4
    assert torch.equal(g.mean_loss, g.losses.mean())


@pytest.mark.parametrize("engine", ENGINES)
def test_no_gradient_flows_through_the_weight(engine):
    # The gradient is that of the numerator alone, even if the weight was made from the parameters.
    f = gf.per_sample_grads(lambda p, x: gf.Weighted(plain(p, x), p["w"].square().sum()), engine=engine)
    g = f(PARAMS, X)
    assert torch.equal(g.materialize()["w"], X)
    assert g.weights.tolist() == [5.0] * 4
    assert not g.weights.requires_grad


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("chunk_size", [None, 1])
@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_a_bad_weight_names_the_sample(engine, chunk_size, bad):
    weights = torch.tensor([1.0, 1.0, bad, 1.0])
    f = gf.per_sample_grads(lambda p, x, w: gf.Weighted(plain(p, x), w), engine=engine, chunk_size=chunk_size)
    with pytest.raises(ValueError, match=r"weight (-1\.0|nan|inf) for sample 2; expected finite weights >= 0"):
        f(PARAMS, X, weights)


def test_an_accumulator_is_a_value():
    f = gf.per_sample_grads(plain)
    empty = gf.Accumulator.init(PARAMS)
    one = empty.add(f(PARAMS, X[:1]))
    two = one.add(f(PARAMS, X[1:]))
    assert not empty.sum()["w"].any()
    assert torch.equal(one.sum()["w"], X[0])
    assert torch.equal(two.sum()["w"], X.sum(0))
    assert (float(empty.weight), float(one.weight), float(two.weight)) == (0, 1, 4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        two.weight = torch.zeros(())


def test_an_accumulators_results_share_nothing_with_it():
    acc = gf.Accumulator.init(PARAMS).add(gf.per_sample_grads(plain)(PARAMS, X))
    first = acc.sum(), acc.mean()
    held = storages([acc.totals, PARAMS, X])
    assert not storages(first[0]) & (held | storages(first[1]))
    assert not storages(first[1]) & held
    kept = {name: value.clone() for name, value in acc.sum().items()}
    first[0]["w"].zero_()
    assert same_bits(acc.sum(), kept)


def test_an_empty_accumulator_has_no_mean():
    acc = gf.Accumulator.init(PARAMS)
    with pytest.raises(ValueError, match=r"gf\.Accumulator\.mean\(\): got a total weight of 0"):
        acc.mean()
    assert not acc.mean(on_zero_weight="zero")["w"].any()


def test_init_of_live_parameters_records_no_graph():
    module = torch.nn.Linear(2, 1, bias=False)
    acc = gf.Accumulator.init(dict(module.named_parameters()))
    f = gf.per_sample_grads(lambda p, x: (p["weight"] * x).sum())
    out = acc.add(f(dict(module.named_parameters()), X)).mean()
    assert not out["weight"].requires_grad
    assert module.weight.grad is None


def check_half_types_accumulate_in_float32(engine="vmap"):
    """257 rows of 1 in bfloat16: added one at a time in bfloat16 the sum stays at 256."""
    size = 257
    params = {"w": torch.zeros(1, dtype=torch.bfloat16)}
    x = torch.ones(size, 1, dtype=torch.bfloat16)
    naive = torch.zeros((), dtype=torch.bfloat16)
    for value in x[:, 0]:
        naive = naive + value
    assert naive == 256
    f = gf.per_sample_grads(plain, chunk_size=64, engine=engine)
    g = f(params, x)
    assert g.sum(wide=True)["w"].item() == size
    assert g.sum(wide=True)["w"].dtype == torch.float32
    assert g.mean()["w"].item() == 1.0
    assert g.mean()["w"].dtype == g.sum()["w"].dtype == torch.bfloat16
    acc = gf.Accumulator.init(params)
    for row in x.split(1):
        acc = acc.add(f(params, row))
    assert acc.mean()["w"].item() == 1.0
    assert acc.mean()["w"].dtype == torch.bfloat16
    # 256 rows of 1 and 256 rows of 1/256: bfloat16 would drop every one of the second half.
    mixed = torch.cat([x[:256], x[:256] / 256])
    assert f(params, mixed).sum(wide=True)["w"].item() == 257
    # norms, products and weights as well
    few = f(params, x[:2])
    assert few.norms().dtype == few.gram().dtype == few.dot(params).dtype == few.weights.dtype == torch.float32


@pytest.mark.parametrize("engine", ENGINES)
def test_half_types_accumulate_in_float32(engine):
    check_half_types_accumulate_in_float32(engine)


def test_counts_beyond_float32_are_exact():
    # 2^24 + 1 tokens in two micro-batches: float32 would forget the one.
    f = gf.per_sample_grads(lambda p, x, n: gf.Weighted(plain(p, x), n))
    acc = gf.Accumulator.init(PARAMS)
    for count in (2.0**24, 1.0):
        acc = acc.add(f(PARAMS, X[:1], torch.tensor([count])))
    assert float(acc.weight) == 2.0**24 + 1


def test_other_parameters_are_refused():
    f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum() + p["b"], wrt="w")
    params = {**PARAMS, "b": torch.zeros(())}
    with pytest.raises(ValueError, match=r"lack \['b'\].*Accumulator\.init\(\{name: params\[name\]"):
        gf.Accumulator.init(params).add(f(params, X))
