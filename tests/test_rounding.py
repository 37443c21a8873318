"""The bounds hold where they are theorems, and telling by precision separates rounding from a wrong number."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gradfunc as gf
from gradfunc._rounding import gamma, is_rounding, pair_factor, unit_roundoff

F64 = torch.float64

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


# --- what is public of it -------------------------------------------------------------------------------------------

R = gf.testing.rounding


@given(
    size=st.integers(0, 200),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 1000),
    spread=st.sampled_from([1.0, 1e6]),
)
def test_two_orders_of_a_sum_stay_within_its_bound(size, dtype, seed, spread):
    generator = torch.Generator().manual_seed(seed)
    magnitudes = spread ** torch.rand(size, 1, generator=generator, dtype=F64)
    terms = (torch.randn(size, 3, generator=generator, dtype=F64) * magnitudes).to(dtype)
    forward = backward = torch.zeros(3, dtype=dtype)
    for x, y in zip(terms, terms.flip(0), strict=True):
        forward, backward = forward + x, backward + y
    off = (forward.double() - backward.double()).abs()
    assert bool((off <= R.sum_bound(terms)).all())
    if size > 1:
        wrong = backward.double() + 4 * R.sum_bound(terms)
        assert bool(((forward.double() - wrong).abs() > R.sum_bound(terms)).all())


@given(
    entries=st.integers(1, 300),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 1000),
)
def test_norms_and_bounded_rows_stay_within_theirs(entries, dtype, seed):
    x = torch.randn(entries, generator=torch.Generator().manual_seed(seed)).to(dtype)
    wide = x.float()
    true = float(x.double().norm())
    for norm in (wide.norm(), (wide * wide).cumsum(0)[-1].sqrt()):
        assert abs(float(norm) / true - 1) <= R.norm_factor(entries, torch.float32)
        clipped = (wide * (0.5 / norm)).to(dtype)
        underflow = math.sqrt(entries) * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        assert float(clipped.double().norm()) <= 0.5 * (1 + R.clip_factor(entries, dtype)) + underflow
        # twice the rounding of an entry is not covered
        longer = clipped.double() * (1 + 3 * R.clip_factor(entries, dtype))
        assert float(longer.norm()) > 0.5 * (1 + R.clip_factor(entries, dtype)) * (1 - 4 * U[dtype])


def test_bounds_are_void_where_the_theorem_is():
    assert R.clip_factor(2**23, torch.float32) == math.inf
    assert R.norm_factor(2**53, torch.float64) == math.inf
    assert R.sum_bound(torch.ones(300), torch.bfloat16) == math.inf


def test_scales():
    rows = {"w": torch.tensor([[3.0, 0.0], [0.0, 1.0]]), "b": torch.tensor([4.0, 0.0])}
    assert R.row_scale(rows).tolist() == [5.0, 1.0]
    assert R.sum_scale(rows) == 6.0
    assert R.sum_scale(rows, torch.tensor([-2.0, 0.5])) == 10.5
    assert R.dot_scale(rows, {"w": torch.tensor([0.0, 2.0]), "b": torch.tensor(0.0)}).tolist() == [10.0, 2.0]
    assert R.gram_scale(rows).tolist() == [[25.0, 5.0], [5.0, 1.0]]
    assert R.gram_scale(rows, {"w": torch.tensor([[0.0, 7.0]]), "b": torch.zeros(1)}).tolist() == [[35.0], [7.0]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_equal_up_to_rounding(dtype):
    x = torch.randn(200, generator=torch.Generator().manual_seed(0)).to(dtype)

    def mean(x):
        return x.mean()

    R.assert_equal_up_to_rounding(mean, lambda x: {"sum": x.flip(0).sum() / len(x)}, x, scale=float(x.abs().mean()))
    with pytest.raises(AssertionError, match=r"tensor 0: .* apart on a scale of .*: that is no rounding"):
        R.assert_equal_up_to_rounding(mean, lambda x: x.mean() + 1e-3 * x.abs().mean(), x)
    with pytest.raises(AssertionError, match="2 tensors, and 1"):
        R.assert_equal_up_to_rounding(lambda x: (x, x), lambda x: x, x)
    with pytest.raises(AssertionError, match=r"shape \(\), not \(1,\)"):
        R.assert_equal_up_to_rounding(mean, lambda x: x.mean()[None], x)
    with pytest.raises(AssertionError, match="not finite"):
        R.assert_equal_up_to_rounding(mean, lambda x: x.mean() / 0, x)


BAD = [
    ((3, len, [1.0]), {}, TypeError, "an int as one; expected a function of the inputs"),
    ((len, None, [1.0]), {}, TypeError, "None as other; expected a function of the inputs"),
    ((len, len, [1.0]), {}, TypeError, "inputs without a floating tensor; expected at least one"),
    ((len, len, torch.ones(1)), {"scale": "1"}, TypeError, "scale='1'; expected a number > 0, or None"),
    ((len, len, torch.ones(1)), {"scale": 0.0}, ValueError, "scale=0.0; expected a finite number > 0, or None"),
    ((len, len, torch.ones(1)), {"scale": math.inf}, ValueError, "scale=inf; expected a finite number > 0, or None"),
]


@pytest.mark.parametrize(("given_", "options", "kind", "text"), BAD)
def test_bad_calls(given_, options, kind, text):
    with pytest.raises(kind) as caught:
        R.assert_equal_up_to_rounding(*given_, **options)
    call = "gf.testing.rounding.assert_equal_up_to_rounding(one, other, *inputs): got "
    assert str(caught.value).startswith(call + text)
