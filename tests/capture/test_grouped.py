"""Products of rows that are sorted by expert: torch has them in single precision only, so these are held to that."""

from __future__ import annotations

import inspect

import pytest
import torch
from oracle import close_rows

from gradfunc._capture._layout import Layout
from gradfunc._capture._rules import RULES, Site, _products
from gradfunc._rounding import unit_roundoff

B, I, O, E = 4, 8, 16, 3  # noqa: E741


CASES = {"uneven": [3, 5, 8], "one expert has all": [0, 8, 8], "rows left": [2, 4, 6]}
pytestmark = pytest.mark.skipif(
    not hasattr(torch.nn.functional, "grouped_mm"), reason="this torch has no grouped_mm in torch.nn.functional"
)


def check(ends: list[int]) -> None:
    """Rows from the rule against a loop over the rows of the product."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(8, I, generator=generator), torch.randn(E, I, O, generator=generator, requires_grad=True)
    owner = torch.tensor([2, 0, 1, 3, 3, 0, 2, 1])
    out = torch.nn.functional.grouped_mm(x, w, offs=torch.tensor(ends, dtype=torch.int32))
    g = torch.randn(8, O, generator=generator)
    site = Site(out.grad_fn, out.grad_fn.name(), 1, B, Layout(0, table=owner), (8, O), (E, I, O))
    factor = RULES[site.name](site)(g)
    want = torch.zeros(B, E, I, O, dtype=torch.float64)
    start = 0
    for e, end in enumerate(ends):
        for n in range(start, end):
            want[owner[n], e] += x[n].double()[:, None] * g[n].double()
        start = end
    assert factor.kind == "grouped"
    # an entry is a sum of two products at most
    close_rows({"w": factor.dense()}, {"w": want}, tolerance=4 * unit_roundoff(torch.float32))


@pytest.mark.parametrize("name", CASES)
def test_rows_of_experts(name):
    check(CASES[name])


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("uneven", "right=True", "right=False"),
        ("rows left", "g.masked_fill(beyond, 0)", "g"),
        ("uneven", "site.split(x)", "site.split(x.flip(0))"),
    ],
)
def test_a_mistake_is_seen(monkeypatch, name, old, new):
    source = inspect.getsource(_products.grouped_mm)
    assert old in source
    scope: dict = {}
    exec(source.replace(old, new), vars(_products), scope)
    monkeypatch.setitem(RULES, "GroupedMmBackward0", scope["grouped_mm"])
    with pytest.raises(AssertionError):
        check(CASES[name])
