"""Violins, schemes, norms: what is drawn are the report's numbers, and the title says what they say."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from drawn import corners, flow_of, grid, of, series, title
from tiers import quick
from torch import nn

import gradfunc as gf

PANELS = {"weights": "weights", "activations": "activations", "gradients": "gradient"}


@pytest.mark.parametrize("depth", quick([2, 6], [2, 6, 60]))
def test_violins_are_the_histograms(depth):
    report = flow_of(depth, torch.tanh)
    figure = gf.plot.flow(report)
    assert [axes.get_ylabel() for axes in figure.axes] == list(PANELS)
    for axes, field in zip(figure.axes, PANELS.values(), strict=True):
        (collection,) = of(axes, "violins")
        outlines = corners(collection)
        assert len(outlines) == depth
        for k, (row, outline) in enumerate(zip(report.rows, outlines, strict=True)):
            found = getattr(row, field)
            bins = len(found.histogram)
            right = outline[bins + 2 : 2 * (bins + 2)][::-1]  # upwards
            half = right[1:-1, 0] - k
            assert half == pytest.approx(np.array(found.histogram) / max(found.histogram) * 0.42, abs=1e-12)
            assert (right[0, 1], right[-1, 1]) == found.edges
        medians = of(axes, "medians")[0].get_ydata()
        assert list(medians) == [dict(getattr(row, field).quantiles)[0.5] for row in report.rows]


def test_the_title_says_what_was_found():
    report = flow_of()
    unwell = sum(row.verdict == "vanishing" for row in report.rows)
    factor = f"{report.trend.factor:.3g}"
    assert (
        title(gf.plot.flow(report))
        == f"Gradients shrink by a factor {factor} a layer: vanishing in {unwell} of 6 layers"
    )
    grows = dataclasses.replace(report, trend=dataclasses.replace(report.trend, factor=2.5, interval=(2.0, 3.0)))
    assert title(gf.plot.flow(grows)).startswith("Gradients grow by a factor 2.5 a layer")
    keeps = dataclasses.replace(report, trend=dataclasses.replace(report.trend, factor=0.98, interval=(0.9, 1.1)))
    assert title(gf.plot.flow(keeps)).startswith("Gradients change by a factor 0.98 a layer, not told from 1: ")
    single = dataclasses.replace(report, trend=None, verdict="healthy")
    assert title(gf.plot.flow(single)) == "Gradient flow: healthy"


def test_layers_with_a_verdict_are_shaded():
    report = flow_of()
    shades = list(gf.plot.flow(report).axes[1].patches)
    first = [k for k, row in enumerate(report.rows) if row.verdict != "healthy"]
    assert first
    assert [(patch.get_x(), patch.get_width()) for patch in shades] == [(first[0] - 0.5, len(first))]


def test_an_axis_by_decades_only_where_layers_differ():
    weights, _, gradients = gf.plot.flow(flow_of(60, torch.tanh)).axes
    assert (weights.get_yscale(), gradients.get_yscale()) == ("linear", "symlog")
    labels = [label.get_text() for label in gradients.get_yticklabels()]
    assert "0" in labels
    assert any(label.startswith("-10") for label in labels)


def test_names_of_sixty_layers():
    axes = gf.plot.flow(flow_of(60, torch.tanh)).axes[-1]
    assert [label.get_text() for label in axes.get_xticklabels()] == [row.name for row in flow_of(60, torch.tanh).rows]
    assert {label.get_rotation() for label in axes.get_xticklabels()} == {90}


def test_no_gradient_and_equal_entries():
    report = flow_of()
    constant = gf.diagnose.describe(torch.ones(5))
    empty = gf.diagnose.describe(torch.full((3,), math.nan))
    rows = (
        dataclasses.replace(report.rows[0], weights=constant),
        dataclasses.replace(report.rows[1], gradient=empty),
        *report.rows[2:],
    )
    weights, _, gradients = gf.plot.flow(dataclasses.replace(report, rows=rows)).axes
    assert corners(of(weights, "violins")[0])[0][:2].tolist() == [[-0.42, 1.0], [0.42, 1.0]]
    assert len(of(gradients, "violins")[0].get_paths()) == 5
    assert [text.get_text() for text in gradients.texts] == ["none"]


def test_a_shared_layer_has_its_weights_drawn_once():
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    x = torch.randn(8, 4)
    report = gf.diagnose.gradient_flow(nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh()), nn.MSELoss(), (x, x))
    counts = [len(of(axes, "violins")[0].get_paths()) for axes in gf.plot.flow(report).axes]
    assert counts == [1, 2, 1]


def test_schemes_side_by_side():
    reports = {"sigmoid": flow_of(), "tanh": flow_of(6, torch.tanh), "relu": flow_of(6, torch.relu)}
    figure = gf.plot.schemes(reports)
    assert len(figure.axes) == 9
    for k, (name, report) in enumerate(reports.items()):
        column = figure.axes[k::3]
        assert (
            column[0].get_title(loc="left").startswith(f"{name}\nx{report.trend.factor:.3g} a layer, {report.verdict}")
        )
        assert [len(of(axes, "violins")[0].get_paths()) for axes in column] == [6, 6, 6]
    for row in range(3):
        assert len({axes.get_ylim() for axes in figure.axes[3 * row : 3 * row + 3]}) == 1
    factors = {name: report.trend.factor for name, report in reports.items()}
    best = min(factors, key=lambda name: abs(math.log(factors[name])))
    assert title(figure).startswith(f"{best} keeps gradients best: x{factors[best]:.3g} a layer")


def test_norms_line_and_theory():
    report = flow_of()
    above, below = gf.plot.gradient_norms(report).axes
    _, y = series(above, "measured")
    assert y == pytest.approx([math.log10(row.norm) for row in report.rows])
    _, line = series(above, f"x{report.trend.factor:.3g} a layer back")
    assert np.diff(line) == pytest.approx(-math.log10(report.trend.factor))
    assert line.mean() == pytest.approx(y.mean())
    _, theory = series(above, "theory")
    expected = [math.log10(row.theory) for row in report.rows[:0:-1] if row.theory]
    assert theory[0] == pytest.approx(y[-1])
    assert np.diff(theory) == pytest.approx(expected[: len(theory) - 1])
    assert series(below, "measured")[1] == pytest.approx([math.log10(row.ratio) for row in report.rows])


def test_factors_of_a_grid_beside_theory():
    report = grid()
    figure = gf.plot.factors(report)
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[:3] == ["relu, He", "relu, He, layer norm", "relu, small"]
    x, y = series(axes, "theory")
    assert x == pytest.approx([math.log10(report.rows[int(k)].theory) for k in y])
    seen = {}
    for verdict in {row.verdict for row in report.rows if row.factor}:
        x, y = series(axes, verdict)
        assert x == pytest.approx([math.log10(report.rows[int(k)].factor) for k in y])
        seen |= {int(k): verdict for k in y}
    assert seen == {k: row.verdict for k, row in enumerate(report.rows) if row.factor}
    best = min(range(8), key=lambda k: abs(math.log(report.rows[k].factor)))
    healthy = sum(row.verdict == "healthy" for row in report.rows)
    assert title(figure).startswith(f"{healthy} of 8 nets ")
    assert f"; {names[best]} is nearest to keeping gradients: x{report.rows[best].factor:.3g} a block" in title(figure)


BAD = {
    "flow": (lambda: gf.plot.flow(3), TypeError, r"gf\.plot\.flow\(report\): got an int"),
    "norms": (lambda: gf.plot.gradient_norms(None), TypeError, "got None"),
    "factors": (lambda: gf.plot.factors(flow_of()), TypeError, "got a FlowReport"),
    "schemes": (lambda: gf.plot.schemes([flow_of()]), TypeError, "got a list"),
    "one scheme": (lambda: gf.plot.schemes({"a": flow_of()}), ValueError, "got 1 reports; expected two or more"),
    "scheme": (lambda: gf.plot.schemes({"a": flow_of(), "b": 1}), TypeError, "got an int"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, says = BAD[name]
    with pytest.raises(error, match=says):
        call()
