"""Half types accumulate in float32, types may be mixed, and answers come in the parameter's accumulation dtype."""

from __future__ import annotations

import pytest
import torch
from oracle import flat

from gradfunc import _factors as F
from gradfunc._factors import Gradient, Outer
from gradfunc._rounding import gamma, unit_roundoff
from gradfunc._tree import wide
from gradfunc.testing.strategies._factors import Geometry, gathered

U = unit_roundoff(torch.float32)
USES = (("outer",), ("rows",), ("dense",), ("outer", "rows"), ("outer", "turned"), ("outer", "dense"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_products_round_as_float32(device, dtype):
    """On the scales of sums of magnitudes, where every bound is gamma_k of the number of roundings."""
    geometry = Geometry(4, 5, 6, 7, device=device, dtype=dtype)
    for kinds in USES:
        some = gathered(geometry, (kinds,))
        (name,) = some.rows
        own = unit_roundoff(dtype) if "dense" in kinds and len(kinds) > 1 else 0  # added rows are rounded once
        k = 4 * 13 * 42
        sizes = case_sizes(some, name)
        whole, bound = flat(some.rows), (gamma(k, U) + 2 * own) * sizes
        norms = F.norms(some.gradients)
        assert norms.dtype == F.norms_each(some.gradients)[name].dtype == wide(dtype)
        assert bool(((norms.cpu().double() - whole.norm(dim=1)).abs() <= bound).all()), kinds
        gram = F.gram(some.gradients, some.gradients)[name]
        assert gram.dtype == wide(dtype)
        scale = (gamma(k, U) + 4 * own) * sizes[:, None] * sizes
        assert bool(((gram.cpu().double() - whole @ whole.T).abs() <= scale).all()), kinds
        c = torch.randn(4, dtype=torch.float64)
        got = F.weighted_sum(some.gradients, c.to(device))[name]
        assert got.dtype == wide(dtype)
        want = torch.tensordot(c, some.rows[name], 1)
        assert bool(((got.cpu().double() - want).abs() <= (c.abs() * bound).sum()).all()), kinds
        dense = F.dense(some.gradients)[name]
        assert dense.dtype == dtype
        error = (dense.cpu().double() - some.rows[name]).abs().flatten(1)
        assert bool((error <= bound[:, None] + unit_roundoff(dtype) * whole.abs()).all()), kinds


def case_sizes(some, name):
    """Norms of the rows with every product taken by its magnitude."""
    absolute = F.mapped(some.gradients, lambda t: t.double().abs() if t.is_floating_point() else t)
    total = sum(factor.dense().cpu().flatten(1) for factor in absolute[name].factors)
    return torch.maximum(total.norm(dim=1), flat(some.rows).norm(dim=1))


def test_halves_of_different_types(device):
    """As autocast leaves them: a float32 parameter with a bfloat16 half and a float32 half."""
    x, g = torch.randn(3, 4, 5, device=device).bfloat16(), torch.randn(3, 4, 6, device=device)
    for halves in ((x, g), (g, x), (x, x)):
        factor = Outer(*halves, (halves[1].shape[2], halves[0].shape[2]))
        rows = {"w": Gradient.of(torch.zeros(factor.shape, device=device), 3, [factor])}
        want = (halves[1].double().mT @ halves[0].double()).flatten(1)
        error = (F.norms(rows).double() - want.norm(dim=1)).abs()
        assert bool((error <= gamma(200, U) * case_norm(*halves)).all())
        for answer in (F.norms(rows), F.dense(rows)["w"], F.weighted_sum(rows)["w"], F.gram(rows, rows)["w"]):
            assert answer.dtype == torch.float32


def case_norm(x, g):
    return (g.double().abs().mT @ x.double().abs()).flatten(1).norm(dim=1)


def test_a_wider_parameter_than_its_factors(device):
    factor = Outer(torch.randn(3, 4, 5, device=device), torch.randn(3, 4, 6, device=device), (6, 5))
    rows = {"w": Gradient.of(torch.zeros(6, 5, dtype=torch.float64, device=device), 3, [factor])}
    answers = (F.norms(rows), F.dense(rows)["w"], F.weighted_sum(rows)["w"], F.gram(rows, rows)["w"])
    assert {answer.dtype for answer in answers} == {torch.float64}
