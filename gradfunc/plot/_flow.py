"""Gradient flow: violins layer by layer, schemes side by side, norms over depth."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .._errors import kind_of, message
from ..diagnose import Distribution, FlowReport, FlowRow
from ._style import GREY, LIGHT, PALETTE, drawing, elided, logarithmic, named_layers, new, say, short
from ._violins import scale, violins

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = {"weights": "blue", "activations": "green", "gradients": "vermilion"}
READING = (
    "Width: share of entries, in bins of equal width. Thick bar: quartiles; line: 5 to 95 %; dot: median. Shaded: "
    "layers with a verdict. Gradients are of the mean loss, with respect to the weights."
)


@drawing
def flow(report: FlowReport) -> Figure:
    """Weights, activations and gradients as violins, layer by layer in forward order.

    An axis goes by decades on both sides of 0 where the RMS of layers differs by more than a factor of 30. Weights and
    gradients of a layer with several uses are drawn at its first.

    Raises:
        ImportError: matplotlib is not there.
        TypeError: no `FlowReport`.

    Example:
        >>> import torch, gradfunc as gf
        >>> from torch import nn
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator ...>
        >>> layers = [part for _ in range(8) for part in (nn.Linear(32, 32), nn.Sigmoid())]
        >>> x = torch.randn(16, 32)
        >>> report = gf.diagnose.gradient_flow(nn.Sequential(*layers), nn.MSELoss(), (x, x))
        >>> figure = gf.plot.flow(report)
        >>> figure.get_suptitle().startswith("Gradients shrink by a factor 0.1"), len(figure.axes)
        (True, 3)
    """
    _check("gf.plot.flow(report)", report)
    figure = new(float(np.clip(2.4 + 0.28 * len(report.rows), 7.0, 15.0)), 8.0)
    for axes, panel in zip(figure.subplots(3, 1, sharex=True), PANELS, strict=True):
        _panel(axes, report.rows, panel)
        axes.set_ylabel(panel)
    _say_verdicts(figure.axes[0], report.rows)
    named_layers(axes, [row.name for row in report.rows])
    axes.set_xlabel("layer, in forward order")
    return say(figure, finding(report), f"{report.batch_size} samples, loss {short(report.loss)}. {READING}")


@drawing
def schemes(reports: Mapping[str, FlowReport]) -> Figure:
    """Flows side by side, such as of one model with several initialisations: a column each, axes shared along rows.

    Args:
        reports: `{name: report}`, two or more.

    Raises:
        ImportError: matplotlib is not there.
        TypeError, ValueError: no mapping of reports; fewer than two.

    Example:
        >>> import torch, gradfunc as gf
        >>> from torch import nn
        >>> def net(activation):
        ...     return nn.Sequential(*[part for _ in range(6) for part in (nn.Linear(32, 32), activation())])
        >>> x = torch.randn(16, 32)
        >>> reports = {kind.__name__: gf.diagnose.gradient_flow(net(kind), nn.MSELoss(), (x, x))
        ...            for kind in (nn.Sigmoid, nn.Tanh)}
        >>> gf.plot.schemes(reports).get_suptitle().startswith("Tanh keeps gradients best")
        True
    """
    call = "gf.plot.schemes(reports)"
    if not isinstance(reports, Mapping):
        raise TypeError(message(call, got=kind_of(reports), expected="{name: report of gf.diagnose.gradient_flow}"))
    if len(reports) < 2:
        raise ValueError(message(call, got=f"{len(reports)} reports", expected="two or more"))
    for report in reports.values():
        _check(call, report)
    most = max(len(report.rows) for report in reports.values())
    width = float(np.clip(1.2 + len(reports) * (1.3 + 0.07 * most), 7.0, 16.0))
    figure = new(width, 8.0)
    grid = figure.subplots(3, len(reports), sharey="row", squeeze=False)
    for column, (name, report) in zip(grid.T, reports.items(), strict=True):
        for axes, panel in zip(column, PANELS, strict=True):
            _panel(axes, report.rows, panel)
            axes.set_xticks([])
            axes.set_xlim(-0.7, len(report.rows) - 0.3)
        factor = f"x{short(report.trend.factor)} a layer" if report.trend else "no trend"
        column[0].set_title(f"{elided(name, 30)}\n{factor}, {report.verdict}")
        column[-1].set_xlabel(f"{len(report.rows)} layers")
    for axes, panel in zip(grid[:, 0], PANELS, strict=True):
        axes.set_ylabel(panel)
    for row, panel in zip(grid, PANELS, strict=True):
        _same_scale(row, [_of(row_, panel) for report in reports.values() for row_ in report.rows])
    return say(figure, _compared(reports), READING)


@drawing
def gradient_norms(report: FlowReport) -> Figure:
    """`|dL/da|` at each layer, with the line through its logarithm; below, `|gradient| / |weight|`.

    Where theory gives a factor for a layer, it is drawn from the last layer with one on the way back.

    Raises:
        ImportError: matplotlib is not there.
        TypeError: no `FlowReport`.

    Example:
        >>> import torch, gradfunc as gf
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> report = gf.diagnose.gradient_flow(net, nn.MSELoss(), (torch.randn(16, 8), torch.randn(16, 1)))
        >>> [axes.get_ylabel() for axes in gf.plot.gradient_norms(report).axes]
        ['|dL/da|', '|gradient| / |weight|']
    """
    _check("gf.plot.gradient_norms(report)", report)
    rows = report.rows
    figure = new(float(np.clip(2.4 + 0.28 * len(rows), 7.0, 15.0)), 5.6)
    above, below = figure.subplots(2, 1, sharex=True)
    norms = {k: row.norm for k, row in enumerate(rows) if row.change is not None and row.norm}
    _logs(above, norms, "vermilion", "o", "measured")
    _line(above, report, norms)
    _theory(above, rows, norms)
    above.set_ylabel("|dL/da|")
    if norms:
        above.legend()
    ratios = {k: row.ratio for k, row in enumerate(rows) if row.ratio and row.use == 1}
    _logs(below, ratios, "blue", "s", "measured")
    below.set_ylabel("|gradient| / |weight|")
    for axes in (above, below):
        _shade(axes, rows)
        axes.grid(axis="x", visible=False)
    _say_verdicts(above, rows)
    named_layers(below, [row.name for row in rows])
    below.set_xlabel("layer, in forward order")
    how = "Above: norm of the gradient with respect to each layer's activations; line: least squares on its logarithm. "
    return say(figure, finding(report), how + "Shaded: layers with a verdict.")


def finding(report: FlowReport) -> str:
    """What the title says."""
    unwell = sum(row.verdict == report.verdict for row in report.rows)
    told = "healthy" if report.ok else f"{report.verdict} in {unwell} of {len(report.rows)} layers"
    if report.trend is None:
        return f"Gradient flow: {told}"
    factor, interval = report.trend.factor, report.trend.interval
    if interval and interval[0] <= 1 <= interval[1]:
        return f"Gradients change by a factor {short(factor)} a layer, not told from 1: {told}"
    return f"Gradients {'shrink' if factor < 1 else 'grow'} by a factor {short(factor)} a layer: {told}"


def _compared(reports: Mapping[str, FlowReport]) -> str:
    factors = {name: report.trend.factor for name, report in reports.items() if report.trend}
    if len(factors) < 2:
        return "Gradient flow, scheme by scheme"
    order = sorted(factors, key=lambda name: abs(math.log(factors[name])) if factors[name] else math.inf)
    others = [factors[name] for name in order[1:]]
    apart = f"x{short(others[0])}" if len(others) == 1 else f"x{short(min(others))} to x{short(max(others))}"
    return f"{order[0]} keeps gradients best: x{short(factors[order[0]])} a layer on the way back, against {apart}"


def _check(call: str, report: object) -> None:
    if not isinstance(report, FlowReport):
        raise TypeError(message(call, got=kind_of(report), expected="a report of gf.diagnose.gradient_flow"))


def _of(row: FlowRow, panel: str) -> Distribution | None:
    if panel == "activations":
        return row.activations
    return row.weights if panel == "weights" else row.gradient


def _panel(axes: Axes, rows: Sequence[FlowRow], panel: str) -> None:
    _shade(axes, rows)
    axes.grid(axis="x", visible=False)
    found = {k: _of(row, panel) for k, row in enumerate(rows) if row.use == 1 or panel == "activations"}
    violins(axes, found, PALETTE[PANELS[panel]])


def _unwell(rows: Sequence[FlowRow]) -> list[tuple[str, int, int]]:
    """Runs of layers with one verdict: `(verdict, first, last)`."""
    runs = []
    for verdict, group in itertools.groupby(enumerate(rows), key=lambda pair: pair[1].verdict):
        if verdict != "healthy":
            members = [k for k, _ in group]
            runs.append((verdict, members[0], members[-1]))
    return runs


def _shade(axes: Axes, rows: Sequence[FlowRow]) -> None:
    for _, first, last in _unwell(rows):
        axes.axvspan(first - 0.5, last + 0.5, color=LIGHT, alpha=0.5, linewidth=0, zorder=0)


def _say_verdicts(axes: Axes, rows: Sequence[FlowRow]) -> None:
    """Above the shades, where there is room for a word."""
    for verdict, first, last in _unwell(rows):
        if last - first >= 0.025 * len(rows) or len(rows) < 13:
            axes.annotate(verdict, ((first + last) / 2, 1.0), xycoords=("data", "axes fraction"), ha="center",
                          va="bottom", fontsize=7, color=GREY)  # fmt: skip


def _logs(axes: Axes, values: Mapping[int, float], colour: str, marker: str, label: str) -> None:
    logs = [math.log10(value) for value in values.values()]
    axes.plot(list(values), logs, marker, color=PALETTE[colour], markersize=4, label=label)
    if logs:
        logarithmic(axes.yaxis, min(logs), max(logs), 6)


def _line(axes: Axes, report: FlowReport, norms: Mapping[int, float]) -> None:
    if report.trend is None or len(norms) < 2 or not report.trend.factor:
        return
    at, logs = list(norms), [math.log10(norm) for norm in norms.values()]
    compared = [k for k, row in enumerate(report.rows) if row.change is not None]
    places = np.array([compared.index(k) for k in at], dtype=float)
    line = np.mean(logs) - math.log10(report.trend.factor) * (places - places.mean())
    axes.plot(at, line, color=PALETTE["black"], linewidth=1, label=f"x{short(report.trend.factor)} a layer back")


def _theory(axes: Axes, rows: Sequence[FlowRow], norms: Mapping[int, float]) -> None:
    at = list(norms)
    points = [(at[-1], math.log10(norms[at[-1]]))] if at else []
    for k, before in zip(at[:0:-1], at[-2::-1], strict=False):
        factor = rows[k].theory
        if not factor:
            break
        points.append((before, points[-1][1] + math.log10(factor)))
    if len(points) > 1:
        x, y = zip(*points, strict=True)
        axes.plot(x, y, "--", color=PALETTE["purple"], label="theory")


def _same_scale(row: Sequence[Axes], found: Sequence[Distribution | None]) -> None:
    """Of axes that share y: the scale of all their distributions."""
    scale(row[0], [d for d in found if d is not None and d.histogram])
