"""`verify="first"`: an engine's answer against one extra backward pass, once for each function and shape of its input.

Judged are the first check and the norms of `_certificate`: an engine that batches samples by rules (torch.func's, or
ours) may be silently wrong where one autograd call a sample is not.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from .. import _certificate
from .._certificate import Difference, verdict
from .._engines import out_of_memory
from .._errors import message
from .._graph import coarsest_in
from .._rounding import gamma, other_precisions
from .._tree import add
from ._evaluation import Evaluation
from ._value import PerSampleGrads

Evaluated = tuple[Evaluation, PerSampleGrads]
SAMPLES = 3


class _Measured(NamedTuple):
    """How two routes to the same numbers differ, and the coarsest unit roundoff on the way."""

    differences: dict[str, Difference]
    u: float


def signature(run: Evaluation, value: PerSampleGrads) -> Any:
    """What a verification holds for: the engine, and shapes and types of parameters and samples."""
    shapes = tuple((name, tuple(like.shape), like.dtype) for name, like in value._shapes.items())
    samples = tuple((tuple(t.shape[1:]), t.dtype) for call in run.calls for t in call.batch.tensors)
    return value.engine, shapes, samples


def verify(run: Evaluation, value: PerSampleGrads, again: Callable[[torch.dtype], Evaluated]) -> None:
    """Raise unless `value` agrees with an extra backward pass up to rounding.

    What two orders of summing B rows may differ by (Higham's bound, `2 gamma_{B+2}`) passes. Beyond it everything is
    repeated in another precision, by `again`: rounding shrinks, an error of method stays. Where that does not run,
    half of the digits must agree.

    Raises:
        RuntimeError: it does not; names the parameter or the sample.
    """
    if value.engine == "loop" or value.batch_size == 0:
        return  # the loop is autograd itself
    try:
        first = _measured(run, value)
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            return  # the graph of a chunk may take more than its rows; the call itself has succeeded
        raise
    bound = 2 * gamma(value.batch_size + 2, first.u)
    if all(difference.relative <= bound for difference in first.differences.values()):
        return
    second = _repeated(next(iter(value._shapes.values())).dtype, again)
    for name, difference in first.differences.items():
        other, u = (None, None) if second is None else (second.differences[name], second.u)
        if verdict(difference, first.u, other, u) == "wrong":
            raise RuntimeError(_explained(run.call, value, name, difference))


def _measured(run: Evaluation, value: PerSampleGrads) -> _Measured:
    r = _certificate.coefficients(value.losses, 0)
    total, u = None, 0.0
    for at, traced in run.graphs(value):
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
    return _Measured(differences, u)


def _repeated(dtype: torch.dtype, again: Callable[[torch.dtype], Evaluated]) -> _Measured | None:
    for other in other_precisions(dtype):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what there is to say was said the first time
            try:
                return _measured(*again(other))
            except Exception:  # whatever the user's loss raises in a precision that it was not written for
                continue
    return None


def _explained(call: str, value: PerSampleGrads, check: str, difference: Difference) -> str:
    parameter = f" in '{difference.parameter}'" if difference.parameter else ""
    sample = f" for sample {difference.sample}" if difference.sample is not None else ""
    got = (
        f"gradients of engine {value.engine} that fail verification: {_certificate.CHECKS[check]} differ by "
        f"{difference.size:.2e} on a scale of {difference.scale:.2e}{parameter}{sample}, and that is no rounding"
    )
    do = (
        "Pass engine='loop', which is right unless the loss returns something else each time it runs; "
        "gf.testing.certify(loss, params, batch) shows every check; verify=False goes without."
    )
    return message(call, got=got, expected="one extra backward pass to agree", do=do)
