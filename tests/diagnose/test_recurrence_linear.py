"""The recurrence of one matrix, against powers by numpy and dense autograd in float64."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gradfunc as gf
from gradfunc._rounding import gamma, unit_roundoff
from gradfunc.diagnose._recurrence import _linear, _products

F64 = torch.float64
U = unit_roundoff(F64)
TRANSIENT = torch.tensor([[0.9, 10.0], [0.0, 0.9]], dtype=F64)


def drawn(n, seed=0, scale=1.0):
    return scale * torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=F64) / math.sqrt(n)


def vectors(n):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(n, generator=generator, dtype=F64), torch.randn(n, generator=generator, dtype=F64)


def rounding(n, steps, norm):
    """Of a product of `steps` matrices of this norm (Higham 2002, section 3.5), and of one more for the oracle's."""
    return 2 * gamma(steps * (n + 2), U) * n * norm**steps


def check_norms(report, w):
    """`|dh_T/dh_T-k|` is the norm of the dense autograd Jacobian over k steps."""
    n, norm = len(w), float(torch.linalg.matrix_norm(w, 2))
    for k, found in zip(report.lags, report.norms.tolist(), strict=True):

        def run(h, k=k):
            for _ in range(k):
                h = w.T @ h
            return h

        jacobian = torch.autograd.functional.jacobian(run, torch.zeros(n, dtype=F64))
        want = float(torch.linalg.matrix_norm(jacobian, 2))
        assert abs(found - want) <= rounding(n, k, norm) + 8 * U * want, k


def check_gradients(report, w, h, g, steps):
    """`|dL/dh_t|` and their share in the dominating direction, by autograd through a loop."""
    states = [h.clone().requires_grad_()]
    for _ in range(steps):
        states.append(w.T @ states[-1])
    found = torch.autograd.grad((states[-1] * g).sum(), states)[::-1]
    norms = torch.stack([torch.linalg.vector_norm(each) for each in found])
    assert report.gradients.shape == norms.shape
    torch.testing.assert_close(report.gradients, norms, rtol=1e-12, atol=0)
    values, right = torch.linalg.eig(w)  # cotangents are W^k g: its right eigenvectors are what they turn to
    top = right[:, values.abs() >= values.abs().max() * (1 - 1e-9)]
    basis = torch.linalg.qr(top)[0]
    want = torch.stack([(basis.conj().T @ (each / each.norm()).to(basis.dtype)).norm() ** 2 for each in found])
    torch.testing.assert_close(report.shares, want.real, rtol=0, atol=1e-10)


# --- the seed's numbers -------------------------------------------------------------------------------------------


def test_an_eigenvalue_of_three_halves_over_fifty_steps():
    report = gf.diagnose.recurrence(torch.diag(torch.tensor([0.5, 1.5, 1.0], dtype=F64)), steps=50)
    first, one, half = report.growth
    assert f"{math.exp(first.log_measured):.3e}" == "6.376e+08"
    for row, value in ((first, 1.5), (one, 1.0), (half, 0.5)):
        assert (row.modulus, row.multiplicity, row.chain, row.turns) == (value, 1, 1, 0.0)
        assert abs(row.log_measured - 50 * math.log(value)) <= 1e-12
        assert abs(row.log_closed - 50 * math.log(value)) <= 1e-12
    assert report.explodes
    assert not report.ok
    assert "6.376e+08" in str(report)
    assert f"{1.5**50:.3e}" == "6.376e+08"


def test_the_transient_of_a_matrix_that_is_not_normal():
    report = gf.diagnose.recurrence(TRANSIENT, steps=200)
    want = max(np.linalg.norm(np.linalg.matrix_power(TRANSIENT.numpy().T, k), 2) for k in range(201))
    assert abs(report.peak - want) <= 1e-12 * want
    assert f"{math.floor(report.peak * 10) / 10}" == "38.7"
    assert report.peak_lag in (9, 10)  # 10 k 0.9^(k-1) is as large at both
    assert report.spectral_radius < 1 < report.peak
    assert report.vanishes  # in the end
    assert abs(report.departure - 10) <= 1e-12
    assert "before it decays" in str(report)


def test_a_normal_matrix_has_no_transient():
    w = torch.linalg.qr(drawn(6))[0] * 0.9
    report = gf.diagnose.recurrence(w, steps=30)
    assert report.peak == 1.0
    assert report.departure <= 1e-13
    assert abs(report.condition - 1) <= 1e-12
    torch.testing.assert_close(report.log_norms, torch.arange(31, dtype=F64) * math.log(0.9), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(report.log_spectrum, torch.full((6,), 30 * math.log(0.9), dtype=F64))


# --- eigenvalues of all kinds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 50, 400])
def test_a_defective_matrix_grows_by_a_polynomial(steps):
    report = gf.diagnose.recurrence(TRANSIENT, steps=steps)
    (row,) = report.growth
    assert (row.multiplicity, row.chain) == (2, 2)
    assert report.defective
    assert report.condition > 1 / U / 100  # no basis of eigenvectors, and said so
    off = 10 * steps * 0.9 ** (steps - 1)
    want = math.log(np.linalg.norm([[0.9**steps, off], [0.0, 0.9**steps]], 2))
    assert abs(row.log_closed - want) <= 1e-12 * max(1, abs(want))
    assert abs(row.log_measured - want) <= 1e-12 * max(1, abs(want))
    assert "defective" in str(report)


@pytest.mark.parametrize("size", [2, 3])
def test_jordan_blocks_are_found_behind_a_change_of_basis(size):
    jordan = torch.diag(torch.tensor([0.8] * size + [0.5, -0.3, 0.2], dtype=F64))
    jordan += torch.diag(torch.tensor([1.0] * (size - 1) + [0.0] * 3, dtype=F64), 1)
    q = torch.linalg.qr(drawn(len(jordan), seed=3))[0]
    report = gf.diagnose.recurrence(q @ jordan @ q.T, steps=60)
    top = report.growth[0]
    assert (top.multiplicity, top.chain) == (size, size)
    assert abs(top.modulus - 0.8) <= 1e-10  # a mean of eigenvalues that are off by u^(1/size)
    want = math.log(np.linalg.norm(np.linalg.matrix_power(jordan[:size, :size].numpy(), 60), 2))
    assert abs(top.log_measured - want) <= 1e-10
    assert abs(top.log_closed - want) <= 1e-8  # C(60, size) N^size / 0.8^size is left out: rounding, times 3e4
    assert [(row.multiplicity, row.chain) for row in report.growth[1:]] == [(1, 1)] * 3


def test_complex_and_long_jordan_chains():
    c, s = 0.8 * math.cos(0.5), 0.8 * math.sin(0.5)
    turn = torch.tensor([[c, -s], [s, c]], dtype=F64)
    w = torch.kron(torch.eye(2, dtype=F64), turn) + torch.diag(torch.ones(2, dtype=F64), 2)
    q = torch.linalg.qr(drawn(4, seed=5))[0]
    report = gf.diagnose.recurrence(q @ w @ q.T, steps=60)
    # over the complex numbers it is two blocks [[z, 1], [0, z]], z = 0.8 exp(0.5i)
    want = math.log(np.linalg.norm([[0.8**60, 60 * 0.8**59], [0.0, 0.8**60]], 2))
    assert len(report.growth) == 2
    for row in report.growth:
        assert (row.multiplicity, row.chain) == (2, 2)
        assert abs(row.log_closed - want) <= 1e-8
        assert abs(row.log_measured - want) <= 1e-10
        assert abs(abs(row.turns) - math.degrees(0.5)) <= 1e-8
    for w in (torch.ones(20, 20, dtype=F64).triu(), torch.ones(20, 20, dtype=F64).tril()):
        (row,) = gf.diagnose.recurrence(w, steps=60).growth
        assert (row.multiplicity, row.chain) == (20, 20)
        want = math.log(np.linalg.norm(np.linalg.matrix_power(w.numpy(), 60), 2))
        assert abs(row.log_closed - want) <= 1e-8
        assert abs(row.log_measured - want) <= 1e-10


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_entries_near_the_ends_of_the_range(scale):
    (row,) = gf.diagnose.recurrence(scale * torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=F64), steps=3).growth
    want = 3 * math.log(scale) + math.log(np.linalg.norm([[1.0, 3.0], [0.0, 1.0]], 2))
    assert (row.multiplicity, row.chain) == (2, 2)
    assert row.modulus == pytest.approx(scale, rel=1e-12)
    assert row.log_closed == pytest.approx(want, rel=1e-12)
    assert row.log_measured == pytest.approx(want, rel=1e-12)


def test_equal_eigenvalues_with_eigenvectors_are_not_defective():
    report = gf.diagnose.recurrence(0.7 * torch.eye(4, dtype=F64), steps=20)
    (row,) = report.growth
    assert (row.multiplicity, row.chain) == (4, 1)
    assert not report.defective
    assert abs(row.log_closed - 20 * math.log(0.7)) <= 1e-12


def test_a_nilpotent_matrix_ends():
    w = torch.diag(torch.ones(2, dtype=F64), 1)
    report = gf.diagnose.recurrence(w, steps=3)
    (row,) = report.growth
    assert (row.modulus, row.multiplicity, row.chain) == (0.0, 3, 3)
    assert row.log_closed == row.log_measured == -math.inf
    assert report.norms.tolist() == [1.0, 1.0, 1.0, 0.0]
    assert report.vanishes
    json.dumps(report.to_dict())
    assert gf.diagnose.recurrence(w, steps=2).growth[0].log_closed == 0.0


@pytest.mark.parametrize("steps", [1, 20, 100])
def test_a_nilpotent_matrix_behind_a_change_of_basis(steps):
    """Its eigenvalues are rounding, and powers of rounding leave the range of floats."""
    q = torch.linalg.qr(drawn(50))[0]
    (row,) = gf.diagnose.recurrence(q.T @ torch.diag(torch.ones(49, dtype=F64), 1) @ q, steps=steps).growth
    assert (row.multiplicity, row.chain) == (50, 50)
    if steps < 50:
        assert abs(row.log_closed) <= rounding(50, steps, 1.0)  # |N^T| = 1
    assert row.log_closed < math.inf


def test_a_rotation_turns_by_its_angle():
    c, s = math.cos(0.3), math.sin(0.3)
    report = gf.diagnose.recurrence(1.1 * torch.tensor([[c, -s], [s, c]], dtype=F64), steps=40)
    assert [row.turns for row in report.growth] == pytest.approx([math.degrees(0.3), -math.degrees(0.3)], abs=1e-12)
    for row in report.growth:
        assert abs(row.modulus - 1.1) <= 4 * U
        assert abs(row.log_measured - 40 * math.log(1.1)) <= 1e-12
    assert torch.allclose(report.shares, torch.ones(41, dtype=F64))  # the plane is all there is


def test_one_step():
    w = drawn(4)
    report = gf.diagnose.recurrence(w, steps=1)
    assert report.lags == (0, 1)
    assert abs(report.norms[1] - torch.linalg.matrix_norm(w, 2)) <= 8 * U * report.norms[1]
    torch.testing.assert_close(report.log_spectrum.exp(), torch.linalg.svdvals(w), rtol=1e-12, atol=0)
    for row in report.growth:
        assert abs(row.log_measured - math.log(row.modulus)) <= 1e-12


# --- oracles, and mutants they catch ------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    n=st.integers(1, 6), seed=st.integers(0, 10**6), steps=st.integers(1, 12), scale=st.sampled_from([0.3, 1.0, 2.0])
)
def test_random_matrices(n, seed, steps, scale):
    w = drawn(n, seed, scale)
    h, g = vectors(n)
    report = gf.diagnose.recurrence(w, steps=steps, state=h, cotangent=g)
    check_norms(report, w)
    check_gradients(report, w, h, g, steps)
    # The product of eigenvalues is the determinant; norms lie between rho^k and min(|W|^k, kappa rho^k).
    unsure = sum(row.multiplicity * row.error / row.modulus for row in report.growth)
    pivots = 2 * gamma(n**2, U) * float(torch.linalg.cond(w)) * n
    total = sum(row.multiplicity * math.log(row.modulus) for row in report.growth)
    assert abs(total - float(torch.linalg.slogdet(w)[1])) <= 2 * unsure + pivots
    top = report.growth[0]
    for k, log in zip(report.lags, report.log_norms.tolist(), strict=True):
        slack = rounding(n, k, report.spectral_norm) / math.exp(log) + 2 * k * top.error / top.modulus + 8 * U
        low = k * math.log(report.spectral_radius)
        assert low - slack <= log <= k * math.log(report.spectral_norm) + slack
        assert log <= math.log(report.condition) * (1 + 8 * n * U * report.condition) + low + slack


def problem():
    w = drawn(5, seed=4)
    return w, *vectors(5)


def test_w_for_its_transpose_is_caught():
    w, h, g = problem()
    check_gradients(gf.diagnose.recurrence(w, steps=9, state=h, cotangent=g), w, h, g, 9)
    with pytest.raises(AssertionError):
        check_gradients(gf.diagnose.recurrence(w.T, steps=9, state=h, cotangent=g), w, h, g, 9)


def test_one_step_too_many_or_too_few_is_caught(monkeypatch):
    w, h, g = problem()
    for steps in (8, 10):
        with pytest.raises(AssertionError):
            check_gradients(gf.diagnose.recurrence(w, steps=steps, state=h, cotangent=g), w, h, g, 9)
    real = _products.dense

    def late(jacobians):
        out = real(jacobians)
        return _products.Products(**{**vars(out), "log_growth": out.log_growth.roll(1)})

    monkeypatch.setattr(_linear, "dense", late)
    with pytest.raises(AssertionError):
        check_norms(gf.diagnose.recurrence(w, steps=9), w)


def test_the_share_of_a_normal_matrix_in_closed_form():
    q = torch.linalg.qr(drawn(3, seed=1))[0]
    values = torch.tensor([1.2, 0.9, 0.4], dtype=F64)
    _, g = vectors(3)
    report = gf.diagnose.recurrence(q @ torch.diag(values) @ q.T, steps=40, cotangent=g)
    squares = (q.T @ g).square()
    for k, share in enumerate(report.shares.tolist()):
        parts = squares * values ** (2 * k)
        assert abs(share - float(parts[0] / parts.sum())) <= 1e-12
    assert report.shares[-1] > 1 - 1e-8


# --- clipping -----------------------------------------------------------------------------------------------------


def rows(report):
    return {row.how: row for row in report.clipping}


@pytest.mark.parametrize("limits", [{"clip_norm": 0.5}, {"clip_value": 0.01}])
def test_clipping_of_the_linear_recurrence(limits):
    q = torch.linalg.qr(drawn(4, seed=2))[0]
    w = q @ torch.diag(torch.tensor([1.3, 0.8, 0.5, 0.1], dtype=F64)) @ q.T
    found = rows(gf.diagnose.recurrence(w, steps=30, **limits))
    after = "after" if "clip_value" in limits else "after, each parameter"
    assert found["on parameters"].equals in {after, "after"}
    assert found["on the state"].equals is None
    assert found["on the state"].angle > 1
    if "clip_norm" in limits:
        # the exploding direction has all of it, before and after: the direction is what it was
        assert found["none"].norm > 100
        assert found["after"].norm == pytest.approx(0.5, rel=1e-12)
        assert found["after"].angle <= 1e-12
        assert found["none"].share > 0.99
        assert abs(found["after"].share - found["none"].share) <= 1e-12
    else:
        assert found["after"].angle > 1  # entry by entry it turns


def test_what_has_vanished_is_not_revived():
    found = rows(gf.diagnose.recurrence(torch.diag(torch.tensor([0.5, 0.4], dtype=F64)), steps=60, clip_norm=1.0))
    assert found["none"].norm < 1e-15
    assert found["after"].equals == found["on the state"].equals == "none"


# --- matrix-free --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.5, 1.3])
def test_matrix_free_equals_dense(scale):
    w = drawn(40, seed=5, scale=scale)
    free = gf.diagnose.recurrence(w, steps=37, dense=0, exponents=5)
    full = gf.diagnose.recurrence(w, steps=37)
    assert free.matrix_free
    assert not full.matrix_free
    assert free.lags == (0, 1, 2, 4, 8, 16, 32, 37)
    # ARPACK's tolerance 1e-4 for vectors is 1e-8 for values
    torch.testing.assert_close(free.log_norms, full.log_norms[list(free.lags)], rtol=0, atol=1e-8)
    assert free.residual <= 1e-3
    for a, b in zip(free.growth[:4], full.growth[:4], strict=True):
        assert abs(a.modulus - b.modulus) <= 1e-9
        assert a.error <= 1e-9
    torch.testing.assert_close(free.shares, full.shares, rtol=0, atol=1e-8)
    torch.testing.assert_close(free.gradients, full.gradients, rtol=1e-12, atol=0)
    assert "Matrix-free" in str(free)
    json.dumps(free.to_dict())


def test_neither_over_nor_underflow():
    for value, word in ((10.0, "explodes"), (0.1, "vanishes")):
        for dense in (128, 0):
            report = gf.diagnose.recurrence(
                torch.diag(torch.full((6,), value, dtype=F64)), steps=400, dense=dense, exponents=1
            )
            assert float(report.log_norms[-1]) == pytest.approx(400 * math.log(value), rel=1e-10)
            assert getattr(report, word)
            assert f"{'1.000e+400' if value > 1 else '1.000e-400'}" in str(report)


# --- what is refused ----------------------------------------------------------------------------------------------

I2 = torch.eye(2)
BAD = {
    "no steps": (lambda: gf.diagnose.recurrence(I2), TypeError, "without steps"),
    "T = 0": (lambda: gf.diagnose.recurrence(I2, steps=0), ValueError, "steps=0"),
    "half a step": (lambda: gf.diagnose.recurrence(I2, steps=1.5), TypeError, r"steps=1\.5"),
    "not square": (lambda: gf.diagnose.recurrence(torch.ones(2, 3), steps=1), ValueError, "square"),
    "a vector": (lambda: gf.diagnose.recurrence(torch.ones(2), steps=1), ValueError, "square"),
    "empty": (lambda: gf.diagnose.recurrence(torch.ones(0, 0), steps=1), ValueError, "square"),
    "NaN": (lambda: gf.diagnose.recurrence(I2 * math.nan, steps=1), ValueError, r"W\[0, 0\] = nan"),
    "inf": (lambda: gf.diagnose.recurrence(I2 + math.inf, steps=1), ValueError, r"W\[0, 0\] = inf"),
    "complex": (lambda: gf.diagnose.recurrence(I2 * 1j, steps=1), TypeError, "real floating type"),
    "integers": (lambda: gf.diagnose.recurrence(torch.ones(2, 2, dtype=int), steps=1), TypeError, "real floating"),
    "a criterion": (lambda: gf.diagnose.recurrence(I2, torch.nn.MSELoss(), steps=1), TypeError, "with criterion="),
    "params": (lambda: gf.diagnose.recurrence(I2, steps=1, params={}), TypeError, "with params="),
    "a state too long": (lambda: gf.diagnose.recurrence(I2, steps=1, state=torch.ones(3)), ValueError, r"state \(3,\)"),
    "a state NaN": (lambda: gf.diagnose.recurrence(I2, steps=1, state=torch.ones(2) * math.nan), ValueError, "finite"),
    "a list": (lambda: gf.diagnose.recurrence([[1.0]], steps=1), TypeError, "with steps="),
    "two clips": (lambda: gf.diagnose.recurrence(I2, steps=1, clip_norm=1, clip_value=1), ValueError, "one of them"),
    "clip 0": (lambda: gf.diagnose.recurrence(I2, steps=1, clip_norm=0.0), ValueError, r"clip_norm=0\.0"),
    "share": (lambda: gf.diagnose.recurrence(I2, steps=1, share=1.0), ValueError, r"share=1\.0"),
    "nothing for ARPACK": (
        lambda: gf.diagnose.recurrence(torch.zeros(9, 9), steps=1, dense=2),
        ValueError,
        r"Pass dense=9\.",
    ),
    "samples": (lambda: gf.diagnose.recurrence(I2, steps=1, samples=0), ValueError, "samples=0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, kind, text = BAD[name]
    with pytest.raises(kind, match=text):
        call()


def test_nothing_is_changed():
    w, state = drawn(3).requires_grad_(), torch.random.get_rng_state()
    before = w.detach().clone()
    report = gf.diagnose.recurrence(w, steps=5)
    assert torch.equal(w, before)
    assert w.grad is None
    assert torch.equal(torch.random.get_rng_state(), state)
    again = gf.diagnose.recurrence(w, steps=5)
    assert report.to_dict() == again.to_dict()
    with pytest.raises(AttributeError):
        report.steps = 3


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_smallest_matrices_under_any_limit(n):
    for dense in (0, 128):
        report = gf.diagnose.recurrence(drawn(n, seed=2), steps=4, dense=dense)
        want = torch.linalg.matrix_norm(torch.linalg.matrix_power(drawn(n, seed=2), 4), 2)
        assert float(report.norms[-1]) == pytest.approx(float(want), rel=1e-8)
