"""The audit: how far estimators differ, and what closed forms predict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._errors import kind_of, message
from ..audit import ReductionReport
from ..audit._demo import DemoReport
from ._dots import Dots, dots, heights
from ._style import PALETTE, SIGNS, drawing, new, say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VERDICTS = ("exact", "rounding", "wrong", "cannot tell")


@drawing
def discrepancies(report: ReductionReport) -> Figure:
    """The largest discrepancy of every pair of estimators, with bound, other precision and predictions.

    Discrepancies are differences of an entry of the gradient, so they have its unit. Pairs that did not run are listed
    without a sign.

    Raises:
        ImportError: matplotlib is not there.
        TypeError: no `ReductionReport`.

    Example:
        >>> import torch, gradfunc as gf
        >>> model = torch.nn.Linear(4, 3)
        >>> batch = torch.randn(8, 4), torch.randint(3, (8,))
        >>> figure = gf.plot.discrepancies(gf.audit.reductions(model, torch.nn.CrossEntropyLoss(), batch))
        >>> " ".join(figure.get_suptitle().split())
        "The reductions agree: no difference beyond rounding in 10 pairs (the forum's loop differs in 5 more)"
    """
    if not isinstance(report, ReductionReport):
        call = "gf.plot.discrepancies(report)"
        raise TypeError(message(call, got=kind_of(report), expected="a report of gf.audit.reductions"))
    figure = new(8.0, heights(len(report.pairs)))
    axes = figure.subplots()
    series = {
        f"in {report.other_dtype}": Dots([pair.other for pair in report.pairs], "black", "|", 7.0),
        "rounding makes at most": Dots([pair.bound for pair in report.pairs], "green", "4", 9.0),
    }
    for verdict in VERDICTS:
        values = [pair.discrepancy if pair.verdict == verdict else None for pair in report.pairs]
        if any(value is not None for value in values):
            series[verdict] = Dots(values, *SIGNS[verdict], 6.0)
    predicted = [pair.causes[0].predicted if pair.causes else None for pair in report.pairs]
    series["predicted by its cause"] = Dots(predicted, "purple", "D", 10.0, filled=False)
    there = {k: v for k, v in series.items() if any(value is not None for value in v.values)}
    dots(axes, [f"{pair.a} - {pair.b}" for pair in report.pairs], there)
    for label, pair in zip(axes.get_yticklabels(), report.pairs, strict=True):
        if pair.fault:
            label.set_color(PALETTE["vermilion"])
            label.set_fontweight("bold")
    axes.set_xlabel(f"largest difference of an entry of the mean gradient ({report.dtype})")
    return say(figure, _title(report), f"{report.batch_size} samples. Bold: pairs at fault.")


@drawing
def mechanisms(report: DemoReport) -> Figure:
    """What `gradfunc audit` shows of every mechanism, triggered once: measured beside what its closed form predicts."""
    rows = [row for row in report.mechanisms if row.measured is not None]
    figure = new(8.0, heights(len(rows)))
    axes = figure.subplots()
    series = {
        "predicted": Dots([row.predicted for row in rows], "purple", "D", 9.0, filled=False),
        "measured": Dots([row.measured for row in rows], "blue", "o", 5.0),
    }
    dots(axes, [row.mechanism for row in rows], series)
    axes.set_xlabel("largest difference of an entry of the mean gradient")
    found = sum(row.found is True for row in rows)
    title = f"{'All' if found == len(rows) else found} {'' if found == len(rows) else 'of '}{len(rows)} mechanisms"
    return say(figure, f"{title} are found by their closed forms", "Each is made to act once, on a problem of its own.")


def _title(report: ReductionReport) -> str:
    count = len(report.pairs)
    wrong = sum(pair.fault for pair in report.pairs)
    if wrong:
        why = ", ".join(report.causes) or "no closed form matches"
        return f"{wrong} of {count} pairs disagree beyond rounding: {why}"
    if any(pair.verdict == "cannot tell" and not pair.demonstration for pair in report.pairs):
        return f"No pair of {count} is shown to be wrong; some could not be told"
    if report.causes:
        return "The reductions differ only by the weights that the loss declares"
    planted = sum(pair.demonstration and pair.verdict == "wrong" for pair in report.pairs)
    own = sum(not pair.demonstration for pair in report.pairs)
    besides = f" (the forum's loop differs in {planted} more)" if planted else ""
    return f"The reductions agree: no difference beyond rounding in {own} pairs{besides}"
