"""`g.explain()`: every parameter, its uses, kind, method, cost and why; one exotic layer costs that layer only."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import gradfunc as gf
from gradfunc._report import Report, Table

from .cases import CASES, problem
from .cases.opaque import Known
from .checks import function
from .conftest import ENGINE, factored_only

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")
COLUMNS = ("parameter", "uses", "kind", "method", "cost", "why")
KINDS = {"outer", "rows", "unfolded", "grouped", "dense"}
EVERY = [(name, mode) for name, case in CASES.items() for mode in case.modes]


def table(g: gf.PerSampleGrads) -> dict[str, list[dict[str, str]]]:
    """Rows of the table by parameter; a line without a name continues the one above it."""
    lines = str(g.explain()).splitlines()
    head = next(i for i, line in enumerate(lines) if all(column in line.lower().split() for column in COLUMNS))
    starts = [lines[head].lower().index(column) for column in COLUMNS]
    rows: dict[str, list[dict[str, str]]] = {}
    name = ""
    for line in lines[head + 1 :]:
        if not re.search(r"\w", line):
            if rows and not line.strip():
                break
            continue
        cells = [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
        if cells[0]:
            name = cells[0]
            if name not in g.names:  # a note below the table
                break
            rows.setdefault(name, []).append(dict(zip(COLUMNS, cells, strict=True)))
        else:
            last = rows[name][-1]
            for column, cell in zip(COLUMNS, cells, strict=True):
                last[column] = f"{last[column]} {cell}".strip()
    return rows


def words(rows: list[dict[str, str]], column: str) -> set[str]:
    """All words of a column."""
    return set(re.findall(r"[a-z]+", " ".join(row[column] for row in rows).lower()))


def kinds(rows: list[dict[str, str]]) -> set[str]:
    """Which factors a parameter holds, or rows were made of."""
    of = [{**row, "kind": row["kind"].split("dense, of ")[-1]} for row in rows]
    return words(of, "kind") & KINDS


def uses(rows: list[dict[str, str]]) -> int:
    """How many."""
    return sum(int(number) for row in rows for number in re.findall(r"\d+", row["uses"]))


def asked(name, mode="native", size=3, length=4):
    p = problem(name, size, length)
    return function(name, p, mode)(p.params, *p.args(0))


def _mostly_slow(pairs):
    """One in eight at once, the others with the slow tests."""
    return [pytest.param(*pair, marks=[] if k % 8 == 3 else pytest.mark.slow) for k, pair in enumerate(pairs)]


@pytest.mark.parametrize(("name", "mode"), _mostly_slow(EVERY))
@factored_only
def test_every_parameter_is_named(name, mode):
    g = asked(name, mode)
    rows = table(g)
    assert set(rows) == set(g.names)
    for parameter in set(g.names) - set(CASES[name].unused):
        assert uses(rows[parameter]) >= 1
        for row in rows[parameter]:
            for column in ("kind", "method", "cost", "why"):
                assert row[column], f"{parameter} has no {column}"


@pytest.mark.parametrize(("name", "mode"), _mostly_slow(pair for pair in EVERY if CASES[pair[0]].kinds))
@factored_only
def test_the_kinds_are_those_of_the_uses(name, mode):
    rows = table(asked(name, mode))
    for parameter, expected in CASES[name].kinds.items():
        allowed = [set(kind.split("+")) for kind in expected.split("|")]
        assert kinds(rows[parameter]) in allowed, f"{parameter}: {rows[parameter]}"


@pytest.mark.parametrize(
    ("name", "parameter", "count"),
    [
        ("linear", "w", 1),
        ("weight used twice", "w", 2),
        ("weight shared by two modules", "a.weight", 2),
        ("tied, linear", "e", 2),
        ("recurrence by hand", "u", 1),
        ("fixed point", "w", 5),
    ],
)
@factored_only
def test_uses_are_counted(name, parameter, count):
    assert uses(table(asked(name))[parameter]) == count


def exotic_function(x, w):
    return Known.apply(x, w)


def exotic_inverse(x, w):
    return torch.linalg.solve(torch.eye(6, dtype=x.dtype) * 9 + w, x.unsqueeze(-1))[..., 0]


def exotic_distance(x, w):
    return torch.cdist(x, w)


@pytest.mark.parametrize("layer", [exotic_function, exotic_inverse, exotic_distance])
@factored_only
def test_an_exotic_layer_loses_the_fast_path_alone(layer):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 6)).double()
    model = gf.stateless(module)
    params = {**model.params, "exotic": torch.randn(6, 6, dtype=torch.float64)}

    def losses(p, x):
        p = dict(p)
        middle = layer(x, p.pop("exotic"))
        return (model(p, x) * middle).sin().sum(1)

    rows = table(gf.per_sample_grads(losses, engine=ENGINE, batched=True)(params, torch.randn(4, 6).double()))
    assert "generic" in words(rows["exotic"], "method")
    for name in ("0.weight", "2.weight"):
        assert kinds(rows[name]) == {"outer"}
    for name in ("0.bias", "1.weight", "1.bias", "2.bias"):
        assert kinds(rows[name]) == {"dense"}
        assert "generic" not in words(rows[name], "method")


@pytest.mark.parametrize(("length", "width", "method"), [(64, 4, "dense"), (2, 64, "gram"), (1, 64, "gram")])
@factored_only
def test_the_method_is_the_cheaper_one(length, width, method):
    """`2 T^2 (I + O)` against `2 T I O`, or none where rows are small: they are held."""
    params = {"w": torch.randn(width, width, dtype=torch.float64)}
    x = torch.randn(3, length, width, dtype=torch.float64)
    f = gf.per_sample_grads(lambda p, x: (x @ p["w"]).sin().sum((1, 2)), engine=ENGINE, batched=True)
    assert method in words(table(f(params, x))["w"], "method")


@factored_only
def test_a_derived_weight_says_that_it_is_pulled_back():
    assert "pulled" in words(table(asked("matrix exponential"))["w"], "method")


@factored_only
def test_explaining_computes_nothing_and_says_the_same_again():
    g = asked("small convolutional network", "vmap")
    assert str(g.explain()) == str(g.explain())
    assert "factored" in str(g.explain())


class Explained(Report):
    """A table as reports print it."""

    ok = True
    names = ("e.weight", "w")

    def parts(self):
        rows = [
            ("e.weight", "1", "rows", "rows", "1.2e+03", "an index of 4 rows"),
            ("", "1", "outer", "gram", "3.4e+05", "T = 4: " + "of dense words " * 9),
            ("w", "1", "dense", "generic", "10", "no rule for Exotic"),
        ]
        return [Table("engine factored", COLUMNS, rows, "held: 3 MiB")]

    def to_dict(self):
        return {}

    def explain(self):
        return self


def test_the_table_is_read_as_reports_print_it():
    rows = table(Explained())
    assert set(rows) == {"e.weight", "w"}
    assert kinds(rows["e.weight"]) == {"rows", "outer"}
    assert kinds(rows["w"]) == {"dense"}
    assert uses(rows["e.weight"]) == 2
    assert "generic" in words(rows["w"], "method")
