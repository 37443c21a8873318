"""`gf.diagnose.doctor`: the call."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..._errors import check_int, kind_of, message
from ..._problem import Problem, read
from ..._random import forked
from ..._stateless import PureModel, Stateless
from ..._transform import StepReport
from ...audit._case import attempt, devices_of
from ._case import Case
from ._copies import Count
from ._finding import Finding, NotRun, Probe
from ._missing import all_frozen
from ._probes import PROBES
from ._report import DoctorReport
from ._trial import Touched

CALL = "gf.diagnose.doctor(model, criterion, data)"
BATCHES = 16  # of a loader
FAILED = "the probe raised"


def doctor(
    model: nn.Module | PureModel | Stateless,
    criterion: Any,
    data: Any,
    optimizer: Optimizer | None = None,
    step: Callable[[nn.Module, Optimizer, Any], Any] | None = None,
    deep: bool = False,
    *,
    probes: Sequence[Probe] | None = None,
    reports: Sequence[StepReport] = (),
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> DoctorReport:
    """Why training does not work: findings with cause, severity, evidence, fix and confidence; and what is healthy.

    Each probe looks for some causes (`gf.diagnose.CAUSES`) and measures against a threshold
    (`gradfunc/diagnose/_doctor/_limits.py` has the reasons). Cheap ones always run; deep ones (curvature, finite
    differences, per-sample gradients) on a symptom or with `deep=True`. The report counts the passes. Nothing of yours
    changes: optimiser and step run on copies, draws are seeded.

    Args:
        model: an `nn.Module` in the mode you train it in, a pure model, or `gf.stateless(...)`.
        criterion: `criterion(output, target)`, or `gf.whole(fn)`. One that gives a number for the batch will do; what
            needs a loss for each sample is then not looked at.
        data: a batch `(*inputs, target)`, a mapping with a "target", or a list or loader of batches, of which the
            first 16 are read: the model runs on the first one, probes of data look at all.
        optimizer: yours, for its rate, its parameters and some steps on copies.
        step: `step(model, optimizer, batch)`, your own update. It is called twice, on copies; what the optimiser gets
            is compared with the criterion's own gradient. It must touch its arguments only.
        deep: whether all deep probes run.
        probes: what looks, all of `gf.diagnose.PROBES` unless told; `gf.diagnose.PROBES + (mine,)` adds one.
        reports: what a chain of gradfunc said at earlier steps (`update_with_report`), for clips that always or never
            bite.
        seed: of draws in the model, as dropout.
        progress: called with the name of each probe before it runs.

    Raises:
        TypeError: arguments of another form.
        ValueError: an empty batch; a step without an optimiser; a step that changes your own model.

    Example:
        >>> import gradfunc as gf
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(64, 5)
        >>> y = (x[:, 0] > 0).long()
        >>> net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 2), nn.Softmax(-1))
        >>> report = gf.diagnose.doctor(net, nn.CrossEntropyLoss(), (x, y), torch.optim.SGD(net.parameters(), lr=0.1))
        >>> report.causes, report.ok
        (('softmax_before_cross_entropy',), False)
        >>> report.findings[0].fix
        'model = model[:-1]  # cross_entropy takes logits'
    """
    probes = PROBES if probes is None else probes
    _check(optimizer, step, deep, probes, reports, seed)
    batches = _batches(data)
    note = progress or (lambda name: None)
    module = model if isinstance(model, nn.Module) else getattr(model, "module", None)
    problems = tuple(_read(model, criterion, batch) for batch in batches)
    if not problems[0].model.params:
        return DoctorReport((all_frozen(problems[0].model),), (), (), 0, 0)
    count = Count()
    problems = _scalar(problems, seed, count)
    case = Case(problems[0], problems, batches[0], module, optimizer, step, seed, tuple(reports), count)
    found: list[Finding] = []
    healthy: list[str] = []
    not_run: list[tuple[str, str]] = []
    for probe in probes:
        note(probe.name)
        made: list[Finding] = []
        reason = _run(probe, case, deep, made)
        found += made
        if reason:
            not_run.append((probe.name, reason))
        elif not made:
            healthy.append(probe.name)
    order = sorted(found, key=lambda finding: finding.rank)  # stable: of equals, the first in the list of probes
    return DoctorReport(tuple(order), tuple(healthy), tuple(not_run), case.count.forward, case.count.backward)


def _run(probe: Probe, case: Case, deep: bool, made: list[Finding]) -> str:
    """Add what a probe finds; why it could not look, or not at all of it, "" where it could."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own hints on shapes; the probes say them
        try:
            if probe.tier == "deep" and not deep and not probe.symptom(case):
                return "no symptom; pass deep=True"
            for finding in probe.run(case):
                made.append(finding)  # one by one: what was found before it stops is kept
        except NotRun as reason:
            return str(reason)
        except Touched:
            raise
        except Exception as error:  # of the user's model in a place that a probe did not expect; the others go on
            return f"{FAILED} {type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return ""


def _read(model: Any, criterion: Any, batch: Any) -> Problem:
    return read(CALL, model, criterion, batch)


def _scalar(problems: tuple[Problem, ...], seed: int, count: Count) -> tuple[Problem, ...]:
    """The same; a criterion of outputs and targets that gives one number counts as such."""
    problem = problems[0]
    if problem.criterion.form != "rows":
        return problems
    count.forward += 1
    with torch.no_grad(), forked(seed, 0, devices=devices_of(problem)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, _ = attempt(lambda: problem.criterion.called(problem.output(_plain(problem)), problem.target))
    if not isinstance(found, Tensor) or found.dim() > 0:
        return problems
    criterion = dataclasses.replace(problem.criterion, form="scalar")
    return tuple(dataclasses.replace(one, criterion=criterion) for one in problems)


def _plain(problem: Problem) -> Callable[..., Any]:
    params = {name: value.detach() for name, value in problem.model.params.items()}
    return functools.partial(problem.model, params)


def _batches(data: Any) -> list[Any]:
    """One batch, or the first ones of several."""
    if isinstance(data, Tensor) or hasattr(data, "keys"):
        return [data]
    if isinstance(data, (tuple, list)):
        several = len(data) > 0 and all(isinstance(item, (tuple, list)) or hasattr(item, "keys") for item in data)
        # (input, (target, lengths)) is one batch: its first item is a tensor
        return list(data[:BATCHES]) if several else [data]
    if isinstance(data, Iterable):
        with torch.random.fork_rng():
            batches = list(itertools.islice(iter(data), BATCHES))
        if not batches:
            raise ValueError(message(CALL, got="data without a batch", expected="at least one"))
        return batches
    raise TypeError(message(CALL, got=f"{kind_of(data)} as data", expected="a batch, or batches"))


def _check(optimizer: Any, step: Any, deep: Any, probes: Any, reports: Any, seed: Any) -> None:
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise TypeError(message(CALL, got=f"{kind_of(optimizer)} as optimizer", expected="a torch optimizer, or None"))
    if step is not None and not callable(step):
        raise TypeError(message(CALL, got=f"{kind_of(step)} as step", expected="step(model, optimizer, batch)"))
    if step is not None and optimizer is None:
        raise ValueError(message(CALL, got="a step without an optimizer", expected="both"))
    if not isinstance(deep, bool):
        raise TypeError(message(CALL, got=f"deep={deep!r}", expected="True or False"))
    if not isinstance(probes, (tuple, list)) or not all(isinstance(probe, Probe) for probe in probes):
        raise TypeError(message(CALL, got=kind_of(probes) + " as probes", expected="a tuple of gf.diagnose.Probe"))
    if not isinstance(reports, (tuple, list)) or not all(isinstance(report, StepReport) for report in reports):
        raise TypeError(message(CALL, got=kind_of(reports) + " as reports", expected="a list of a chain's StepReport"))
    check_int(CALL, "seed", seed, 0)
