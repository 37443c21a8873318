"""Planted mistakes in every loss: the laws of `test_losses` must notice them."""

from __future__ import annotations

import pytest
import torch
from test_losses import LOSSES, check_samples, check_split, check_torch, combination

import gradfunc as gf
from gradfunc.losses import _ctc, _rows


def weight_lost(out):
    return gf.Weighted(out.numerator, torch.ones_like(out.weight))


def weight_twice(out):
    return gf.Weighted(out.numerator * out.weight, out.weight)


def mean_inside(out):
    return gf.Weighted(out.numerator / out.weight.clamp(min=1), torch.ones_like(out.weight))


def wrong_divisor(out):
    return gf.Weighted(out.numerator, out.weight + 1)


MISTAKES = {
    "weight lost": weight_lost,
    "weight twice": weight_twice,
    "mean inside": mean_inside,
    "wrong divisor": wrong_divisor,
}
# A weight of 1 cannot be lost.
ONES = ("kl_div", "ctc")
PLANTED = [(name, m) for name in LOSSES for m in MISTAKES if name not in ONES or m == "wrong divisor"]


def laws(case):
    check_torch(case)
    check_samples(case)
    check_split(case, [2, 1])


@pytest.mark.parametrize("law", [check_torch, lambda case: check_split(case, [2, 1])], ids=["torch", "split"])
@pytest.mark.parametrize(("name", "mistake"), PLANTED, ids=[f"{name}, {m}" for name, m in PLANTED])
def test_a_planted_mistake_is_noticed(name, mistake, law, monkeypatch):
    case = combination(name, 0)
    law(case)
    function = name.split()[0]
    right = getattr(gf.losses, function)
    monkeypatch.setattr(gf.losses, function, lambda *args, **options: MISTAKES[mistake](right(*args, **options)))
    with pytest.raises(AssertionError):
        law(case)


rowwise, log_sum_exp = _rows.rowwise, _ctc._log_sum_exp


def plant_everywhere(monkeypatch, name, mistake):
    """In every file of losses that imports it."""
    for module in vars(gf.losses).values():
        if getattr(module, "__name__", "").startswith("gradfunc.losses._") and hasattr(module, name):
            monkeypatch.setattr(module, name, mistake)


def rows_rolled(elements, weights, batched):
    out = rowwise(elements, weights, batched)
    return gf.Weighted(out.numerator.roll(1), out.weight.roll(1)) if batched else out


def weights_not_detached(elements, weights, batched):
    out = rowwise(elements, weights, batched)
    return gf.Weighted(out.numerator, out.weight + 0 * out.numerator)


# name of a helper -> the mistake, a loss that has it, its options
INSIDE = {
    "rows rolled": ("rowwise", rows_rolled, "mse", 0),
    "weights carry a graph": ("rowwise", weights_not_detached, "cross_entropy", 0),
    "per='sample' counts elements": ("each_sample_one", lambda e, batched: _rows.counted(e, batched), "l1", 1),
    "per='element' counts samples": ("counted", lambda e, batched: _rows.each_sample_one(e, batched), "mse", 0),
    "class weights forgotten": (
        "class_weights",
        lambda target, weight, ignore_index, *, like, right=gf.losses.class_weights: right(
            target, None, ignore_index, like=like
        ),
        "cross_entropy",
        -1,
    ),
    "ignored targets counted": (
        "class_weights",
        lambda target, weight, ignore_index, *, like: torch.ones_like(like),
        "nll",
        0,
    ),
    "an alignment dropped": ("_log_sum_exp", lambda *terms: log_sum_exp(*terms[:2]), "ctc", 0),
}


@pytest.mark.parametrize("name", INSIDE)
def test_a_mistake_inside_is_noticed(name, monkeypatch):
    helper, mistake, loss, i = INSIDE[name]
    case = combination(loss, i)
    laws(case)
    plant_everywhere(monkeypatch, helper, mistake)
    with pytest.raises(AssertionError):
        laws(case)


def test_the_other_ctc_convention_is_noticed(monkeypatch):
    case = combination("ctc", 0)
    laws(case)
    right = gf.losses.ctc
    monkeypatch.setattr(gf.losses, "ctc", lambda *args, **options: right(*args, **{**options, "mean": "sample"}))
    with pytest.raises(AssertionError):
        laws(case)
