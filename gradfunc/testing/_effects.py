"""Checks of what computing gradients leaves behind: dtypes, shared storage, the module, generators, repetition."""

from __future__ import annotations

from functools import partial

from torch import nn

from .._certificate import Difference, compare_rows
from ..audit._case import attempt
from ._agreement import measured
from ._purity import Snapshot, shared
from ._report import CheckRow
from ._side import ENGINES, Side, Sides
from ._verdict import Judge


def dtypes(sides: Sides) -> CheckRow:
    """Gradients have the dtypes of their parameters, by every engine that runs."""
    params, wrong = sides.asked.problem.model.params, []
    ran = []
    for engine in ENGINES:
        g, _ = attempt(partial(sides.asked.function(engine), params, *sides.asked.tensors))
        if g is None:
            continue
        ran.append(engine)
        for what, grads in (("rows", g.materialize()), ("sum", g.sum())):
            wrong += [(name, f"{what} by {engine} {value.dtype}") for name, value in grads.items()
                      if value.dtype != params[name].dtype]  # fmt: skip
    compares = "the dtype of each gradient, and of its parameter"
    if not ran:
        return CheckRow("dtypes", compares, verdict="not run", cause="no engine runs")
    if wrong:
        name, what = wrong[0]
        return CheckRow("dtypes", compares, verdict="wrong", parameter=name, cause=f"{what}, not {params[name].dtype}.")
    return CheckRow("dtypes", compares)


def aliases(sides: Sides) -> CheckRow:
    """No result shares storage with parameters, batch or another result, by every engine that runs."""
    compares = "the storage of each result, and that of parameters, batch and other results"
    side, ran, why = sides.asked, False, ""
    params = side.problem.model.params
    for engine in ENGINES:
        g, failed = attempt(partial(side.function(engine), params, *side.tensors))
        if g is None:
            why = why or failed or ""
            continue
        ran = True
        if found := shared(g, params, side.tensors):
            owner, what = found
            cause = f"{what} by {engine} shares it."
            return CheckRow("storage", compares, verdict="wrong", parameter=owner, cause=cause)
    return CheckRow("storage", compares) if ran else CheckRow("storage", compares, verdict="not run", cause=why)


def repetition(sides: Sides, judge: Judge) -> CheckRow:
    """Two calls give the same bits."""
    cause = "Two calls with the same seed differ: something draws outside of torch, or keeps a state."
    for engine in ENGINES:
        row = measured(sides, judge, "repetition", f"two calls of engine {engine}", partial(_twice, engine), cause)
        if row.verdict != "not run":
            return row
    return row


def _twice(engine: str, side: Side) -> Difference:
    return compare_rows(side.rows(engine), side.rows(engine))


def purity(before: Snapshot, module: nn.Module | None) -> CheckRow:
    """Whether anything is left behind by all the runs of a check."""
    compares = "module, hooks, modes, attributes, .grad, batch, generators and grad mode before and after"
    found = list(before.changed(module))
    if not found:
        return CheckRow("purity", compares)
    name, what = found[0]
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    cause = f"{name} {what}{more}. The model ran on copies of its modules: it changes what lies outside of them."
    return CheckRow("purity", compares, verdict="wrong", parameter=name, cause=cause)
