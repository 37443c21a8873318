"""`verify="first"`: an engine's answer against one extra backward pass, once for each function and shape of its input.

Judged are the first check and the norms of `_certificate`: an engine that batches samples by rules (torch.func's, or
ours) may be silently wrong where one autograd call a sample is not. Under vmap the loss itself may be another one,
since a tensor there does not say that it requires grad; so one sample is also run alone, outside of it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _certificate
from .._certificate import Difference, verdict
from .._cotangent import clips
from .._engines import out_of_memory
from .._errors import message
from .._graph import coarsest_in
from .._rounding import gamma, other_precisions, unit_roundoff
from .._tree import Tensors, add, cast, map_floats, norm
from ._evaluation import Evaluation
from ._value import PerSampleGrads

Change = Callable[[Any], Any]  # of the nest of all arguments
Again = Callable[[Change], tuple[Evaluation, PerSampleGrads]]
SAMPLES = 3
_CHECKS = {
    **_certificate.CHECKS,
    "alone": "the row of sample 0, and one autograd call of that sample outside of vmap",
}


class _Measured(NamedTuple):
    """How two routes to the same numbers differ, and the coarsest unit roundoff on the way.

    `cast` takes the data of the call to the precision in which this was measured.
    """

    call: str
    value: PerSampleGrads
    differences: dict[str, Difference]
    u: float
    cast: Change


def signature(run: Evaluation, value: PerSampleGrads) -> Any:
    """What a verification holds for: the engine, and shapes and types of parameters and samples."""
    shapes = tuple((name, tuple(like.shape), like.dtype) for name, like in value._shapes.items())
    samples = tuple((tuple(t.shape[1:]), t.dtype) for call in run.calls for t in call.batch.tensors)
    kinds = tuple(call.batch.kind for call in run.calls)
    # of one sample it is not seen whether samples are told apart
    return value.engine, value.batch_size > 1, shapes, samples, kinds, frozenset(run.noticed.graphs)


def verify(run: Evaluation, value: PerSampleGrads, again: Again) -> None:
    """Raise unless `value` agrees with an extra backward pass up to rounding.

    Args:
        run: the call that gave `value`.
        value: the engine's answer.
        again: runs the call again on data changed by a function of the nest of all arguments.

    What two orders of summing B rows may differ by (Higham's bound, `2 gamma_{B+2}`) passes. Beyond it everything is
    repeated in another precision: rounding shrinks, an error of method stays. What stays, or cannot be repeated, is
    held against the gradient's own conditioning, at the finest precision that runs: how far it moves when every input
    moves by one spacing. Of the digits that this leaves, half must agree (the geometric mean of that noise and of the
    error scale).

    Raises:
        RuntimeError: they do not, naming the parameter or the sample; or the loss returns something else at each run.
    """
    size = sum(call.size for call in run.calls) if not run.options.batched else value.batch_size
    if value.batch_size != size:
        raise RuntimeError(_wrong_size(run.call, value, size))
    if value.engine == "loop" or value.batch_size == 0:
        return  # the loop is autograd itself
    try:
        first = _measured(run, value)
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            return  # the graph of a chunk may take more than its rows; the call itself has succeeded
        raise
    # half types are summed in float32; their own roundoff would let errors of the size of the gradient pass
    bound = 2 * gamma(value.batch_size + 2, min(first.u, unit_roundoff(torch.float32)))
    if all(difference.relative <= bound for difference in first.differences.values()):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what there is to say was said the first time
        _judge(first, again)


def _judge(first: _Measured, again: Again) -> None:
    second = _repeated(first, again)
    judged = first if second is None or second.u > first.u else second  # the finest
    suspects = []
    for name, difference in first.differences.items():
        other = (None, None) if second is None else (second.differences.get(name), second.u)
        if verdict(difference, first.u, *other) == "wrong":
            suspects.append(name)
    if not suspects:
        return
    unchanged = _apart(judged.value, again(judged.cast)[1])
    moved = _apart(judged.value, again(lambda nest: map_floats(partial(_moved, u=judged.u), judged.cast(nest)))[1])
    for name in suspects:
        difference = judged.differences.get(name, first.differences[name])
        if unchanged[name] > math.sqrt(judged.u) * difference.scale:
            raise RuntimeError(_unrepeatable(first.call))
        if not difference.size <= max(moved[name], math.sqrt(moved[name] * difference.scale)):  # also for NaN
            raise RuntimeError(_explained(first.call, judged.value, name, difference))


def _apart(value: PerSampleGrads, other: PerSampleGrads) -> dict[str, float]:
    """How far the numbers of each check are apart in two runs."""
    r = _certificate.coefficients(value.losses, 0)
    sums = _certificate.compare(value.weighted_sum(r, wide=True), other.weighted_sum(r, wide=True), 1.0)
    norms = (value.first_chunk().norms() - other.first_chunk().norms()).abs().max()
    rows = _certificate.compare(_row(value), _row(other), 1.0)
    return {"weighted sum": sums.size, "norms": float(norms), "alone": rows.size}


def _row(value: PerSampleGrads) -> Tensors:
    """That of sample 0."""
    return {name: rows[0] for name, rows in value.select([0]).materialize().items()}


def _alone(run: Evaluation, value: PerSampleGrads) -> Difference | None:
    """Sample 0 by itself; None where it runs by itself anyway, draws by chunk, or cannot be run alone."""
    if run.options.batched or run.noticed.drew_otherwise:
        return None
    try:
        row = run.alone()
    except Exception:  # whatever a loss raises that is written for vmap alone
        return None
    return _certificate.compare(_row(value), row, norm(row))._replace(sample=0)


def _moved(tensor: Tensor, u: float) -> Tensor:
    """Every entry moved by one spacing at the coarsest precision on the way, up or down at random but always alike.

    An entry that is 0 moves by as much as the largest does, or as 1 would where all are 0.
    """
    up = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) < 0.5
    largest = tensor.detach().abs().max().nan_to_num() if tensor.numel() else tensor.new_zeros(())
    size = torch.where(tensor == 0, torch.where(largest > 0, largest, torch.ones_like(largest)), tensor)
    return tensor + size * torch.where(up.to(tensor.device), 2 * u, -2 * u).to(tensor.dtype)


def _measured(
    run: Evaluation, value: PerSampleGrads, cast: Change = lambda nest: nest, *, few: bool = False
) -> _Measured:
    r = _certificate.coefficients(value.losses, 0)
    if few:
        r *= torch.zeros_like(r).index_fill_(0, torch.linspace(0, len(r) - 1, SAMPLES).long().to(r.device), 1)
    total, u = None, 0.0
    for at, traced in run.graphs(value):
        if not few and clips(traced.losses):  # which takes a backward pass a sample
            return _measured(run, value, cast, few=True)
        u = max(u, coarsest_in(traced.losses, traced.leaves))
        part = traced.weighted_grad(r[at.to(r.device)])
        total = part if total is None else add(total, part)
    assert total is not None
    block = value.first_chunk()
    some = torch.linspace(0, block.batch_size - 1, min(SAMPLES, block.batch_size)).long().tolist()
    differences = {
        "weighted sum": _certificate.compare(value.weighted_sum(r, wide=True), total, _certificate.sum_scale(value, r)),
        "norms": _certificate.norms(block, some),
    }
    if (alone := _alone(run, value)) is not None:
        differences["alone"] = alone
    return _Measured(run.call, value, differences, u, cast)


def _repeated(first: _Measured, again: Again) -> _Measured | None:
    for dtype in other_precisions(next(iter(first.value._shapes.values())).dtype):
        to = partial(cast, dtype=dtype)
        try:
            return _measured(*again(to), to)
        except Exception:  # whatever the user's loss raises in a precision that it was not written for
            continue
    return None


def _explained(call: str, value: PerSampleGrads, check: str, difference: Difference) -> str:
    parameter = f" in '{difference.parameter}'" if difference.parameter else ""
    sample = f" for sample {difference.sample}" if difference.sample is not None else ""
    got = (
        f"gradients of engine {value.engine} that fail verification: {_CHECKS[check]} differ by "
        f"{difference.size:.2e} on a scale of {difference.scale:.2e}{parameter}{sample}, and that is no rounding"
    )
    do = "Pass engine='loop'; gf.testing.certify(loss, params, batch) shows every check; verify=False goes without."
    return message(call, got=got, expected="one extra backward pass to agree", do=do)


def _wrong_size(call: str, value: PerSampleGrads, size: int) -> str:
    got = f"gradients of engine {value.engine} that fail verification: they are of {value.batch_size} samples"
    return message(call, got=got, expected=f"{size}, as many as the batch has", do="Pass engine='loop'.")


def _unrepeatable(call: str) -> str:
    do = "Pass what changes as an argument, draw from torch's generators, or go without by verify=False."
    return message(call, got="a loss that returns something else at each run", expected="a pure function", do=do)
