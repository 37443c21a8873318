"""The benchmark: what each contender costs, as a ratio to one plain backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._errors import kind_of, message
from ..bench import BenchReport, BenchRow
from ..bench._report import quartiles
from ._style import GREY, PALETTE, drawing, elided, new, round_numbers, say, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BASE = "plain"


@drawing
def costs(report: BenchReport) -> Figure:
    """Medians of time over that of one plain backward pass, a panel a workload; whiskers are quartiles.

    The axis is logarithmic, and one for all panels. What failed or was wrong is hatched and said so.

    Raises:
        ImportError: matplotlib is not there.
        TypeError, ValueError: no `BenchReport`; nothing was timed.

    Example:
        >>> import gradfunc as gf
        >>> row = gf.bench.BenchRow("mlp", "gradfunc", "clip-and-sum", "rounding", ratios=(1.2, 1.3, 1.25))
        >>> report = gf.bench.BenchReport((row,), {"mlp": "784-1024-1024-10, B = 256"}, 3, 1, {})
        >>> gf.plot.costs(report).get_suptitle()
        'gradfunc: clip-and-sum costs 1.25 times a plain backward pass'
    """
    call = "gf.plot.costs(report)"
    if not isinstance(report, BenchReport):
        raise TypeError(message(call, got=kind_of(report), expected="a report of gf.bench.run"))
    panels: dict[str, list[BenchRow]] = {}
    for row in report.rows:
        if row.contender != BASE:
            panels.setdefault(row.workload, []).append(row)
    middles = [found[1] for row in report.rows if (found := quartiles(row.ratios))]
    if not panels or not middles:
        raise ValueError(message(call, got="a report without timed contenders", expected="one or more"))
    from matplotlib.ticker import NullLocator

    counts = [len(rows) for rows in panels.values()]
    figure = new(8.0, 1.6 + sum(0.25 * count + 0.75 for count in counts))
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=[count + 0.5 for count in counts])
    low, high = min([1.0, *middles]), max([1.0, *middles])
    ticks = round_numbers(low / 1.3, 2.2 * high)
    for axes, (workload, rows) in zip(grid[:, 0], panels.items(), strict=True):
        _panel(axes, rows)
        axes.tick_params(labelbottom=True)
        axes.set_xscale("log")
        axes.set_xticks(ticks, [short(x) for x in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(elided(f"{workload}: {report.workloads.get(workload, '')}", 95))
    axes.set_xlim(low / 1.3, high * 2.2)
    axes.set_xlabel("time over that of one plain backward pass")
    how = f"Bars: medians of {report.rounds} rounds; whiskers: quartiles. Line at 1: the plain backward pass."
    return say(figure, _title(report), how)


def _panel(axes: Axes, rows: list[BenchRow]) -> None:
    for k, row in enumerate(rows):
        wrong = row.verdict in ("wrong", "failed", "refused")
        own = row.contender.startswith("gradfunc")
        colour = PALETTE["blue"] if own else PALETTE["sky"]
        found = quartiles(row.ratios)
        if found is None:
            axes.annotate(f" {row.verdict or 'not timed'}", (1, k), va="center", fontsize=8, color=PALETTE["vermilion"])
            continue
        low, middle, top = found
        axes.barh(k, middle - 1, left=1, height=0.7, color=colour, hatch="////" if wrong else None,
                  edgecolor="white", linewidth=0)  # fmt: skip
        axes.errorbar(middle, k, xerr=[[middle - low], [top - middle]], color=PALETTE["black"], capsize=2, linewidth=1)
        text = f"{middle:.2f} x" if middle < 9.995 else f"{middle:,.0f} x"
        axes.annotate(text + (f"  {row.verdict}" if wrong else ""), (max(top, 1.0), k), xytext=(5, 0),
                      textcoords="offset points", va="center", fontsize=8,
                      color=PALETTE["vermilion"] if wrong else PALETTE["black"])  # fmt: skip
    axes.axvline(1, color=GREY, linewidth=1)
    axes.set_yticks(range(len(rows)), [elided(f"{row.quantity}: {row.contender}", 40) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)


def _title(report: BenchReport) -> str:
    wrong = [row for row in report.rows if row.verdict in ("wrong", "failed") and not row.peer]
    if wrong:
        return f"{wrong[0].contender} {'is wrong' if wrong[0].verdict == 'wrong' else 'failed'} on {wrong[0].workload}"
    for name in ("gradfunc", *(row.contender for row in report.rows if row.contender != BASE)):
        rows = [row for row in report.rows if row.contender == name and row.ratios]
        if rows:
            rows = [row for row in rows if row.quantity == rows[0].quantity]
            ratios = sorted(found[1] for row in rows if (found := quartiles(row.ratios)))
            size = f"{ratios[0]:.2f}" if len(ratios) == 1 else f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
            return f"{name}: {rows[0].quantity} costs {size} times a plain backward pass"
    return "Nothing was timed"
