"""What reports print and hand to JSON."""

from __future__ import annotations

import json
import math

import pytest

from gradfunc._report import WIDTH, Report, Table, jsonable, number


class Small(Report):
    ok = True

    def parts(self):
        long = "word " * 60
        return [
            "A paragraph of [bold]no[/bold] markup.",
            Table("Title", ["name", "[x]"], [["a[0]", "1"], [":smile: b", long]], "a note"),
        ]

    def to_dict(self):
        return jsonable({"value": math.nan})


def test_text_is_printed_as_it_is():
    text = str(Small())
    for piece in ("A paragraph of [bold]no[/bold] markup.", "Title", "[x]", "a[0]", ":smile: b", "a note"):
        assert piece in text
    assert "\x1b" not in text


def test_text_is_text_inside_of_jupyter_too(monkeypatch):
    """There rich shows what is printed, and leaves the file empty."""
    outside = str(Small())
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert str(Small()) == outside


def test_lines_are_within_the_width_and_nothing_is_cut():
    lines = str(Small()).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert not any(line != line.rstrip() for line in lines)
    assert " ".join(lines).split().count("word") == 60


class Named(Small):
    def __init__(self, name, columns):
        self.name, self.columns = name, columns

    def parts(self):
        cells = [f"{k}.00e-01" for k in range(self.columns)]
        return [Table("Layers", ["layer", *["number"] * self.columns], [[self.name, *cells], ["b", *cells]])]


@pytest.mark.parametrize("length", [3, 40, 400])
@pytest.mark.parametrize("columns", [1, 4, 8])
def test_long_names_leave_numbers_whole(length, columns):
    """A name beyond its room goes on in the next line; no number is broken for it."""
    text = str(Named("n" * length, columns))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert all(text.count(f"{k}.00e-01") == 2 for k in range(columns))
    assert sum(line.split(" ")[0].count("n") for line in text.splitlines()[3:]) == length


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0"),
        (-0.0, "0"),
        (0.0316, "3.16e-02"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-2, "-2.00e+00"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


def test_json_has_no_numbers_that_json_lacks():
    tree = {"a": [1, math.inf, (math.nan, -math.inf)], "b": {"c": 0.5}, "d": None, "e": True}
    out = jsonable(tree)
    assert out == {"a": [1, "inf", ["nan", "-inf"]], "b": {"c": 0.5}, "d": None, "e": True}
    json.dumps(out, allow_nan=False)
    json.dumps(Small().to_dict(), allow_nan=False)


@pytest.mark.parametrize("words", [6, 12, 60])
def test_prose_folds_before_a_name_does(words):
    """A name that fits beside the others' longest words stands whole, for whoever copies it."""

    class Explained(Small):
        def parts(self):
            return [
                Table("Layers", ["layer", "count", "why"], [["n" * 60, "12", "word " * words], ["b", "3", "short"]])
            ]

    lines = str(Explained()).splitlines()
    assert any(line.startswith("n" * 60) for line in lines)
    assert max(map(len, lines)) <= WIDTH
