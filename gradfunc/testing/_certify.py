"""`gf.testing.certify`: do the answers of per-sample gradients agree with autograd and with each other?"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import _certificate
from .._certificate import CHECKS, Difference
from .._errors import message
from .._graph import coarsest_in
from .._per_sample import PerSampleGrads
from .._per_sample._function import PerSampleGradsFunction
from .._rounding import other_precisions
from .._tree import Tensors, cast, splatted
from ..audit._case import attempt
from ..audit._options import name_of
from ._report import CheckReport, CheckRow
from ._subject import function_of
from ._verdict import Judge

CALL = "gf.testing.certify(loss, params, batch)"
Loss = Callable[..., Any]
REMEDY = "gradfunc's own fault, or a loss that gives other values each time it runs: compare engine='loop'"


def certify(
    loss: Loss | PerSampleGradsFunction, params: Mapping[str, Tensor], batch: Any, **options: Any
) -> CheckReport:
    """Certify the per-sample gradients of a loss on a batch.

    Each check compares two routes to one number: (i) one extra backward pass of `sum r_i loss_i`, r random, with
    `weighted_sum(r)`; (ii) `r' gram r` with `|weighted_sum(r)|^2`, the diagonal of `gram` with `norms^2`, and for a few
    random samples the norm of the row with `norms`; (iii) on those samples, `dot(v)` and `weighted_sum` with the rows.
    A difference is rounding if it shrinks with the unit roundoff when params and batch are cast to another precision,
    and wrong if it stays. Where the loss does not run there, more than `sqrt(u)` of the error scale is wrong, and less
    "cannot tell", which leaves `ok` true: the report says so.

    Args:
        loss: a loss of one sample, one of a whole batch with `batched=True`, or a `gf.per_sample_grads(...)` function.
        params: `{name: tensor}`.
        batch: a mapping is passed on as keywords, a tuple or list as positionals, anything else as one positional.
        options: those of `gf.per_sample_grads`; none for a function that was made by it.

    Raises:
        TypeError: options beside a function that has its own, or what `gf.per_sample_grads` refuses.
        ValueError: a batch of 0 samples, or what `gf.per_sample_grads` refuses.

    Example:
        >>> import gradfunc as gf
        >>> model = gf.stateless(torch.nn.Linear(4, 3))
        >>> def loss(params, x, y):
        ...     return gf.losses.cross_entropy(model.sample(params, x), y)
        >>> report = gf.testing.certify(loss, model.params, (torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])))
        >>> report.ok, report.row("norms").verdict in ("exact", "rounding")
        (True, True)
    """
    f = function_of(CALL, loss, options)
    args, kwargs = splatted(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the loop is slow is no finding
        first = Certified.of(f, params, args, kwargs)
        second, why_not, other = _repeated(f, params, args, kwargs, first.dtype)
    judge = Judge(first.u, None if second is None else second.u, why_not)
    rows = certificate_rows(first, second, judge)
    return CheckReport(
        title=f"Certificate of engine {first.g.engine}",
        batch_size=first.g.batch_size,
        dtype=name_of(first.dtype),
        other_dtype=name_of(other) if second is not None else None,
        rows=tuple(rows),
        notes=() if second is not None else (f"could not be repeated in {name_of(other)}: {why_not}",),
    )


@dataclass(frozen=True, eq=False)
class Certified:
    """Per-sample gradients at one precision, the second route to their weighted sums, and how they differ."""

    g: PerSampleGrads
    dtype: torch.dtype
    weighted_grad: Callable[[Tensor], Tensors]
    u: float
    differences: dict[str, Difference]

    @classmethod
    def of(
        cls, f: PerSampleGradsFunction, params: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Certified:
        """Run `f`, and the checks."""
        g = f.unverified()(params, *args, **kwargs)
        if g.batch_size == 0:
            raise ValueError(message(CALL, got="a batch of 0 samples", expected="at least one"))
        graphs = list(f.evaluation(params, args, kwargs).graphs(g))

        def weighted_grad(r: Tensor) -> Tensors:
            parts = [traced.weighted_grad(r[at.to(r.device)]) for at, traced in graphs]
            return {name: torch.stack([part[name] for part in parts]).sum(0) for name in g.names}

        u = max(coarsest_in(traced.losses, traced.leaves) for _, traced in graphs)
        found = _certificate.certificate(g, weighted_grad, seed=f.options.seed)
        return cls(g, params[g.names[0]].dtype, weighted_grad, u, found)

    def upto(self, stop: int) -> Difference:
        """The first check, on the samples before `stop` alone."""
        r = _certificate.coefficients(self.g.losses, 0)
        r[stop:] = 0
        return _certificate.weighted_sum(self.g, self.weighted_grad, r)


def certificate_rows(first: Certified, second: Certified | None, judge: Judge, prefix: str = "") -> list[CheckRow]:
    """A row a check."""
    rows = []
    for name, compares in CHECKS.items():
        row = judge.row(
            prefix + name,
            compares,
            first.differences[name],
            None if second is None else second.differences[name],
            REMEDY,
        )
        if name == "weighted sum" and row.verdict == "wrong":
            row = _first_offender(row, first, second, judge)
        rows.append(row)
    return rows


def _first_offender(row: CheckRow, first: Certified, second: Certified | None, judge: Judge) -> CheckRow:
    """The row with the first sample for which an extra backward pass disagrees, found by bisection."""

    def upto(stop: int) -> CheckRow:
        other = None if second is None else second.upto(stop)
        return judge.row(row.check, row.compares, first.upto(stop), other, REMEDY)

    low, high = 0, first.g.batch_size  # wrong up to `high`, not up to `low`
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if upto(middle).verdict == "wrong" else (middle, high)
    return dataclasses.replace(row, parameter=upto(high).parameter or row.parameter, sample=high - 1)


def _repeated(
    f: PerSampleGradsFunction, params: Mapping[str, Tensor], args: Any, kwargs: Any, asked: torch.dtype
) -> tuple[Certified | None, str, torch.dtype]:
    why_not = ""
    for dtype in other_precisions(asked):
        again, failure = attempt(functools.partial(Certified.of, f, *cast((dict(params), args, kwargs), dtype)))
        if again is not None:
            return again, "", dtype
        why_not = why_not or failure or ""
    return None, why_not, other_precisions(asked)[0]
