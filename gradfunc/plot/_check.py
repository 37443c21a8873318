"""The check: how large each difference is, on its error scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._errors import kind_of, message
from ..testing import CheckReport, CheckRow
from ._dots import Dots, dots, heights
from ._style import PALETTE, SIGNS, drawing, new, say

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@drawing
def checks(report: CheckReport) -> Figure:
    """Every check's largest difference over its error scale, and the same at the other precision.

    Rounding shrinks from one to the other, what is wrong stays. Checks without a number are listed without a sign.

    Raises:
        ImportError: matplotlib is not there.
        TypeError: no `CheckReport`.

    Example:
        >>> import torch, gradfunc as gf
        >>> model = torch.nn.Linear(4, 3)
        >>> batch = torch.randn(8, 4), torch.randint(3, (8,))
        >>> figure = gf.plot.checks(gf.testing.check_gradients(model, torch.nn.CrossEntropyLoss(), batch))
        >>> " checks hold" in figure.get_suptitle()
        True
    """
    if not isinstance(report, CheckReport):
        expected = "a report of gf.testing.certify or check_gradients"
        raise TypeError(message("gf.plot.checks(report)", got=kind_of(report), expected=expected))
    rows = report.rows
    figure = new(10.0, heights(len(rows)))
    axes = figure.subplots()
    series = {}
    for verdict in dict.fromkeys(row.verdict for row in rows):
        values = [_relative(row) if row.verdict == verdict else None for row in rows]
        if any(value is not None for value in values):
            series[verdict] = Dots(values, *SIGNS.get(verdict, ("black", "s")), 6.0)
    if any(row.other is not None for row in rows):
        series[f"in {report.other_dtype}"] = Dots([row.other for row in rows], "black", "|", 8.0)
    dots(axes, [f"{row.check}: {row.compares}" for row in rows], series, most=72)
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        if row.verdict == "wrong":
            label.set_color(PALETTE["vermilion"])
            label.set_fontweight("bold")
    axes.set_xlabel("largest difference over its error scale")
    ran = sum(row.verdict not in ("cannot tell", "not run") for row in rows)
    where = ", ".join(dict.fromkeys(row.parameter or row.check for row in report.faults))
    hold = f"{ran} of {len(rows)} checks hold"
    told = f"{len(report.faults)} of {len(rows)} checks found a fault: {where}" if report.faults else hold
    return say(figure, told, f"{report.title} ({report.batch_size} samples, {report.dtype}). Bold: faults.")


def _relative(row: CheckRow) -> float | None:
    if row.measured is None:
        return None
    return row.measured / row.scale if row.scale else row.measured
