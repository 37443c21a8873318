"""What holds of every figure: its own style, no global state, the same bytes, its palette, labels, no cut text."""

from __future__ import annotations

import itertools
import subprocess
import sys
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from drawn import FIGURES, flow_of, title
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from tiers import quick

import gradfunc as gf
from gradfunc.plot import _style
from gradfunc.plot._dots import Dots, dots
from gradfunc.plot._style import GREY, LIGHT, decades, elided, new, power_of_ten, short, style, told_apart

CHROME = {"#000000", "#ffffff", "#e5e5e5", "#eeeeee", "#cccccc", "#b0b0b0", "#b8b8b8", GREY.lower(), LIGHT.lower()}


@pytest.fixture(scope="module")
def figures():
    return {name: make() for name, make in FIGURES.items()}


@pytest.mark.parametrize("name", quick(["flow", "losses", "discrepancies", "clip_geometry", "eigenvalues"], FIGURES))
def test_the_same_report_gives_the_same_bytes(figures, name):
    assert gf.plot.svg(figures[name]) == gf.plot.svg(FIGURES[name]())


def test_without_its_salt_bytes_would_differ(monkeypatch):
    """The law above can fail."""
    monkeypatch.setattr(_style, "_RC", {**_style._RC, "svg.hashsalt": None})
    assert gf.plot.svg(gf.plot.clip_geometry()) != gf.plot.svg(gf.plot.clip_geometry())


@pytest.mark.parametrize("name", FIGURES)
def test_title_axes_and_reading(figures, name):
    figure = figures[name]
    assert len(title(figure)) > 10
    assert len(figure.get_label()) > 10
    for axes in figure.axes:
        if axes.get_subplotspec() is None or "colorbar" in str(axes.get_label()):
            continue
        spec = axes.get_subplotspec()
        if spec.is_last_row():
            assert axes.get_xlabel(), f"{name}: an axis without a label"
    first = figure.axes[0]
    labelled = first.get_ylabel() or any(label.get_text() for label in first.get_yticklabels())
    assert labelled


@pytest.mark.parametrize("name", FIGURES)
def test_colours_are_of_the_palette(figures, name):
    known = {to_hex(colour) for colour in gf.plot.PALETTE.values()} | CHROME
    root = ElementTree.fromstring(gf.plot.svg(figures[name]))
    seen = set()
    for element in root.iter():
        for part in element.get("style", "").split(";"):
            key, _, value = part.partition(":")
            if key.strip() in ("fill", "stroke") and value.strip().startswith("#"):
                seen.add(value.strip().lower())
    if name == "flow_over_training":  # its cells are of one sequential map
        ramp = {to_hex(mpl.colormaps[_style.SEQUENTIAL](k)) for k in range(256)}
        assert seen & ramp
        seen -= ramp
    assert seen <= known, seen - known


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_is_cut_or_on_other_text(figures, name):
    figure = figures[name]
    renderer = FigureCanvasAgg(figure).get_renderer()
    width, height = figure.bbox.width, figure.bbox.height
    ticks = []
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            labels = [t for t in axis.get_ticklabels() if t.get_text() and t.get_visible()]
            low, high = sorted(axis.get_view_interval())
            at = list(axis.get_ticklocs())
            shown = [t for t, x in zip(labels, at, strict=False) if low <= x <= high] if len(at) == len(labels) else []
            boxes = [t.get_window_extent(renderer) for t in shown]
            ticks.append(boxes)
    texts = [figure._suptitle, figure._supxlabel, *(axes.title for axes in figure.axes)]
    texts += [axis.label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    for text in texts:
        if text is None or not text.get_text() or not text.get_visible():
            continue
        box = text.get_window_extent(renderer)
        assert box.x0 >= -1, text.get_text()
        assert box.x1 <= width + 1, text.get_text()
        assert box.y0 >= -1, text.get_text()
        assert box.y1 <= height + 1, text.get_text()
    for boxes in ticks:
        for a, b in itertools.pairwise(boxes):
            # overlap of more than a hair in both directions
            across = min(a.x1, b.x1) - max(a.x0, b.x0)
            along = min(a.y1, b.y1) - max(a.y0, b.y0)
            assert across <= 1 or along <= 1, name


def test_the_users_style_is_neither_used_nor_changed():
    usual = gf.plot.svg(gf.plot.clip_geometry())
    with mpl.rc_context({"axes.facecolor": "black", "font.size": 30, "svg.fonttype": "path", "axes.grid": False}):
        before = dict(mpl.rcParams)
        assert gf.plot.svg(gf.plot.clip_geometry()) == usual
        gf.plot.figures(flow_of())
        assert dict(mpl.rcParams) == before


def test_the_style_ends_with_an_error():
    before = dict(mpl.rcParams)
    with pytest.raises(TypeError, match=r"gf\.plot\.flow\(report\)"):
        gf.plot.flow("report")
    assert dict(mpl.rcParams) == before


def test_nothing_is_imported_before_it_is_drawn_and_pyplot_never():
    code = (
        "import sys, gradfunc as gf; assert 'matplotlib' not in sys.modules; figure = gf.plot.clip_geometry(); "
        "gf.plot.svg(figure); assert 'matplotlib' in sys.modules; assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "draw",
    [gf.plot.clip_geometry, lambda: gf.plot.figures(flow_of()), lambda: gf.plot.svg(None)],
    ids=["a figure", "figures", "svg"],
)
def test_without_matplotlib_the_extra_is_named(monkeypatch, draw):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"^gf\.plot needs matplotlib: pip install 'gradfunc\[plot\]'$"):
        draw()


def test_files(tmp_path):
    figure = gf.plot.clip_geometry()
    for ending, head in ((".svg", b"<?xml"), (".png", b"\x89PNG"), (".pdf", b"%PDF")):
        paths = [gf.plot.save(figure, tmp_path / f"{name}{ending}") for name in "ab"]
        first, second = (path.read_bytes() for path in paths)
        assert first.startswith(head)
        assert first == second
    assert (tmp_path / "a.svg").read_text() == gf.plot.svg(figure)
    with pytest.raises(ValueError, match=r"gf\.plot\.save\(figure, 'a\.gif'\): got ending='gif'"):
        gf.plot.save(figure, "a.gif")


def test_words_of_numbers_and_names():
    assert [short(x) for x in (0.5774, 3.2e-5, 1e6, 0.0)] == ["0.577", "3.2e-5", "1e6", "0"]
    assert power_of_ten(-12) == "10⁻¹²"
    assert decades(-30.2, 2.1, 4) == [-31, -19, -7, 5]
    assert elided("short") == "short"
    assert elided("transformer.h.0.attention.c_attn", 16) == "transfo…n.c_attn"
    assert len(elided("x" * 99, 26)) == 26


def test_long_names_stay_apart():
    names = [f"transformer.blocks.{k}.attention.output.projection" for k in range(12)]
    assert told_apart(names) == [f"…{k}…" for k in range(12)]
    names = ["transformer.blocks.0.mlp.fc_in.weight.long", "transformer.blocks.10.norm"]
    assert told_apart(names) == ["…0.mlp.fc_in.weight.long", "…10.norm"]
    assert told_apart(["a", "ab"]) == ["a", "ab"]


def test_names_are_no_mathematics():
    figure = gf.plot.schemes({"$x_{broken$": flow_of(), "a_b^c": flow_of(6)})
    assert "$x_{broken$" in gf.plot.svg(figure)


def test_dots_have_places_for_zero_and_infinity():
    with style():
        axes = new(4, 3).subplots()
        dots(axes, ["a", "b", "c", "d"], {"x": Dots([0.0, 1e-3, None, float("inf")], "blue", "o", 5.0)})
    x, y = axes.lines[0].get_data()
    assert list(y) == [0, 1, 3]
    assert x[0] < x[1] == -3 < x[2]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels[0] == "0"
    assert labels[-1] == "inf"
