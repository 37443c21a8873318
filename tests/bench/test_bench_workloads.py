"""Workloads are what they say, and the answers that contenders are compared with are plain autograd's."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from oracle import close, close_sum, flat, truth
from tiny import GPT, MLP, TIED, TINY

import gradfunc as gf
from gradfunc.bench import _by_hand
from gradfunc.bench._truth import Truth

NAMES = [workload.name for workload in TINY]


def plain_rows(case):
    """One autograd call a sample, by the workload's torch criterion."""

    def loss(params, *sample):
        *inputs, target = (tensor.unsqueeze(0) for tensor in sample)
        output = torch.func.functional_call(case.module, params, tuple(inputs))
        return case.workload.criterion(output, target, reduction="sum")

    return truth(loss, case.model.params, case.size, case.batch).rows


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # attention in torch's own vmap
@pytest.mark.parametrize("workload", TINY, ids=NAMES)
def test_the_answers_are_plain_autograds(workload):
    case = workload.case().cast(torch.float64)
    rows = plain_rows(case)
    norms = flat(rows).norm(dim=1)
    row_bytes = flat(rows).shape[1] * 8
    for budget in (2**29, row_bytes * 4, 1):  # at once, in parts of unequal size, one by one
        found = Truth.of(case, gram=True, budget=budget)
        close(found.norms, norms, norms, "norms")
        close(found.gram, flat(rows) @ flat(rows).T, norms[:, None] * norms, "gram")
        factors = torch.minimum(torch.ones(()), found.max_norm / norms)
        close_sum(found.clipped, factors, rows, "clipped")
        assert found.scale == pytest.approx(float((factors * norms).sum()), rel=1e-12)
        assert found.max_norm == pytest.approx(float(norms.median()), rel=1e-12)
        assert 0 < int((norms > found.max_norm).sum()) < case.size  # some are clipped, some are not


def test_a_norm_that_is_given_is_used():
    case = dataclasses.replace(MLP.case().cast(torch.float64), max_norm=0.25)
    assert Truth.of(case).max_norm == 0.25


def test_errors_are_on_the_scale_of_the_quantity():
    case = MLP.case().cast(torch.float64)
    found = Truth.of(case, gram=True)
    bent = {name: value.clone() for name, value in found.clipped.items()}
    bent["0.bias"][3] += 0.5
    assert found.error("clip-and-sum", bent) == pytest.approx(0.5 / found.scale)
    assert found.error("norms", found.norms * torch.linspace(1, 1.5, 11)) == pytest.approx(0.5)
    gram = found.gram.clone()
    gram[1, 2] += 0.25 * float(found.norms[1] * found.norms[2])
    assert found.error("gram", gram) == pytest.approx(0.25)


def test_a_result_of_another_form_is_infinitely_wrong():
    found = Truth.of(MLP.case().cast(torch.float64), gram=True)
    less = {name: value for name, value in found.clipped.items() if name != "0.bias"}
    turned = {name: value[None] for name, value in found.clipped.items()}
    for quantity, got in (("clip-and-sum", less), ("clip-and-sum", turned), ("clip-and-sum", None)):
        assert found.error(quantity, got) == math.inf
    for quantity, got in (("norms", found.norms[:5]), ("norms", None), ("gram", found.norms)):
        assert found.error(quantity, got) == math.inf


def test_nan_is_no_agreement():
    found = Truth.of(MLP.case().cast(torch.float64))
    assert math.isnan(found.error("norms", found.norms * math.nan))
    assert math.isnan(found.error("clip-and-sum", {k: v * math.nan for k, v in found.clipped.items()}))


@pytest.mark.parametrize("workload", TINY, ids=NAMES)
def test_a_case_is_the_same_each_time(workload):
    before = torch.random.get_rng_state()
    first, second = workload.case(), workload.case()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.batch, second.batch, strict=True))
    assert all(torch.equal(value, second.model.params[name]) for name, value in first.model.params.items())
    other = dataclasses.replace(workload, seed=1).case()
    assert not torch.equal(other.batch[0], first.batch[0])


@pytest.mark.parametrize("workload", TINY, ids=NAMES)
def test_both_losses_are_the_criterion(workload):
    """Sums of numerators, and their ratio to the weights, are torch's "sum" and "mean"."""
    case = workload.case().cast(torch.float64)
    *inputs, target = case.batch
    with torch.no_grad():
        rows = case.losses(case.model.params, *case.batch)
        singles = [case.loss(case.model.params, *[t[i] for t in case.batch]) for i in range(case.size)]
        output = case.module(*inputs)
        for reduction, ours in (("sum", rows.numerator.sum()), ("mean", rows.numerator.sum() / rows.weight.sum())):
            torch.testing.assert_close(ours, workload.criterion(output, target, reduction=reduction))
    torch.testing.assert_close(torch.stack([one.numerator for one in singles]), rows.numerator)


def test_the_workloads_of_the_table():
    assert list(gf.bench.WORKLOADS) == ["mlp", "gpt", "gpt-tied", "cnn", "resnet", "vit", "lstm"]
    made = {name: workload.case() for name, workload in gf.bench.WORKLOADS.items()}
    sizes = {name: sum(value.numel() for value in case.model.params.values()) for name, case in made.items()}
    blocks = 4 * (12 * 256**2 + 13 * 256) + 2 * 256 + 128 * 256
    convolutions = 3 * 32 + 4 * 32**2 + 32 * 64 + 3 * 64**2 + 64 * 128 + 3 * 128**2
    norms, skips = 2 * (5 * 32 + 4 * 64 + 4 * 128), 32 * 64 + 64 + 64 * 128 + 128
    resnet = 9 * convolutions + norms + skips + 128 * 10 + 10
    assert sizes == {
        "mlp": 784 * 1024 + 1024 * 1024 + 1024 * 10 + 1024 + 1024 + 10,
        "gpt": blocks + 2 * 1000 * 256,
        "gpt-tied": blocks + 1000 * 256,
        "cnn": 9 * (3 * 32 + 32 * 64 + 64 * 64 + 64 * 128 + 128 * 128) + 32 + 64 + 64 + 128 + 128 + 128 * 10 + 10,
        "resnet": resnet,
        "vit": 12 * (12 * 192**2 + 13 * 192) + 2 * 192 + 198 * 192 + 3 * 16**2 * 192 + 192 + 192 * 10 + 10,
        "lstm": 2 * (4 * 128 * (128 + 128) + 2 * 4 * 128) + 128 * 10 + 10,
    }
    assert {name: tuple(case.batch[0].shape) for name, case in made.items()} == {
        "mlp": (256, 784),
        "gpt": (16, 128),
        "gpt-tied": (16, 128),
        "cnn": (64, 3, 32, 32),
        "resnet": (64, 3, 32, 32),
        "vit": (8, 3, 224, 224),
        "lstm": (32, 64, 128),
    }
    assert made["gpt-tied"].model.aliases == {"head.weight": "tokens.weight"}


def test_the_gpt_is_causal():
    case = GPT.case()
    tokens, _ = case.batch
    moved = tokens.clone()
    moved[:, -1] = (moved[:, -1] + 1) % 11
    with torch.no_grad():
        before, after = case.module(tokens), case.module(moved)
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert not torch.equal(before[:, -1], after[:, -1])


def test_the_tied_head_stays_tied_in_float64():
    module = TIED.case().cast(torch.float64).module
    assert module.head.weight is module.tokens.weight
    assert module.head.weight.dtype == torch.float64


def test_rows_are_compared_a_part_at_a_time():
    """On the scale of each sample's own norm, in parts of any size, of which no more than one is there."""
    case = MLP.case().cast(torch.float64)
    rows = plain_rows(case)
    norms = flat(rows).norm(dim=1)
    row_bytes = flat(rows).shape[1] * 8
    bent = {name: value.clone() for name, value in rows.items()}
    bent["0.bias"][7, 2] += 0.25 * norms[7]
    for budget in (2**29, row_bytes * 4, 1):
        found = Truth.of(case, budget=budget)
        assert found.error("materialise", rows) < 1e-12
        assert found.error("materialise", bent) == pytest.approx(0.25)
        parts = [len(part["0.bias"]) for part in found.parts()]
        assert sum(parts) == case.size
        assert max(parts) == {2**29: 11, row_bytes * 4: 4, 1: 1}[budget]


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("workload", TINY, ids=NAMES)
def test_both_ways_to_the_answers_agree(workload):
    case = workload.case().cast(torch.float64)
    looped, vmapped = Truth.of(case, looped=True), Truth.of(case)
    assert looped.error("norms", vmapped.norms) < 1e-12
    assert looped.error("clip-and-sum", vmapped.clipped) < 1e-12


def test_numbers_are_parameters_too():
    """Rows of a parameter of shape () are `[B]`."""
    rows = {"scale": torch.tensor([3.0, 1.0]), "weight": torch.tensor([[4.0, 0.0], [0.0, 1.0]])}
    assert _by_hand.norms(rows).tolist() == pytest.approx([5.0, math.sqrt(2)])
    assert _by_hand.gram(rows, rows).tolist() == [[25.0, 3.0], [3.0, 2.0]]


def test_products_are_those_of_rows():
    """One a use of a weight, sample by sample; embeddings are scattered."""
    case = GPT.case().cast(torch.float64)
    outer, scattered = gf.bench.CONTENDERS["products"].make(case, "rows, bare")()
    rows = plain_rows(case)
    looked_up = [value for name, value in rows.items() if name in ("tokens.weight", "positions.weight")]
    weights = [value for name, value in rows.items() if value.dim() == 3 and "tokens" not in name and "pos" not in name]
    for found, wanted in ((outer, weights), (scattered, looked_up[:1])):
        assert len(found) >= len(wanted) > 0
        for want in wanted:
            assert any(got.shape == want.shape and torch.allclose(got, want, rtol=1e-10) for got in found)


def test_products_are_measured_beside_rows_only():
    products = gf.bench.CONTENDERS["products"]
    assert products.asked(("clip-and-sum", "gram")) == []
    assert products.asked(("norms", "materialise")) == ["rows, bare"]
    assert gf.bench.CONTENDERS["floor"].asked(("norms",)) == ["its operations"]
    assert gf.bench.CONTENDERS["gradfunc"].asked(("norms",)) == ["norms"]
    outer, scattered = products.make(MLP.case(), "rows, bare")()
    rows = plain_rows(MLP.case())
    assert scattered == []
    for got, want in zip(outer, (rows["0.weight"], rows["2.weight"]), strict=True):
        torch.testing.assert_close(got, want)
