"""The cases themselves: every parameter counts, both forms mean the same, other data is other data."""

from __future__ import annotations

import pytest
import torch
from oracle import close_rows, flat, truth, truth_batched

from .cases import CASES, MODES, problem
from .checks import tolerance

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")
COUNT = 300


def test_there_are_enough():
    assert len(CASES) >= COUNT


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_parameter_has_a_gradient(name):
    case, p = CASES[name], problem(name, 4, 3)
    args = p.args(0)
    want = truth_batched(p.batched, p.params, args)
    assert flat(want.rows).isfinite().all()
    for key, rows in want.rows.items():
        alive = bool(rows.any())
        assert alive == (key not in case.unused), f"{key}: {'a gradient' if alive else 'no gradient'}"
    whole = flat(want.rows)
    assert case.equal == bool((whole - whole[:1]).norm() < 1e-3 * whole.norm())
    assert all(value.dtype == torch.float64 for value in p.params.values())
    assert set(case.kinds) <= set(p.params)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if set(case.modes) == set(MODES)])
def test_both_forms_mean_the_same(name):
    p = problem(name, 3, 4)
    args = p.args(0)
    a, b = truth(p.sample, p.params, 3, args), truth_batched(p.batched, p.params, args)
    close_rows(a.rows, b.rows, tolerance=tolerance(name))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.degenerate])
def test_a_degenerate_call_has_another_gradient(name):
    p = problem(name, 4, 3)
    params, args = p.degenerate(0)
    some = truth_batched(p.batched, params, args)
    other = truth_batched(p.batched, p.params, p.args(1))
    assert [value.shape for value in args] == [value.shape for value in p.args(1)]
    assert flat(some.rows).shape == flat(other.rows).shape
    assert (flat(some.rows) - flat(other.rows)).norm() > 1e-3 * flat(other.rows).norm()
