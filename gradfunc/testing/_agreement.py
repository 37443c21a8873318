"""Checks of numbers: engines, reductions, splits and orders of the batch, weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from functools import partial

import torch

from .._certificate import Difference, compare, compare_rows, worst_sample
from .._problem import Problem
from .._tree import Tensors, row_norms, row_sum, scale
from .._weights import Accumulator, Weighted
from ..audit._case import attempt, reduced, run
from ._report import CheckRow
from ._side import Side, Sides
from ._verdict import Judge

Measure = Callable[[Side], Difference]
COUPLED = "A sample's loss in the batch is not its loss alone: see independence, and the criterion."


def measured(
    sides: Sides, judge: Judge, check: str, compares: str, measure: Measure, cause: str = "", where: str | None = None
) -> CheckRow:
    """One check at both precisions; not run where it does not run at the one asked for."""
    asked, failed = attempt(lambda: measure(sides.asked))
    if asked is None:
        return CheckRow(check, compares, verdict="not run", cause=failed or "")
    other, failed = (None, sides.why_not) if sides.other is None else attempt(partial(measure, sides.other))
    if other is None:
        judge = judge._replace(u_other=None, why_not=failed or "")
    row = judge.row(check, compares, asked, other, cause)
    return row if where is None or row.verdict != "wrong" else dataclasses.replace(row, parameter=where)


def not_run(check: str, compares: str, why: str) -> CheckRow:
    """A check that does not apply."""
    return CheckRow(check, compares, verdict="not run", cause=why)


# --- engines ------------------------------------------------------------------------------------------------------


def engines(sides: Sides, judge: Judge) -> Iterator[CheckRow]:
    """Every engine against the loop over samples, or natively batched ones against each other."""

    @functools.cache
    def rows(side: Side, engine: str) -> Tensors:
        return side.rows(engine)

    def apart(engine: str, reference: str) -> Measure:
        return lambda side: compare_rows(rows(side, engine), rows(side, reference))

    for engine, what in (("factored", "rows as factors"), ("vmap", "vmap(grad)")):
        compares = f"{what}, and one autograd call a sample"
        yield measured(sides, judge, "engines", compares, apart(engine, "loop"), COUPLED)
    native = "batched, rows looped"
    compares = "the batch run natively, one row at a time, and one autograd call a sample"
    if sides.asked.draws:
        yield not_run("engines", compares, "the model draws random numbers, which one forward pass draws otherwise")
    else:
        yield measured(sides, judge, "engines", compares, apart(native, "loop"), COUPLED)
    for engine, what in (("batched, factored", "rows as factors"), ("batched, rows vmapped", "rows vmapped")):
        compares = f"the batch run natively, {what}, and one row at a time"
        yield measured(sides, judge, "engines", compares, apart(engine, native), COUPLED)


# --- reductions ---------------------------------------------------------------------------------------------------


def reductions(sides: Sides, judge: Judge) -> Iterator[CheckRow]:
    """none, sum and mean; any split; any order."""
    n = sides.asked.problem.size
    compares = "the rows added up, and one backward pass of the summed loss"
    if sides.asked.draws:
        yield not_run("sum", compares, "the model draws random numbers, which one forward pass draws otherwise")
    else:
        yield measured(sides, judge, "sum", compares, _sum, COUPLED)
    compares = "two parts accumulated, and the mean of the whole batch"
    if n == 1:
        yield not_run("split", compares, "one sample cannot be split")
    else:
        yield measured(sides, judge, "split", compares, _split, COUPLED)
    compares = "rows of the batch in another order, and the rows in that order"
    if n == 1:
        yield not_run("order", compares, "one sample has one order")
        return
    yield measured(sides, judge, "order", f"{compares}, sample by sample", _ordered("loop"), COUPLED)
    compares += ", run natively"
    if sides.asked.draws:
        yield not_run("order", compares, "the model draws random numbers, which stay in the order they had")
    else:
        yield measured(sides, judge, "order", compares, _ordered("batched, rows looped"), COUPLED)


def _sum(side: Side) -> Difference:
    rows = side.rows("loop")
    elements = side.case.forward.elements
    if elements is None:
        raise ValueError("the criterion gives one scalar for the whole batch")
    whole = side.case.gradient(torch.ones_like(elements))
    total = float(row_norms({name: value.double() for name, value in rows.items()}).sum())
    return compare(row_sum(rows), whole, total)


def _split(side: Side) -> Difference:
    f, params, n = side.function("loop"), side.problem.model.params, side.problem.size
    g = f(params, *side.tensors)
    accumulated = Accumulator.init(params)
    cut = (n + 2) // 3
    for part in (slice(0, cut), slice(cut, n)):
        accumulated = accumulated.add(f(params, *[tensor[part] for tensor in side.tensors]))
    weight = float(g.weights.sum())
    if weight == 0:
        return compare(accumulated.sum(), g.sum(), float(g.norms().sum()))
    return compare(accumulated.mean(), g.mean(), float(g.norms().double().sum()) / weight)


def _ordered(engine: str) -> Measure:
    def measure(side: Side) -> Difference:
        order = torch.randperm(side.problem.size, generator=torch.Generator().manual_seed(side.case.seed))
        rows = {name: value[order.to(value.device)] for name, value in side.rows(engine).items()}
        found = compare_rows(side.rows(engine, order), rows)
        return found if found.sample is None else found._replace(sample=int(order[found.sample]))

    return measure


# --- weights ------------------------------------------------------------------------------------------------------


def weights(sides: Sides, judge: Judge) -> Iterator[CheckRow]:
    """Whether the criterion's mean is its sum over a total weight, and its losses are those of samples."""
    problem = sides.asked.problem
    name, form, n = name_of_criterion(problem), problem.criterion.form, problem.size
    if _draws(sides.asked):
        yield not_run("criterion", "the criterion's sum, mean and losses", "the criterion draws random numbers")
        return
    compares = "the criterion's reduction='sum', and its losses added up"
    if form == "reducible":
        yield measured(sides, judge, "criterion's sum", compares, _own_sum, _OWN_SUM, name)
        compares = "the criterion's reduction='mean', and its sum over a total weight"
        yield measured(sides, judge, "criterion's mean", compares, _own_mean, _OWN_MEAN, name)
    compares = "losses of half of the samples, and the same losses in the whole batch"
    if n == 1:
        yield not_run("criterion and n", compares, "one sample has no half")
        return
    if form == "whole" and sides.asked.draws:
        yield not_run("criterion and n", compares, "the model draws random numbers, and the criterion runs it")
        return
    row = measured(sides, judge, "criterion and n", compares, _halves, _DEPENDS_ON_N, name)
    if row.verdict == "wrong":
        divided = measured(sides, judge, "", "", _halves_divided)
        if divided.verdict in ("exact", "rounding"):
            row = dataclasses.replace(row, cause=_DIVIDES)
    yield row
    compares = "the weight of the batch, and those of its halves added up"
    if form != "whole" or sides.asked.case.forward.weights is not None:
        yield measured(sides, judge, "weights add up", compares, _weights, _WEIGHTS, name)
    else:
        yield not_run("weights add up", compares, "the criterion gives one scalar for the whole batch")


_OWN_SUM = "Its 'sum' is not the sum of its losses under 'none': it divides by something inside. Return each.sum()."
_OWN_MEAN = (
    "Each loss is divided by something of its own in the mean (as CTC by target lengths), so 'sum' and 'mean' have "
    "gradients of other directions. Use a loss that returns gf.Weighted, such as gf.losses."
)
_DEPENDS_ON_N = "A sample's loss depends on which samples, or how many, are in the batch with it."
_DIVIDES = (
    "It divides by the number of samples inside: a loss of half of the batch is n / m times as large. Return the "
    "losses themselves, and let the mean divide."
)
_WEIGHTS = "Its mean is not a weighted mean of samples: means of parts cannot be put together. Return gf.Weighted."


def name_of_criterion(problem: Problem) -> str:
    """How a report calls the criterion."""
    given = problem.criterion.given
    inner = getattr(given, "fn", getattr(given, "func", given))
    return f"criterion {getattr(inner, '__name__', type(inner).__name__)}"


def _draws(side: Side) -> bool:
    """Whether the criterion gives other losses for the same output each time."""
    if side.problem.criterion.form == "whole":
        return False
    a, b = (_losses(side, 0, side.problem.size).numerator for _ in range(2))
    return not torch.equal(a, b) and not bool(a.isnan().any())


def _own_sum(side: Side) -> Difference:
    case = side.case
    elements = case.forward.elements
    assert elements is not None
    own = scale(reduced(case, "sum"), side.problem.size)
    return compare(own, case.gradient(torch.ones_like(elements)), _total(side))


def _own_mean(side: Side) -> Difference:
    """`S grad(M)` against `M grad(S)`: the mean M is the sum S over a constant."""
    case, problem = side.case, side.problem
    elements = case.forward.elements
    assert elements is not None
    mean = float(problem.criterion.reduced(case.forward.output, problem.target, "mean").detach())
    total, size = float(elements.detach().sum()), float(elements.detach().abs().sum())
    a, b = scale(reduced(case, "mean"), total), scale(case.gradient(torch.ones_like(elements)), mean)
    return compare(a, b, _total(side) * abs(mean) * (size / abs(total) if total else 1.0))


def _total(side: Side) -> float:
    """`sum |g_i|`, the error scale of a sum, from the rows of the shared forward pass."""
    case = side.case
    elements = case.forward.elements
    assert elements is not None
    c = torch.zeros_like(elements)
    norms = 0.0
    for i in range(len(elements)):
        c.zero_()[i] = 1
        norms += float(row_norms({name: value[None].double() for name, value in case.gradient(c).items()}))
    return norms


def _halves(side: Side, factor: Callable[[int, int], float] = lambda n, m: 1.0) -> Difference:
    """Losses of halves against those of the batch, times a factor of both numbers of samples."""
    n = side.problem.size
    whole = _losses(side, 0, n).numerator
    parts = [_losses(side, a, b).numerator / factor(n, b - a) for a, b in ((0, n // 2), (n // 2, n))]
    given = torch.cat(parts)
    each = whole.double().abs()
    return worst_sample(given, whole, each + each.mean())


def _halves_divided(side: Side) -> Difference:
    return _halves(side, lambda n, m: n / m)


def _weights(side: Side) -> Difference:
    n = side.problem.size
    whole = _total_weight(side, 0, n)
    parts = sum(_total_weight(side, a, b) for a, b in ((0, n // 2), (n // 2, n)))
    return Difference(abs(whole - parts) if whole != parts else 0.0, max(abs(whole), abs(parts)))


def _total_weight(side: Side, start: int, stop: int) -> float:
    """What the criterion's mean divides by: its sum over its mean; 0 where there is nothing to divide."""
    problem, criterion = side.problem, side.problem.criterion
    if criterion.form != "reducible":
        return float(_losses(side, start, stop).weight.double().sum())
    output = problem.output_rows(side.case.forward.output, start, stop)
    target = problem.rows(start, stop).target
    total = float(criterion.reduced(output, target, "sum").detach().double())
    mean = float(criterion.reduced(output, target, "mean").detach().double())
    if total == 0 and mean == 0:
        raise ValueError("the losses of a part are all 0, which says nothing of their weight")
    return total / mean if total != 0 else 0.0  # every sample ignored: 0 / 0


def _losses(side: Side, start: int, stop: int) -> Weighted:
    """Losses and weights of some samples: of rows of the shared output, or by running a whole criterion on them."""
    problem = side.problem
    part = problem.rows(start, stop)
    with torch.no_grad():
        if problem.criterion.form == "reducible":
            output = problem.output_rows(side.case.forward.output, start, stop)
            elements = problem.criterion.reduced(output, part.target, "none")
            numerators = elements.reshape(len(elements), -1).sum(1)
            return Weighted(numerators, torch.ones_like(numerators))
        if problem.criterion.form == "rows":
            return problem.criterion.rows(problem.output_rows(side.case.forward.output, start, stop), part.target)
        forward = run(part, problem.model.params)
    if forward.elements is None or forward.weights is None:
        raise ValueError("the criterion gives one scalar for the whole batch")
    return Weighted(forward.elements, forward.weights)
