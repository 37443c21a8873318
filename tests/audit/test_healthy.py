"""Healthy models: every pair exact or rounding, no cause claimed, samples independent."""

from __future__ import annotations

import pytest
import torch
from audited import CRITERIA, MODELS
from torch import nn

import gradfunc as gf

DTYPES = ["float32", "float64"]
SIZES = [1, 2, 3, 7, 16]

# Every model once in the quick tier, sizes and precisions in turn; the product is slow.
QUICK = [(name, SIZES[i % 5], DTYPES[i % 2]) for i, name in enumerate(MODELS)]
QUICK_CRITERIA = [(name, SIZES[(i + 1) % 5], DTYPES[i % 2]) for i, name in enumerate(CRITERIA)]
PRODUCT = [(name, n, dtype) for name in MODELS for n in SIZES for dtype in DTYPES]
PRODUCT_CRITERIA = [(name, n, dtype) for name in CRITERIA for n in SIZES for dtype in DTYPES]


def healthy(report: gf.audit.ReductionReport, n: int, *, scalar: bool = False) -> None:
    wrong = [(p.a, p.b, p.verdict, p.discrepancy, p.other) for p in report.pairs if not p.demonstration]
    allowed = {"exact", "rounding", "not run"} if scalar else {"exact", "rounding"}
    assert {verdict for _, _, verdict, *_ in wrong} <= allowed, wrong
    assert report.ok
    assert report.causes == ()
    assert not any(invitation.acts and invitation.size != 0 for invitation in report.invitations), report.invitations
    if scalar:
        assert report.pair("mean", "re-fed").verdict in ("exact", "rounding")
        return
    # The estimators agree because they are right, not because they are 0.
    assert all(row.norm is not None and row.norm > 0 for row in report.estimators), report.estimators
    assert report.independence.independent is (None if n == 1 else True), report.independence
    assert report.notes == ()
    # The demonstration stays wrong, and its cause stays named.
    aliased = report.pair("none", "forum loop")
    assert aliased.verdict == ("exact" if n == 1 else "wrong")
    assert [cause.mechanisms for cause in aliased.causes] == ([] if n == 1 else [("aliased_first_sample",)])


def audited(made, dtype: str) -> gf.audit.ReductionReport:
    model, criterion, batch = made
    return gf.audit.reductions(model, criterion, batch, dtype=dtype)


def test_there_are_enough_of_them():
    assert len(MODELS) >= 20


@pytest.mark.parametrize(("name", "n", "dtype"), QUICK)
def test_models(name, n, dtype):
    healthy(audited(MODELS[name](n), dtype), n)


@pytest.mark.parametrize(("name", "n", "dtype"), QUICK_CRITERIA)
def test_criteria(name, n, dtype):
    healthy(audited(CRITERIA[name](n), dtype), n, scalar="scalar" in name)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "n", "dtype"), PRODUCT)
def test_every_model_size_and_precision(name, n, dtype):
    healthy(audited(MODELS[name](n), dtype), n)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "n", "dtype"), PRODUCT_CRITERIA)
def test_every_criterion_size_and_precision(name, n, dtype):
    healthy(audited(CRITERIA[name](n), dtype), n, scalar="scalar" in name)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("n", [3, 5, 6, 12])
def test_deep_networks_at_awkward_sizes(n, seed):
    """Where float32 averages differ by tens to hundreds of times the bound: still rounding, by precision."""
    torch.manual_seed(seed)
    layers = [layer for _ in range(4) for layer in (nn.Linear(30, 30), nn.ReLU())]
    model = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), *layers, nn.Linear(30, 4))
    batch = (torch.randn(n, 6) * 10 ** torch.linspace(-3, 3, n)[:, None], torch.randint(4, (n,)))
    healthy(gf.audit.reductions(model, nn.CrossEntropyLoss(), batch), n)


@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_scale_does_not_matter(factor):
    """Tiny and huge gradients are judged relative to their own size."""
    batch = (torch.randn(6, 5), torch.randn(6, 1) * factor)
    model = nn.Linear(5, 1)
    with torch.no_grad():
        model.weight.mul_(factor)
        model.bias.mul_(factor)
    healthy(gf.audit.reductions(model, nn.MSELoss(), batch), 6)


def test_a_float64_model_needs_no_option():
    model, criterion, batch = MODELS["mlp"](7)
    report = gf.audit.reductions(model.double(), criterion, (batch[0].double(), batch[1]))
    assert (report.dtype, report.other_dtype) == ("float64", "float32")
    healthy(report, 7)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype):
    """No claim from rounding that is percents large."""
    report = audited(MODELS["mlp"](16), dtype)
    assert report.ok
    assert report.causes == ()


def test_first_samples_only():
    report = gf.audit.reductions(*MODELS["cnn"](7), batch_size=3)
    assert report.batch_size == 3
    healthy(report, 3)
