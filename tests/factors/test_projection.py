"""A projection's numbers are a function of (seed, name, entry), and keep squared norms in expectation."""

from __future__ import annotations

import pytest
import torch
from oracle import close

from gradfunc import _factors as F
from gradfunc.projections import Gaussian, gaussian
from gradfunc.testing.strategies._factors import Geometry, gathered


def test_columns_depend_on_seed_name_and_entry_alone(device):
    entries = torch.tensor([5, 0, 70_000, 2**40], device=device)
    columns = gaussian(6, seed=3).columns("w", entries)
    for k, entry in enumerate(entries):
        assert torch.equal(gaussian(6, seed=3).columns("w", entry[None])[0], columns[k])
    assert columns.unique().numel() == columns.numel()
    for other in (gaussian(6, seed=4).columns("w", entries), gaussian(6, seed=3).columns("v", entries)):
        assert not bool((other == columns).any())


def test_entries_are_normal_of_variance_one_over_size():
    entries = gaussian(64).columns("w", torch.arange(2000)).double()
    n = entries.numel()
    # Six standard deviations of the mean of n numbers, of their squares (variance 2) and fourth powers (variance 96).
    normal = entries * 8
    assert abs(float(normal.mean())) < 6 / n**0.5
    assert abs(float(normal.square().mean()) - 1) < 6 * (2 / n) ** 0.5
    assert abs(float(normal.pow(4).mean()) - 3) < 6 * (96 / n) ** 0.5


@pytest.mark.parametrize("kinds", [("outer",), ("rows",), ("outer", "rows"), ("turned", "outer")])
def test_rows_that_are_held_as_they_are_give_the_same_numbers(device, kinds):
    some = gathered(Geometry(4, 3, 5, 6, device=device), (kinds,))
    rows = F.from_rows(F.dense(some.gradients))
    for size in (1, 40):
        got, want = F.project(some.gradients, gaussian(size)), F.project(rows, gaussian(size))
        close(got, want, F.norms(rows)[:, None] * 10, "projection")


def test_a_projection_of_ones_own():
    class Sums:
        size = 1

        def apply(self, name, factor):
            return factor.dots(torch.ones(1, *factor.shape, dtype=factor.dtype), 2**16)

    some = gathered(Geometry(4, 3, 5, 6), (("outer",), ("outer", "rows"), ()))
    want = sum(value.sum((1, 2)) for value in some.rows.values())
    close(F.project(some.gradients, Sums())[:, 0], want, F.norms(some.gradients) * 10, "projection")


def test_nothing_to_project_to():
    some = gathered(Geometry(4, 3, 5, 6), (("outer",), ("rows",)))
    assert F.project(some.gradients, Gaussian(0)).shape == (4, 0)
