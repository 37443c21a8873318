"""What a gradient is made of, and what is refused."""

from __future__ import annotations

import pytest
import torch
from oracle import close_rows

from gradfunc import _factors as F
from gradfunc._factors import Dense, Gradient, Outer
from gradfunc.testing.strategies._factors import Geometry, gathered


def kinds(gradient):
    return [factor.kind for factor in gradient.factors]


@pytest.mark.parametrize(
    ("uses", "left"),
    [
        ((), []),
        (("outer", "outer"), ["outer"]),
        (("outer", "turned"), ["outer", "outer"]),
        (("rows", "outer", "rows", "outer"), ["rows", "outer"]),
        (("dense", "dense"), ["dense"]),
        (("outer", "rows", "dense"), ["dense"]),
    ],
)
def test_what_can_be_joined_is(uses, left):
    (gradient,) = gathered(Geometry(3, 2, 4, 5), (uses,)).gradients.values()
    assert kinds(gradient) == left


def test_nothing_of_no_entries():
    (gradient,) = gathered(Geometry(3, 2, 0, 5), (("outer", "rows"),)).gradients.values()
    assert gradient.factors == ()


def test_a_factor_of_another_shape_is_refused():
    factor = Outer(torch.zeros(3, 1, 2), torch.zeros(3, 1, 4), (4, 2))
    with pytest.raises(ValueError, match=r"Gradient.of: got a factor of 3 rows of shape \(4, 2\); .* \(2, 4\)"):
        Gradient.of(torch.zeros(2, 4), 3, [factor])
    with pytest.raises(ValueError, match="expected 2 of shape"):
        Gradient.of(torch.zeros(4, 2), 2, [factor])


def test_parts_of_several_structures_become_dense():
    some = gathered(Geometry(4, 2, 3, 5), (("outer",),))
    other = gathered(Geometry(4, 2, 3, 5, seed=1), (("rows",),))
    (name,), (theirs,) = some.gradients, other.gradients
    parts = [(slice(0, 4), some.gradients), (slice(4, 8), {name: other.gradients[theirs]})]
    joined = F.concatenated(parts)
    assert kinds(joined[name]) == ["dense"]
    close_rows(F.dense(joined), {name: torch.cat([some.rows[name], other.rows[theirs]])})


def test_parts_without_factors_are_zeros_of_the_others_structure():
    some = gathered(Geometry(4, 2, 3, 5), (("outer", "rows"),))
    (name,) = some.gradients
    nothing = {name: Gradient(some.gradients[name].like, 2, ())}
    joined = F.concatenated([(torch.tensor([0, 5]), nothing), (torch.tensor([1, 2, 3, 4]), some.gradients)])
    assert kinds(joined[name]) == ["outer", "rows"]
    assert joined[name].factors[0].x.shape[1] == 2
    zeros = torch.zeros(1, 5, 3, dtype=torch.float64)
    close_rows(F.dense(joined), {name: torch.cat([zeros, some.rows[name], zeros])})
    assert kinds(F.concatenated([(slice(0, 2), nothing)])[name]) == []
    assert F.concatenated([]) == {}


def test_rows_as_they_are():
    values = torch.randn(3, 2, 2)
    rows = F.from_rows({"w": values})
    assert rows["w"].like.shape == (2, 2)
    assert rows["w"].like.untyped_storage().nbytes() == 4
    assert F.dense(rows)["w"] is values
    assert F.tensors(rows) == [values]
    assert F.scratch_of(rows) == 2**16
    assert F.scratch_of({"w": Gradient.of(torch.empty(()).expand(1, 9), 2**13, [_wide()])}) == 9 * 2**13


def _wide():
    return Outer(torch.zeros(2**13, 1, 9), torch.zeros(2**13, 1, 1), (1, 9))


def test_mapped_to_another_device():
    some = gathered(Geometry(3, 2, 4, 5), (("outer", "rows"), ()))
    moved = F.mapped(some.gradients, lambda tensor: tensor.to("meta"))
    first, second = moved.values()
    assert first.like.device.type == "meta"
    assert {tensor.device.type for tensor in F.tensors(moved)} == {"meta"}
    assert second.like.device.type == "cpu"


def test_scalars():
    rows = {"s": Gradient.of(torch.zeros(()), 3, [Dense(torch.tensor([3.0, -4.0, 0.0]))])}
    assert F.norms(rows).tolist() == [3, 4, 0]
    assert F.weighted_sum(rows)["s"].item() == -1
    assert F.gram(rows, rows)["s"].tolist() == [[9, -12, 0], [-12, 16, 0], [0, 0, 0]]
