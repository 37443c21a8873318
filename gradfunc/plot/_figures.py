"""The figures that fit a report."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from .._errors import kind_of, message
from .._report import Report
from ..audit import ReductionReport
from ..audit._demo import DemoReport as AuditDemo
from ..bench import BenchReport
from ..diagnose import FlowReport, GridReport, LinearRecurrence, RecurrenceReport, RemedyReport
from ..diagnose._flow_demo import FlowDemo
from ..diagnose._recurrence_demo import RecurrenceDemo
from ..testing import CheckReport
from ..testing._demo import DemoReport as CheckDemo
from ..train import History
from ._audit import discrepancies, mechanisms
from ._bench import costs
from ._check import checks
from ._flow import flow, gradient_norms, schemes
from ._grid import factors
from ._recurrence import eigenvalues, remedies, through_time
from ._style import style
from ._training import flow_over_training, losses

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figures(report: Report) -> dict[str, Figure]:
    """All figures that fit a report, by name, in reading order; none for a report that has none.

    Each figure's label (`figure.get_label()`) says how to read it.

    Raises:
        ImportError: matplotlib is not there.
        TypeError: no report.

    Example:
        >>> import torch, gradfunc as gf
        >>> list(gf.plot.figures(gf.diagnose.recurrence(torch.eye(3) / 2, steps=10)))
        ['through-time', 'eigenvalues']
    """
    if not isinstance(report, Report):
        raise TypeError(message("gf.plot.figures(report)", got=kind_of(report), expected="a report"))
    with style():  # the extra is asked for also where there is nothing to draw
        return _figures(report)


@functools.singledispatch
def _figures(report: Report) -> dict[str, Figure]:
    return {}


@_figures.register(ReductionReport)
def _(report: ReductionReport) -> dict[str, Figure]:
    return {"discrepancies": discrepancies(report)}


@_figures.register(AuditDemo)
def _(report: AuditDemo) -> dict[str, Figure]:
    return {**_figures(report.reductions), "mechanisms": mechanisms(report)}


@_figures.register(CheckReport)
def _(report: CheckReport) -> dict[str, Figure]:
    return {"checks": checks(report)}


@_figures.register(CheckDemo)
def _(report: CheckDemo) -> dict[str, Figure]:
    return _figures(report.healthy)


@_figures.register(BenchReport)
def _(report: BenchReport) -> dict[str, Figure]:
    return {"costs": costs(report)} if any(row.ratios and row.contender != "plain" for row in report.rows) else {}


@_figures.register(FlowReport)
def _(report: FlowReport) -> dict[str, Figure]:
    return {"flow": flow(report), "gradient-norms": gradient_norms(report)}


@_figures.register(GridReport)
def _(report: GridReport) -> dict[str, Figure]:
    return {"factors": factors(report)}


@_figures.register(FlowDemo)
def _(report: FlowDemo) -> dict[str, Figure]:
    return {"schemes": schemes(report.flows), **_figures(next(iter(report.flows.values())))}


@_figures.register(LinearRecurrence)
def _(report: LinearRecurrence) -> dict[str, Figure]:
    return {"through-time": through_time(report), "eigenvalues": eigenvalues(report)}


@_figures.register(RecurrenceReport)
def _(report: RecurrenceReport) -> dict[str, Figure]:
    return {"through-time": through_time(report)}


@_figures.register(RemedyReport)
def _(report: RemedyReport) -> dict[str, Figure]:
    return {"remedies": remedies(report)}


@_figures.register(RecurrenceDemo)
def _(report: RecurrenceDemo) -> dict[str, Figure]:
    named = {"explodes": report.explodes, "transient": report.transient, "lstm": report.lstm}
    each = {f"{name}-{key}": figure for name, one in named.items() for key, figure in _figures(one).items()}
    return {**each, "remedies": remedies(report.remedies)}


@_figures.register(History)
def _(report: History) -> dict[str, Figure]:
    found = {"losses": losses(report)} if "loss" in report else {}
    for name in report:
        values = report[name]
        if isinstance(values, list) and all(isinstance(one, dict) and "rows" in one for one in values):
            found[f"{name}-over-training"] = flow_over_training(report, name)
    return found
