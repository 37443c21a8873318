"""`gf.bench.zoo`: every model of the zoo through every contender, in float64."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .._errors import message
from .._random import forked
from .._rounding import is_rounding, unit_roundoff
from .._stateless import stateless
from .._zoo import MODELS, Model
from ..audit._case import attempt
from ..audit._options import name_of
from ._answers import FEW
from ._contender import Contender
from ._contenders import chosen
from ._environment import environment
from ._peers import installed, missing
from ._report import BenchReport
from ._steady import unsteady
from ._timing import Entry, Failed, in_words
from ._truth import QUANTITIES, Truth
from ._workload import Case, Workload, given
from ._zoo_report import ZooReport, ZooRow

CALL = "gf.bench.zoo(contenders, models)"
OURS = ("gradfunc", "gradfunc-vmap", "vmap(grad)")


def zoo(
    contenders: Sequence[str | Contender] | None = None,
    models: Sequence[str | Workload] | None = None,
    *,
    peers: bool = False,
    batch_size: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> ZooReport:
    """Which contenders give the right per-sample gradients, model by model: exact, wrong or refused.

    Every model is a small module with one hazard. In float64 a contender computes whatever it offers (clipped sum,
    norms, Gram matrix, rows), and each is compared with one `torch.autograd.grad` call a sample. It is exact where the
    error is rounding: below the geometric mean of the unit roundoffs of float32 and float64 (2.6e-12), on the scale of
    the quantity. A peer that refuses float64 is asked in the model's own precision, where it is exact if half of the
    digits are left. Nothing is timed. `report.ok` is about contenders that are no peers.

    Args:
        contenders: names or contenders, as `gf.bench.run` takes them; default: gradfunc natively batched and under
            vmap, `vmap(grad)`, and every peer that is installed and needs no translation. Base lines are left out.
        models: names from the zoo, or workloads, such as `gf.bench.of_model`; default: the whole zoo.
        peers: whether every installed peer comes beside the contenders that are named.
        batch_size: use the first samples of each batch only.
        progress: called with the name of each stage.

    Raises:
        TypeError: a contender or model of another form.
        ValueError: an unknown name; contenders that compute nothing that is compared.
        ModuleNotFoundError: a peer was named that is not installed.

    Example:
        >>> import gradfunc as gf
        >>> report = gf.bench.zoo(["gradfunc", "vmap(grad)"], [gf.bench.mlp([4, 8, 3], batch_size=5)])
        >>> report.ok, report.totals("gradfunc")
        (True, {'exact': 1})
    """
    note = progress or (lambda stage: None)
    asked = chosen(CALL, OURS if contenders is None else contenders)
    every = peers or contenders is None
    if every:
        asked += [peer for peer in installed() if peer not in asked and not peer.foreign]
    untranslated = [
        f"not asked: {peer.name}, for which models have to be translated" for peer in installed() if peer not in asked
    ]
    asked = _comparable(asked)
    if not asked:
        raise ValueError(message(CALL, got="base lines only", expected="contenders whose results are compared"))
    workloads = [_workload(item) for item in (MODELS if models is None else models)]
    rows: list[ZooRow] = []
    documented = {}
    with torch.enable_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for workload in workloads:
            note(workload.name)
            case = workload.case()
            case = case if batch_size is None else case.first(batch_size)
            with forked(0, 2, devices=[case.device]):  # a model may draw
                rows += _rows(case, asked, note)
            for contender in asked:
                limits = [limit for limit in contender.limits if limit.applies(case.module)]
                if limits:
                    texts = tuple(f"{contender.family}: {limit.says} ({limit.source})" for limit in limits)
                    documented[workload.name, contender.name] = texts
    return ZooReport(
        rows=tuple(rows),
        models={workload.name: workload.about for workload in workloads},
        contenders={contender.name: (contender.made_of, contender.settings) for contender in asked},
        documented=documented,
        environment=environment(torch.device("cpu")),
        notes=(*missing(), *untranslated) if every else (),
        warnings=tuple(dict.fromkeys(in_words(w.message) for w in caught)),
    )


def asked_too(
    report: BenchReport,
    models: Sequence[Workload],
    contenders: Sequence[str | Contender] | None,
    *,
    peers: bool,
    progress: Callable[[str], None],
) -> BenchReport:
    """The report with the same asked of a user's models, by their first samples; as it is where nothing is compared."""
    if not models or (contenders is not None and not peers and not _comparable(chosen(CALL, contenders))):
        return report
    table = zoo(contenders, models, peers=peers, batch_size=FEW, progress=progress)
    return dataclasses.replace(report, exactness=table)


def _comparable(contenders: Sequence[Contender]) -> list[Contender]:
    return [contender for contender in contenders if set(contender.quantities) & set(QUANTITIES)]


def _rows(case: Case, contenders: Sequence[Contender], note: Callable[[str], None]) -> list[ZooRow]:
    """Every contender's answers for one model, compared."""
    name = case.workload.name
    truth, why_not = _truth(case)
    exact = case if truth is None else case.cast(torch.float64)
    rows = []
    for contender in contenders:
        note(f"{name}: {contender.name}")
        for quantity in [quantity for quantity in contender.quantities if quantity in QUANTITIES]:
            found: dict[str, Any] = {"verdict": "cannot tell", "failure": why_not}
            if truth is not None:
                found = _compared(exact, truth, contender, quantity)
                if found["verdict"] == "refused" and case.dtype != torch.float64:
                    again = _compared(case, truth, contender, quantity)
                    found = again if again["verdict"] != "refused" else found
            rows.append(ZooRow(name, contender.name, quantity, peer=contender.peer, **found))
    return rows


def _truth(case: Case) -> tuple[Truth | None, str | None]:
    """The answers by a loop in float64, or why there are none."""
    if (why_not := unsteady(case)) is not None:
        return None, why_not
    truth, failed = attempt(lambda: Truth.of(case.cast(torch.float64), gram=True, looped=True))
    if truth is not None and not bool(truth.norms.isfinite().all()):
        return None, "there are gradients that are not finite"
    return truth, failed


def _compared(case: Case, truth: Truth, contender: Contender, quantity: str) -> dict[str, Any]:
    case = dataclasses.replace(case, max_norm=truth.max_norm)
    entry = Entry.of(functools.partial(contender.make, case, quantity))
    try:
        error = truth.error(quantity, entry.timed(time.perf_counter, case.device)[0])
    except Failed as failure:
        return {"verdict": "refused" if contender.peer else "failed", "failure": str(failure)}
    return {"verdict": "exact" if _rounds(error, case.dtype) else "wrong", "error": error, "dtype": name_of(case.dtype)}


def _rounds(error: float, dtype: torch.dtype) -> bool:
    """Whether it is rounding: what separates that from a wrong number at two precisions; at one, half of the digits."""
    u, u32 = unit_roundoff(dtype), unit_roundoff(torch.float32)
    if dtype != torch.float64:
        return error <= math.sqrt(u)
    return is_rounding(low=u32, high=error, scale_low=1.0, scale_high=1.0, u_low=u32, u_high=u)


def _workload(item: Any) -> Workload:
    found = given(CALL, "model", item, MODELS)
    return of_zoo(found) if isinstance(found, Model) else found


def of_zoo(model: Model) -> Workload:
    """A model of the zoo as a workload; its losses are those of its criterion."""
    dims = {"in_dims": model.in_dims, "out_dims": model.out_dims}
    return Workload(model.name, model.hazard, lambda: stateless(model.module(), **dims), model.batch, model.criterion)
