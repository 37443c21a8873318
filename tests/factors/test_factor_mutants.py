"""Each law catches a version of the code that is broken on purpose."""

from __future__ import annotations

import inspect
import sys
import textwrap
from typing import Any

import pytest
from factors import laws, test_norms

from gradfunc._factors import (
    Gradient,
    Grouped,
    Outer,
    Rows,
    Unfolded,
    _concatenated,
    _formed,
    _gradients,
    _norms,
    _pairs,
    _products,
    _sums,
    _windows,
)
from gradfunc.projections import Gaussian
from gradfunc.testing.strategies._factors import Geometry, gathered

OWNERS = {
    "Gaussian": Gaussian,
    "Gradient": Gradient,
    "Grouped": Grouped,
    "Outer": Outer,
    "Rows": Rows,
    "Unfolded": Unfolded,
    "Windows": _windows.Windows,
    "concatenated": _concatenated,
    "formed": _formed,
    "gradients": _gradients,
    "norms": _norms,
    "pairs": _pairs,
    "products": _products,
    "sums": _sums,
}
GEOMETRIES = {
    "mid": Geometry(5, 6, 4, 7),
    "tall": Geometry(5, 3, 7, 4),
    "long": Geometry(5, 9, 20, 21),
    "few": Geometry(5, 9, 2, 3),
    "one": Geometry(5, 1, 8, 7),
    "even": Geometry(5, 6, 4, 8),
    "two": Geometry(3, 2, 40, 41),
    "wider": Geometry(5, 20, 64, 64),
}
# law | uses | geometry, scratch | function | what it says | what the mutant says
TABLE = """
norms | outer rows | mid | norms.squares | value + 2 * term.value | value
norms_each | outer rows | mid | norms.squares | 2 * term.value | term.value
norms | outer rows | mid | pairs._tied | .gather(2, index) | .sum(2, True)
norms | outer rows | few 20 | pairs._tied | value[b] += | value[b] =
norms | outer turned | mid | pairs.cross | product.sum(1) | product.abs().sum(1)
norms | outer | long 64 | products._block | a[:, :, tall:].mul_(2) | pass
norms | outer | few 2 | products.squares_by_rows | value[b] += | value[b] =
norms | outer | one | products.squares_by_gram | Terms(a * c, | Terms(a,
norms | rows | mid | Rows._joined | ids[:, 1:] != ids[:, :-1] | ids[:, 1:] >= 0
norms_each | dense | mid | norms.norms_each | .sqrt() |
squares | outer | long 8 | products._block | value.mul_(2) | value
squares | outer | long 8 | products.squares_by_gram | spans(t, width, rows.start) | spans(rows.stop, width, rows.start)
gram | outer rows | mid | sums._gram | add(term, mirrored=True) | add(term)
gram | outer rows | mid | sums._gram | add(term, mirrored=True) | pass
gram | outer rows | few 20 | pairs._tied_gram | value[b, c] += | value[b, c] =
gram | outer | one 2 | products.gram_by_positions | if same and c.start > b.start | if False
gram | outer | two 4 | products.gram_by_positions | value[b, c] += | value[b, c] =
gram | rows | one | Rows._gram_by_positions | ~equal | equal & ~equal
gram | rows | few | Rows._over | (used[at], ids[start:stop]) | (used[at], ids[start:stop]).clamp_max(0)
gram_of_two | outer rows | mid | sums._gram | for b in right.factors: | for b in right.factors[:1]:
gram_of_two | rows outer | mid | pairs.cross_gram | Terms(value.T, | Terms(value.flip(0).T,
gram_of_two | outer | few 20 | products.gram_by_pieces | others.to(dtype).T | rows[: right.size].to(dtype).T
gram_of_kinds | | mid | pairs.cross_gram | _by_directions(b, a, scratch).T | _by_directions(b, a, scratch)
dots | outer | mid | Outer.dots | product.sum((1, 2)) | product.abs().sum((1, 2))
many_dots | outer | few 20 | Outer.pieces | o.start * inputs + i.start | i.start
total | outer rows | mid | sums.weighted_sum | total.add_(part) | total
weighted_sum | outer | tall | Outer.weighted_sum | (x, g * scale) | (x, g)
weighted_sum | outer | mid | Outer.weighted_sum | (x * scale, g) | (x, g)
masked_sum | outer | mid | sums.weighted_sum | c != 0 | c == c
masked_sum | rows | mid | sums.weighted_sum | c != 0 | c == c
masked_sum | dense | mid | sums.weighted_sum | c != 0 | c == c
select | outer | mid | Outer.select | self.g[at] | self.g[: len(self.x[at])]
concatenated | outer | mid | concatenated._padded | new_zeros | new_ones
concatenated | rows | mid | concatenated._padded | new_zeros | new_ones
concatenated | outer | mid | concatenated._factor | scattered(pieces) | torch.cat([p for _, p in pieces])
dense | outer outer | mid | gradients._joined | for factor in group) | for factor in (*group[:1], *group[:1]))
dense | unfolded | mid | Unfolded.dense | still, windows.mT | still, windows.mT.roll(1, 0)
norms | unfolded | few 20 | Windows.blocks | at.start * first | 0
squares | unfolded | two | Windows.grams | total.add_(part) | total
squares | unfolded | two | Unfolded.squares | still.mT @ still | still.mT @ still.flip(0)
squares | unfolded | few | Unfolded.squares | still @ windows.mT | still.roll(1, 3) @ windows.mT
dense | grouped | even | Grouped.dense | out[:, e] = | out[:, 0] =
norms | grouped | even | Grouped.squares | value += | value =
norms | grouped | even | Grouped._matrices | ~own, 0), g | ~own, 0) * 2, g
dots | grouped | even | Grouped.dots | v[:, e] | v[:, 0]
weighted_sum | grouped | even | Grouped.weighted_sum | out[e] = | out[0] =
project | grouped | even | Grouped.pieces | slice(e * each + at.start, e * each + at.stop) | at
gram_of_two | grouped | even | Grouped._matrices | self.index == e | self.index >= e
weighted_sum | unfolded | tall | Unfolded.weighted_sum | (still * scale, moving) | (still, moving)
weighted_sum | unfolded | mid | Unfolded.weighted_sum | (still, moving * scale) | (still, moving)
weighted_sum | unfolded | few 20 | Unfolded.weighted_sum | out += | out =
dots | unfolded | mid | Unfolded.dots | still @ windows.mT | still @ windows.mT.flip(0)
project | unfolded | few 8 | Unfolded.pieces | start + i.start, start + i.stop | i.start, i.stop
formed | outer | few | Gradient.formed | self.factors[0].dense() | self.factors[0].dense() * 2
formed | outer | wider | formed.formed | and _all(open_, {*chosen, name}) <= SPARE * total |
dense | dense outer | mid | gradients._added | factors[1:] | factors[2:]
dense | rows | mid | Rows.dense | index_add_ | index_copy_
merged | outer outer | mid | Gradient.of | (factor.kind, *factor.features) | (id(factor),)
project | outer | few 8 | Gaussian.apply | at.start, at.stop | 0, at.stop - at.start
mapped | outer | tall | Outer.weighted_sum | g * scale) | g.mul_(scale))
"""
MUTANTS = [tuple(cell.strip() for cell in line.split("|")) for line in TABLE.strip().splitlines()]


def mutate(monkeypatch, owner: Any, name: str, old: str, new: str) -> None:
    """The function with one piece of its source replaced, wherever the package imports it."""
    real = inspect.getattr_static(owner, name)
    function = real.__func__ if isinstance(real, classmethod) else real
    source = textwrap.dedent(inspect.getsource(function))
    assert old in source, f"{name} no longer says {old!r}"
    scope: dict[str, Any] = {}
    exec(compile(source.replace(old, new), f"<mutant of {name}>", "exec"), function.__globals__, scope)
    monkeypatch.setattr(owner, name, scope[name])
    for module in [value for key, value in sys.modules.items() if key.startswith("gradfunc._factors")]:
        if vars(module).get(name) is real:
            monkeypatch.setattr(module, name, scope[name])


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m[0]} of {m[1]}, {m[2]}: {m[3]}: {m[5]}")
def test_a_law_catches_it(monkeypatch, mutant):
    law, uses, geometry, function, old, new = mutant
    check = getattr(laws, law)
    shape, scratch = (*geometry.split(), 2**16)[:2]
    some = gathered(GEOMETRIES[shape], [uses.split()] * 2)
    check(some, int(scratch))
    owner, _, name = function.partition(".")
    mutate(monkeypatch, OWNERS[owner], name, old, new)
    with pytest.raises(AssertionError):
        check(gathered(GEOMETRIES[shape], [uses.split()] * 2), int(scratch))


def test_every_law_has_a_mutant():
    assert {mutant[0] for mutant in MUTANTS} == {law.__name__ for law in laws.LAWS}


def finite(kind, scale):
    return lambda: test_norms.test_finite_rows_have_finite_norms("cpu", kind, scale)


def cancelling():
    test_norms.test_a_cancelling_product_form_is_computed_again("cpu")


PLANTED = {
    "nothing again": ("norms", "doubted.nonzero()", "doubted.nonzero()[:0]", cancelling),
    "nothing again, each": ("norms_each", "if len(at):", "if False:", cancelling),
    "magnitudes ignored": ("_doubted", "magnitude <= TRUST * value", "value > 1e-30", cancelling),
    "overflow kept": ("_doubted", "value.isfinite()", "(value == value)", finite("dense", 1e20)),
    "underflow kept": ("_doubted", "magnitude <= TRUST * value", "magnitude < 1", finite("rows", 1e-25)),
    "factors that cancel": (
        "squares",
        "+ 2 * _magnitude(term)",
        "* 0",
        lambda: test_norms.test_a_use_that_cancels_another("cpu"),
    ),
    "inf times 0": (
        "_product_norms",
        "torch.where(meets, torch.nan, x * g)",
        "x * g",
        lambda: test_norms.test_what_is_not_finite_is_as_in_the_rows("cpu", float("inf"), 1),
    ),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_case_catches_it(monkeypatch, what):
    name, old, new, planted = PLANTED[what]
    planted()
    mutate(monkeypatch, _norms, name, old, new)
    with pytest.raises(AssertionError):
        planted()


def test_a_gram_that_is_not_computed_again_is_caught(monkeypatch):
    mutate(monkeypatch, _sums, "gram", "if is_bad", "if False")
    with pytest.raises(AssertionError):
        test_norms.test_a_cancelling_gram_is_computed_again("cpu")
