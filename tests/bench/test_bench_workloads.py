"""Workloads are what they say, and the answers that contenders are compared with are plain autograd's."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from oracle import close, close_sum, flat, truth
from tiny import GPT, MLP, TIED, TINY

import gradfunc as gf
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
