"""The bounds hold where they are theorems, and telling by precision separates rounding from a wrong number."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradfunc._rounding import gamma, is_rounding, pair_factor, unit_roundoff

U = {d: unit_roundoff(d) for d in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}


def test_unit_roundoffs():
    assert {torch.float64: 2**-53, torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8} == U


@given(k=st.integers(0, 10**6), bits=st.sampled_from([8, 11, 24, 53]))
def test_gamma_is_k_u_over_one_minus_k_u(k, bits):
    u = Fraction(1, 2**bits)
    if k * u >= 1:
        assert gamma(k, float(u)) == math.inf
    else:
        exact = k * u / (1 - k * u)
        assert abs(gamma(k, float(u)) - exact) <= Fraction(1, 2**51) * exact


def test_there_is_no_bound_where_the_theorem_has_none():
    assert pair_factor(254, torch.bfloat16) == math.inf
    assert math.isfinite(pair_factor(253, torch.bfloat16))
    assert pair_factor(254, torch.float32) < 1e-4


@given(
    size=st.integers(1, 200),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 1000),
)
def test_two_ways_of_averaging_stay_within_the_bound(size, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(size, generator=generator).to(dtype)
    forward = backward = torch.zeros((), dtype=dtype)
    for value in rows:
        forward = forward + value
    for value in rows.flip(0):
        backward = backward + value / size
    bound = pair_factor(size, dtype) * float(rows.double().abs().sum()) / size
    # The theorem is for numbers that do not underflow: float16's smallest normal number is 2^-14.
    slack = size * 2.0**-24 if dtype == torch.float16 else 0.0
    assert abs(float(forward / size) - float(backward)) <= bound + slack


def test_a_wrong_number_exceeds_the_bound():
    # Mean of means over 200 and 56 instead of the mean of 256: off by the order of the value itself.
    rows = torch.cat([torch.ones(200), torch.full((56,), 2.0)])
    wrong = (rows[:200].mean() + rows[200:].mean()) / 2
    assert abs(float(wrong - rows.mean())) > pair_factor(256, torch.float32) * float(rows.abs().mean())


LOW, HIGH = {"scale_low": 1.0, "u_low": 2**-24}, {"scale_high": 1.0, "u_high": 2**-53}


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1e-7, 2e-16, True),
        (1e-3, 2e-12, True),  # much rounding is still rounding
        (0.0, 2e-16, True),  # float32 agreed by luck
        (0.0, 0.0, True),
        (1e-2, 1e-2, False),
        (1e-7, 1e-7, False),  # small, and wrong all the same
        (1e-7, 1e-9, False),
        (0.0, 1e-9, False),
        (math.nan, 1e-16, False),
        (1e-7, math.inf, False),
    ],
)
def test_rounding_is_what_shrinks_with_the_precision(low, high, verdict):
    assert is_rounding(low=low, high=high, **LOW, **HIGH) is verdict


def test_scales_are_taken_out():
    assert is_rounding(low=1e3, high=2e-6, scale_low=1e10, scale_high=1e10, u_low=2**-24, u_high=2**-53)
    assert not is_rounding(low=1e-12, high=1e-12, scale_low=1e-10, scale_high=1e-10, u_low=2**-24, u_high=2**-53)


def test_a_scale_of_zero_allows_nothing_but_zero():
    options = {"scale_low": 0.0, "scale_high": 0.0, "u_low": 2**-24, "u_high": 2**-53}
    assert is_rounding(low=0.0, high=0.0, **options)
    assert not is_rounding(low=0.0, high=1e-300, **options)


@given(seed=st.integers(0, 500), size=st.integers(2, 60))
def test_real_sums_are_told_from_planted_errors(seed, size):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(size, 40, dtype=torch.float64, generator=generator)

    def discrepancy(dtype, error):
        x = rows.to(dtype)
        a, b = x.sum(0) / size, (x.flip(0) / size).sum(0)
        return float((a - b + error * x[0]).abs().max()), float(x.norm(dim=1).sum() / size)

    for error, verdict in ((0.0, True), (1e-3, False)):
        (low, scale_low), (high, scale_high) = discrepancy(torch.float32, error), discrepancy(torch.float64, error)
        got = is_rounding(low=low, high=high, scale_low=scale_low, scale_high=scale_high, u_low=2**-24, u_high=2**-53)
        assert got is verdict
