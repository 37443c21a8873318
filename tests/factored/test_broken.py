"""The checks can fail: rows that a broken engine would give are refused by them, each way to be broken on its case."""

from __future__ import annotations

import pytest
import torch
from oracle import Truth, truth_batched

import gradfunc as gf

from .cases import problem
from .checks import check
from .conftest import FACTORED

SIZE, LENGTH = 4, 4


def owners_swapped(want: Truth) -> gf.PerSampleGrads:
    """Two samples hold each other's rows, losses and weights being right."""
    return given(want, {k: v[[1, 0, 2, 3]] for k, v in want.rows.items()})


def summed(want: Truth) -> gf.PerSampleGrads:
    """What all samples share comes back already summed, as a B-th for each: the sum of rows is right."""
    return given(want, {k: v.mean(0, keepdim=True).expand_as(v) for k, v in want.rows.items()})


def time_for_batch(want: Truth) -> gf.PerSampleGrads:
    """Rows of time steps instead of samples, T = B: the sum of rows is right."""
    return given(want, {k: v.cumsum(0) - 1.5 * v for k, v in want.rows.items()})


def given(want: Truth, rows: dict[str, torch.Tensor]) -> gf.PerSampleGrads:
    """A value that holds these rows: gradients of their product with the parameters."""
    params = {k: torch.zeros_like(v[0]) for k, v in rows.items()}
    losses, weights = want.losses, want.weights

    def loss(p, each, loss, weight):
        return gf.Weighted(sum((p[k] * each[k]).sum() for k in p) + loss, weight)

    return gf.per_sample_grads(loss, engine="loop")(params, rows, losses, weights)


@pytest.mark.parametrize(
    "name", ["position embedding", "recurrence by hand", "weight used twice", "rows permuted and back"]
)
@pytest.mark.parametrize("broken", [None, owners_swapped, summed, time_for_batch])
def test_rows_of_others_are_noticed(name, broken):
    p = problem(name, SIZE, LENGTH)
    args = p.args(0)
    want = truth_batched(p.batched, p.params, args)
    right = given(want, want.rows)
    asked(name, right, want, noticed=False)
    if broken is not None:
        asked(name, broken(want), want, noticed=True)


@pytest.mark.parametrize(
    ("name", "key"),
    [("tied, linear", "e"), ("weight used twice", "w"), ("LoRA merged", "b"), ("class token", "w"), ("slots", "s")],
)
def test_a_missing_use_is_noticed(name, key):
    """Half of a parameter's gradient, as if one of two uses were dropped."""
    p = problem(name, SIZE, LENGTH)
    want = truth_batched(p.batched, p.params, p.args(0))
    asked(name, given(want, {**want.rows, key: want.rows[key] / 2}), want, noticed=True)


def asked(name: str, g: gf.PerSampleGrads, want: Truth, *, noticed: bool) -> None:
    if FACTORED:  # whose engine is asserted too
        object.__setattr__(g, "engine", "factored")
    try:
        check(name, g, want)
    except AssertionError:
        assert noticed
    else:
        assert not noticed
