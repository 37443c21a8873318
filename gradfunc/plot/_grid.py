"""Nets on a grid: what each multiplies gradients by, beside theory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .._errors import kind_of, message
from ..diagnose import GridReport, GridRow
from ._dots import Dots, dots, heights
from ._style import GREY, drawing, new, say, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VERDICTS = {
    "healthy": ("blue", "o"),
    "saturated": ("sky", "s"),
    "vanishing": ("orange", "v"),
    "exploding": ("vermilion", "^"),
    "dead": ("black", "X"),
    "non-finite": ("purple", "X"),
}


@drawing
def factors(report: GridReport) -> Figure:
    """What a block of each net multiplies the gradient's norm by on the way back, measured and in theory.

    The axis is logarithmic; the line at 1 is a gradient that keeps its norm. Nets without a factor have no sign.

    Raises:
        ImportError: matplotlib is not there.
        TypeError: no `GridReport`.

    Example:
        >>> import gradfunc as gf
        >>> grid = gf.diagnose.flow_grid(["relu", "sigmoid"], inits={"He": gf.init.kaiming_normal()}, norms=[None])
        >>> gf.plot.factors(grid).get_suptitle().startswith("2 of 2 nets are healthy; relu, He is nearest")
        True
    """
    if not isinstance(report, GridReport):
        call = "gf.plot.factors(report)"
        raise TypeError(message(call, got=kind_of(report), expected="a report of gf.diagnose.flow_grid"))
    figure = new(8.0, heights(len(report.rows)))
    axes = figure.subplots()
    series = {"theory": Dots([row.theory for row in report.rows], "black", "|", 14.0)}
    for verdict, (colour, marker) in VERDICTS.items():
        values = [row.factor if row.verdict == verdict else None for row in report.rows]
        if any(value is not None for value in values):
            series[verdict] = Dots(values, colour, marker, 6.0)
    dots(axes, [_name(report, row) for row in report.rows], series)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_xlabel("what a block multiplies the gradient's norm by, on the way back")
    return say(figure, _title(report), f"{report.samples} samples; in colour: measured. Line at 1: the norm is kept.")


def _name(report: GridReport, row: GridRow) -> str:
    """What sets a net apart from the others."""
    parts = [row.activation, row.init, *([f"{row.norm} norm"] if row.norm else [])]
    if len({(other.depth, other.width) for other in report.rows}) > 1:
        parts.append(f"{row.depth} x {row.width}")
    return ", ".join(parts)


def _title(report: GridReport) -> str:
    healthy = sum(row.verdict == "healthy" for row in report.rows)
    told = f"{healthy} of {len(report.rows)} nets {'is' if healthy == 1 else 'are'} healthy"
    known = [(abs(math.log(row.factor)), k) for k, row in enumerate(report.rows) if row.factor]
    if not known:
        return told
    best = report.rows[min(known)[1]]
    assert best.factor is not None
    return f"{told}; {_name(report, best)} is nearest to keeping gradients: x{short(best.factor)} a block"
