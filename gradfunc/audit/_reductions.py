"""`gf.audit.reductions`: measure at two precisions, judge every pair, look for causes."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .._errors import kind_of, message
from .._problem import Problem
from .._random import forked
from .._rounding import is_rounding, other_precisions, pair_factor
from .._stateless import PureModel, Stateless
from .._tree import Tensors, subtract
from ._case import attempt, devices_of, value_of
from ._causes import Cause, Search, largest, worst
from ._independence import Independence, independence
from ._loops import YourLoop
from ._measure import ESTIMATORS, Measured, measure, measure_refed
from ._mechanisms import MECHANISMS, Mechanism
from ._options import asked_problem, name_of
from ._predict import Predictor
from ._report import DEMONSTRATION, Invitation, Pair, ReductionReport, estimator_rows


def reductions(
    model: nn.Module | PureModel | Stateless,
    criterion: Any,
    batch: Any,
    *,
    yours: YourLoop | None = None,
    dtype: str | torch.dtype | None = None,
    device: torch.device | str | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> ReductionReport:
    """Find out whether sum, mean and per-sample gradients agree on a model, and why not.

    The mean gradient of the batch is estimated in every usual way (see `ESTIMATORS`); all pairs are compared; each
    discrepancy is judged by the bound on rounding where that is a theorem (two averages of n rows differ by at most
    `2 gamma_{n+2} sum |g_i| / n`; Higham 2002, section 4.2), else by repeating the pair at another precision. What is
    wrong is matched with the closed forms of `MECHANISMS`.

    Costs about `4 n` backward passes of the model at each of two precisions. All estimates and the closed forms tried
    are held until the end, some 15 to 25 gradients at each precision (100 million parameters: 20 to 30 GB).
    Nothing of the user's changes: modules are referred to, loops run on copies, draws are seeded.

    Args:
        model: an `nn.Module`, in the mode you train it in, or a stateless model. Batch statistics are allowed.
        criterion: `criterion(output, target)` whose reduction can be varied, or that gives one loss a sample; or
            `gf.whole(fn)`.
        batch: `(*inputs, target)`, or a mapping (its entry "target" is the target).
        yours: `yours(module, criterion, batch)`, your own accumulation loop. It runs on a copy of the module and
            returns `{name: gradient}`, or None with the gradients left in `.grad`. Its mean is compared as well.
        dtype: "float64", "float32", "bfloat16" or "float16"; default: the parameters' own.
        device: where to run; default: where the parameters are.
        batch_size: use the first samples of the batch only.
        seed: of dropout and other draws.
        progress: called with the name of each stage.

    Raises:
        TypeError: a model, criterion or batch of another form.
        ValueError: unknown dtype or device; an empty batch; losses that are not one a sample; no trainable parameter.

    Example:
        >>> import gradfunc as gf
        >>> x, y = torch.randn(8, 4), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
        >>> weights = torch.tensor([1.0, 2.0, 3.0])
        >>> report = gf.audit.reductions(nn.Linear(4, 3), nn.CrossEntropyLoss(weight=weights), (x, y))
        >>> report.pair("none", "mean").verdict, report.causes
        ('wrong', ('class_weights',))
    """
    call = "gf.audit.reductions(model, criterion, batch)"
    note = progress or (lambda stage: None)
    if yours is not None and not callable(yours):
        expected = "a function yours(module, criterion, batch)"
        raise TypeError(message(call, got=f"{kind_of(yours)} as yours", expected=expected))
    options: dict[str, Any] = {"dtype": dtype, "device": device, "batch_size": batch_size, "seed": seed}
    problem, asked = asked_problem(call, model, criterion, batch, **options)
    # The outer fork is for what a criterion or a loop draws on its own; every pass of the model has its own stream.
    with (
        warnings.catch_warnings(record=True) as caught,
        torch.enable_grad(),
        forked(seed, 3, devices=devices_of(problem)),
    ):
        warnings.simplefilter("always")
        note(f"estimators in {name_of(asked)}")
        first = measure(problem, yours, seed, note)
        if not value_of(first.case.forward).requires_grad:
            expected = "a loss that depends on at least one of them"
            raise ValueError(message(call, got="no differentiable parameter in the loss", expected=expected))
        second, repeated = _repeat(problem, asked, yours, seed, note)
        finest = first if second is None or asked == torch.float64 else second
        search = _search(first, second)
        note("verdicts and causes")
        pairs = tuple(_pair(a, b, first, second, search) for a, b in itertools.combinations(first.estimates, 2))
        note("what the model invites")
        invitations = _invitations(finest, seed)
        note("independence of samples")
        check, failed = attempt(lambda: independence(problem, seed))
    notes = [f"{type(w.message).__name__} raised: {w.message}" for w in caught]
    notes += _notes(first, second, search, name_of(asked), repeated)
    return ReductionReport(
        batch_size=problem.size,
        dtype=name_of(asked),
        other_dtype=repeated if second is not None else None,
        estimators=estimator_rows({k: (e.norm, e.why_not) for k, e in first.estimates.items()}),
        pairs=pairs,
        invitations=invitations,
        independence=check or Independence(None, None, None, failed or ""),
        notes=tuple(dict.fromkeys(" ".join(text.split())[:300] for text in notes)),
    )


def _repeat(
    problem: Problem, asked: torch.dtype, yours: YourLoop | None, seed: int, note: Callable[[str], None]
) -> tuple[Measured | None, str]:
    """The same at another precision, the first that runs: `(measured, its name)`, or `(None, why not)`."""
    why_not = ""
    for other in other_precisions(asked):
        note(f"estimators in {name_of(other)}")
        again = functools.partial(measure, problem.cast(other), yours, seed, lambda stage: None)
        measured, failure = attempt(again)
        if measured is not None:
            return measured, name_of(other)
        why_not = why_not or f"{name_of(other)} ({failure})"
    return None, why_not


def _search(first: Measured, second: Measured | None) -> Search | None:
    """The search for causes, which needs two precisions that really differ."""
    if second is None or first.u == second.u:
        return None
    return Search(second, first) if second.u > first.u else Search(first, second)


def _notes(first: Measured, second: Measured | None, search: Search | None, asked: str, repeated: str) -> list[str]:
    notes = []
    for name, estimate in first.estimates.items():
        if estimate.norm is not None and not math.isfinite(estimate.norm):
            notes.append(f"the gradient of '{name}' is not finite in {asked}")
    if first.case.forward.scalar is not None:
        notes.append(
            "the criterion gives one scalar, so that only 'mean' and 're-fed' can be compared; "
            "return one loss a sample, or gf.Weighted, to compare the rest"
        )
    if second is None:
        notes.append(f"could not be repeated in {repeated}; what has no bound cannot be told")
    elif search is None:
        notes.append(f"part of the model computes at one precision in {asked} and {repeated} alike")
    return notes


def _pair(a: str, b: str, first: Measured, second: Measured | None, search: Search | None) -> Pair:
    demonstration = DEMONSTRATION in (a, b)
    if not (first.ran(a) and first.ran(b)):
        return Pair(a, b, None, None, None, None, "not run", (), None, demonstration)
    difference = subtract(first.grads(a), first.grads(b))
    name, size = worst(difference)
    parameter = name if size else None
    bound, holds = _bound(a, b, first, difference, name)
    other: float | None = None
    if second is not None and second.ran(a) and second.ran(b):
        repeated = subtract(second.grads(a), second.grads(b))
        there, other = worst(repeated)
        if second.u < first.u:
            # Where a finer measurement exists its bound decides: in bfloat16 that at n = 64 hides almost anything.
            _, holds = _bound(a, b, second, repeated, there)
    causes: tuple[Cause, ...] = ()
    if size == 0:
        verdict = "exact"
    elif holds:
        verdict = "rounding"
    elif search is None or other is None:
        verdict = "cannot tell"
    else:
        low, high = (other, size) if first is search.high else (size, other)
        scales = {"scale_low": search.low.scale, "scale_high": search.high.scale}
        rounding = is_rounding(low=low, high=high, u_low=search.low.u, u_high=search.high.u, **scales)
        verdict = "rounding" if rounding else "wrong"
        causes = () if rounding else search.causes(a, b)
    unexplained = size if verdict == "wrong" and not causes else None
    return Pair(a, b, size, parameter, bound if size else None, other, verdict, causes, unexplained, demonstration)


def _bound(a: str, b: str, measured: Measured, difference: Tensors, name: str) -> tuple[float | None, bool]:
    """The bound at the largest entry of one parameter, and whether it covers and holds for every parameter."""
    if not {a, b} <= {"none", "sum / n", "mean", "sliced"} or measured.per_sample is None or not measured.bounded:
        return None, False
    n = measured.case.size
    factor = max(pair_factor(n, value.dtype) for value in difference.values())
    if factor == float("inf"):
        return None, False
    limits = {key: factor * measured.per_sample.magnitude[key] / n for key in measured.bounded}
    holds = all(key in limits and bool((value.abs() <= limits[key]).all()) for key, value in difference.items())
    if name not in limits:
        return None, holds
    return float(limits[name].reshape(-1)[int(difference[name].abs().reshape(-1).argmax())]), holds


def _invitations(measured: Measured, seed: int) -> tuple[Invitation, ...]:
    out = []
    for mechanism in MECHANISMS:
        why = None if mechanism.invited is None else mechanism.invited(measured.case)
        if why is None:
            continue
        acts = mechanism.applies(measured.case)
        size, _ = attempt(functools.partial(_size, measured, mechanism, acts, seed))
        out.append(Invitation(mechanism.name, why, size, acts))
    return tuple(out)


def _size(measured: Measured, mechanism: Mechanism, acts: bool, seed: int) -> float:
    """The largest difference that one mechanism alone makes to an estimator it moves."""
    if not acts and mechanism.kind == "weight":
        return 0.0
    if not acts:
        measured = measure_refed(_trained(measured.case.problem, mechanism), seed)
    predictor = Predictor(measured)
    names = [name for name in mechanism.moves if name in ESTIMATORS and name != "yours" and measured.ran(name)]
    alone = frozenset([mechanism.name])
    pairs = [(predictor.estimate(name, alone), predictor.estimate(name, frozenset())) for name in names]
    return max((largest(subtract(a, b)) for a, b in pairs), default=0.0)


def _trained(problem: Problem, mechanism: Mechanism) -> Problem:
    """The same problem on a copy of the module whose layers of that kind are in train mode."""
    module = copy.deepcopy(problem.model.module)
    assert module is not None
    assert mechanism.layers is not None
    for layer in module.modules():
        if mechanism.layers(layer):
            layer.training = True
    return problem.on(module)
