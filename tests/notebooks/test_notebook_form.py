"""Notebooks as they are committed: run, in one form, led by a question, and linked."""

from __future__ import annotations

import base64
import copy
import itertools
import re

import nbformat
import pytest
from notebook_files import NOTEBOOKS, ROOT, alike, differences, read, written

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
MOST = 120 * 1024  # bytes of an image
LINES = 40  # of a cell of code
# A machine's paths, addresses in memory, times of day.
OF_THE_RUN = re.compile(r"/(home|root|tmp|work|Users|usr)/|0x[0-9a-f]{6,}|\b20\d\d-\d\d-\d\d\b|\b\d\d:\d\d:\d\d\b")


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def faults(notebook):
    """What is wrong with a notebook's form, in words."""
    first, code = notebook.cells[0], code_of(notebook)
    said = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    # a line of a formula or a table is no heading, and there is no code in fences here
    levels = [len(found) for found in re.findall(r"^(#+) ", said, re.MULTILINE)]
    outputs = [output for cell in code for output in cell.outputs]
    images = [base64.b64decode(out.data["image/png"]) for out in outputs if "image/png" in out.get("data", {})]
    texts = [out.get("text", out.get("data", {}).get("text/plain", "")) for out in outputs]
    held = {
        "a title first": first.cell_type == "markdown" and first.source.startswith("# "),
        "a question in its second paragraph": "?" in [*first.source.split("\n\n"), ""][1],
        "one title": levels.count(1) == 1,
        "no level of headings left out": all(b <= a + 1 for a, b in itertools.pairwise(levels)),
        "run from top to bottom": [cell.execution_count for cell in code] == list(range(1, len(code) + 1)),
        "outputs": bool(code) and bool(code[-1].outputs) and sum(bool(cell.outputs) for cell in code) > len(code) / 2,
        "three figures": len(images) >= 3,
        "small PNG": all(image.startswith(b"\x89PNG") and len(image) < MOST for image in images),
        "figures that speak": all(
            out.data["text/plain"].startswith("Figure: ") for out in outputs if "image/png" in out.get("data", {})
        ),
        "no error or warning": all(out.output_type != "error" and out.get("name") != "stderr" for out in outputs),
        "short cells": all(cell.source.count("\n") < LINES for cell in code),
        "nothing of the run": not any(OF_THE_RUN.search(text) for text in [*texts, *(c.source for c in code)]),
    }
    return [name for name, holds in held.items() if not holds]


def test_there_are_notebooks():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{k:02}" for k in range(1, len(NOTEBOOKS) + 1)]
    assert len(NOTEBOOKS) >= 4


@each
def test_form(path):
    assert faults(read(path)) == []


@each
def test_the_file_is_what_the_tool_writes(path):
    """Ids follow from sources, metadata are few: so an edit by other means shows."""
    assert path.read_text() == written(read(path)), f"python tests/notebooks/notebook_files.py {path.name}"


@each
def test_links(path):
    """README names it; relative links in it lead somewhere."""
    assert f"(notebooks/{path.name})" in (ROOT / "README.md").read_text()
    said = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)]+)\)", said)
    assert links
    for link in links:
        assert link.startswith("https://") or (path.parent / link.partition("#")[0]).is_file(), link


def change(what):
    """A notebook of which one thing is wrong."""
    notebook = copy.deepcopy(read(NOTEBOOKS[0]))
    code = code_of(notebook)
    drawn = next(out for cell in code for out in cell.outputs if "image/png" in out.get("data", {}))
    match what:
        case "a question in its second paragraph":
            notebook.cells[0].source = notebook.cells[0].source.replace("?", ".")
        case "one title":
            notebook.cells[-1].source += "\n\n# Again"
        case "no level of headings left out":
            notebook.cells[-1].source += "\n\n#### Deep"
        case "run from top to bottom":
            code[3].execution_count = None
        case "outputs":
            code[-1].outputs = []
        case "figures that speak":
            drawn.data["text/plain"] = "<Figure size 640x480 with 1 Axes>"
        case "small PNG":
            drawn.data["image/png"] = base64.b64encode(b"\x89PNG" + bytes(MOST)).decode()
        case "no error or warning":
            code[0].outputs = [nbformat.v4.new_output("stream", name="stderr", text="UserWarning")]
        case "short cells":
            code[0].source += "\n1" * LINES
        case "nothing of the run":
            code[0].source += "\nopen('/home/me/data')"
    return notebook


@pytest.mark.parametrize(
    "what",
    ["a question in its second paragraph", "one title", "no level of headings left out", "run from top to bottom",
     "outputs", "figures that speak", "small PNG", "no error or warning", "short cells", "nothing of the run"],
)  # fmt: skip
def test_what_is_wrong_is_seen(what):
    assert what in faults(change(what))


SAME = [
    ("measured 1.58e-02", "measured 1.59e-02"),  # one unit in the last place
    ("1,234.5 steps", "1,234.6 steps"),
    ("9.99e-03  healthy", "1.00e-02  healthy"),
    ("│ a    x0.998 a block ───", "│ a  x0.999 a block ────────"),
    ("h1 ▁▂█ 3", "h1 ▁▃█ 3"),
    ("off by -0.0", "off by 0.0"),
]
OTHERS = [
    ("measured 1.58e-02", "measured 1.60e-02"),
    ("passes it at step 4", "passes it at step 5"),  # a count is exact
    ("verdict: healthy", "verdict: vanishing"),
    ("h1 0.5", "h2 0.5"),
    ("x0.998 a block", "x0.990 a block"),
    ("h1 ▁▂█", "h1 ▁▄█"),
    ("1.0 and 2.0", "1.0"),
    ("equal: True", "equal: False"),
    ("loss 0.5", "loss nan"),
    ("error 1.0e-07", "error 3.0e-07"),
]


@pytest.mark.parametrize(("was", "now"), SAME)
def test_the_last_digit_is_forgiven(was, now):
    assert alike(was, now)


@pytest.mark.parametrize(("was", "now"), OTHERS)
def test_what_is_said_otherwise_is_seen(was, now):
    assert not alike(was, now)


def test_where_digits_vary_words_do_not():
    assert alike("after 9 steps, 1.0e-07", "after 12 steps, 8.1e-08", only_words=True)
    assert not alike("after 9 steps", "after 9 epochs", only_words=True)


def test_stale_outputs_are_seen():
    before = read(NOTEBOOKS[0])
    assert differences(before, before) == []
    code = [k for k, cell in enumerate(before.cells) if cell.cell_type == "code" and cell.outputs]
    for index in code:  # an output that is gone, and text that is other
        after = copy.deepcopy(before)
        after.cells[index].outputs.pop()
        assert len(differences(before, after)) == 1
        after = copy.deepcopy(before)
        output = after.cells[index].outputs[-1]
        if "text" in output:
            output.text += "more"
        else:
            output.data["text/plain"] += "more"
        assert len(differences(before, after)) == 1
