"""Probes of weights at the start, and of gradients from layer to layer."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch
from torch import Tensor

from ..._tree import norm
from .._flow import FlowRow
from .._flow._verdict import CHANGE
from ._case import Case
from ._finding import Finding, NotRun
from ._missing import without

_CAUSES = {"dead": "dead_units", "exploding": "exploding", "vanishing": "vanishing", "saturated": "saturated"}
_LSUV = "gf.load_params(model, gf.init.lsuv(model, x))"


def same_units(case: Case) -> Iterator[Finding]:
    """Weights that are 0 with their gradients; units that are equal with theirs."""
    zero, equal = [], []
    for name, value in case.problem.model.params.items():
        if value.dim() < 2 or case.first.gradients[name] is None:
            continue
        gradient = case.gradient[name]
        if not bool(value.any()) and not bool(gradient.any()):
            zero.append(name)
        elif _rows_equal(value) and _rows_equal(gradient) and len(value) > 1 and bool(gradient.any()):
            equal.append(name)
    many = {n: v for n, v in case.problem.model.params.items() if v.dim() > 1 and len(v) > 1}
    alike = [name for name, value in many.items() if _rows_equal(value)]  # also where gradients tell rows apart
    for cause, names, drawn, text in (
        ("zero_init", zero, zero, "weights and their gradients are exactly 0"),
        ("symmetric_init", equal, alike, "all rows of weights are equal, and of their gradients: so they stay"),
    ):
        if names:
            fix = f"for name in {drawn}: nn.init.kaiming_uniform_(model.get_parameter(name))"
            yield Finding(cause, "severe", text, fix, "certain", ", ".join(names))


def _rows_equal(value: Tensor) -> bool:
    """Equal to rounding: rows of a product may be summed in different orders."""
    spread = (value - value[:1]).abs().max()
    return bool(spread <= 100 * torch.finfo(value.dtype).eps * value.abs().max())


def _passing(row: FlowRow, case: Case) -> bool:
    """Whether weights of 0 that are about to move explain a verdict: their units are 0, and no gradient passes them."""
    if set(row.parameters) <= set(case.waiting):
        return True
    return row.verdict == "vanishing" and row.gradient.norm == 0 and set(row.parameters) <= set(case.waking)


def flow(case: Case) -> Iterator[Finding]:
    """The verdicts of `gf.diagnose.gradient_flow`, each once, with the layer that is worst off."""
    cut = without(case)  # parameters that have a probe of their own
    rows = [row for row in case.flow.rows if not row.parameters or not set(row.parameters) <= cut]
    for verdict, cause in _CAUSES.items():
        there = [row for row in rows if row.verdict == verdict and not _passing(row, case)]
        if verdict == "saturated":
            there = [row for row in there if row is not rows[-1]]  # an output that is sure of itself
        if not there:
            continue
        text = f"{there[0].evidence}; {len(there)} of {len(rows)} layers"
        severity = "warning" if verdict == "saturated" else "severe"
        sure = "likely"
        if verdict == "vanishing" and (all_move := _all_move(there, case)):
            text, severity, sure = f"{text}; {all_move}", "warning", "possible"
        if verdict == "exploding":  # from layer to layer, or beside the weights only
            sure = "certain" if any((row.change or 0.0) > CHANGE for row in there) else "likely"
        names = ", ".join(dict.fromkeys(row.layer for row in there[:5]))
        yield Finding(cause, severity, text, _fix(verdict, there, rows), sure, names)


def _fix(verdict: str, there: list[FlowRow], rows: list[FlowRow]) -> str:
    """For the layers of a verdict."""
    names = list(dict.fromkeys(name for row in there for name in row.parameters))
    if verdict == "dead":
        biases = [name for name in names if name.endswith("bias")]
        fix = f"for name in {biases}: nn.init.zeros_(model.get_parameter(name))" if biases else "#"
        return f"{fix}  # a smaller rate, where training did it"
    if verdict == "vanishing" and any(row.activation == "sigmoid" for row in rows):
        return "# nn.ReLU() for nn.Sigmoid(): no scale of weights mends a stack of sigmoids; or norms between layers"
    again = [name for name in names if "weight_hh" in name]  # of nn.RNN, nn.LSTM, nn.GRU
    if again:
        return f"for name in {again}: nn.init.orthogonal_(model.get_parameter(name))  # and clip gradients"
    if verdict == "exploding":  # biases may be what lsuv measures, where they are as large as weights
        zeros = "[nn.init.zeros_(p) for n, p in model.named_parameters() if n.endswith('bias')]"
        return f"{zeros}; {_LSUV}  # or norms"
    more = {"vanishing": "norms, skip connections", "saturated": "smaller inputs"}[verdict]
    return f"{_LSUV}  # or {more}"


def _all_move(there: list[FlowRow], case: Case) -> str:
    """Whether a step moves layers of small gradients like the others, as Adam's does; "" where it does not.

    The harm of gradients that differ by layers is that steps do, so that no rate suits all of them.
    """
    if any(row.gradient.norm == 0 for row in there):
        return ""
    if case.optimizer is None:
        return "steps may make up for it, as Adam's do: no optimizer was given"
    try:
        moved = case.descent.moved
    except NotRun:
        return ""
    params = case.problem.model.params

    def share(row: FlowRow) -> float:
        own = {name: params[name].detach() for name in row.parameters}
        return norm({name: moved[name] for name in own}) / (norm(own) or 1.0)

    most = max(share(row) for row in case.flow.rows if row.parameters)
    least = statistics.median_low([share(row) for row in there])
    if not most or least * CHANGE < most:
        return ""
    name = type(case.optimizer).__name__
    return f"but {name} moves them by {least:.2g} of their size, others by up to {most:.2g}"
