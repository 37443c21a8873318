"""`gf.diagnose.gradient_flow`: the call."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..._errors import check_int, message
from ..._layers import entrywise
from ..._problem import Problem
from ..._stateless import PureModel, Stateless
from ..._tree import Tensors, tensors_of
from ...audit._case import attempt
from ...audit._options import asked_problem
from .._distribution import Distribution, describe
from . import _spread
from ._measure import CALL, Measured, Passes, measure
from ._report import FlowReport, FlowRow, verdict_of
from ._theory import theory_of
from ._trend import trend
from ._verdict import Evidence, judge, ratio


def gradient_flow(
    model: nn.Module | PureModel | Stateless,
    criterion: Any,
    batch: Any,
    *,
    lr: float | None = None,
    quantile_sample: int = 10_000,
    bins: int = 30,
    per_sample: bool = False,
    theory: bool = False,
    seed: int = 0,
) -> FlowReport:
    """Activations and gradients of a model layer by layer, and where they vanish, explode, die or saturate.

    One forward and one backward pass of the criterion's mean over the batch; tensors are described as they come, and
    none is kept. Hooks, `.grad`, running statistics and global generators are left alone. It costs some two plain
    passes of a transformer and three of a perceptron (`benchmarks/flow-cpu.json`).

    A layer is a use of parameters: whatever mixes them with data, with the activation that follows. *Comparable* are
    those with a parameter of two dimensions or more that do not act entry by entry; norms directly behind one are
    taken to be part of it. The factor of a layer is `|dL/da_{l-1}| / |dL/da_l|`, of norms: whatever the widths, it is
    sqrt(chi), chi = gain^2 E[phi'^2], in theory (Schoenholz et al. 2017, arXiv 1611.01232, section 4), with
    gain^2 = fan_in mean(w^2).

    A layer is "vanishing" where the gradient at it and at every layer before is below 1/100 of that at the last one, is
    exactly 0, or is lost in float32 beside the weights (lr |gradient| / |weight| < 2^-24, lr = 1 unless given);
    "exploding" where it is above 100 times, or a step replaces the weights (lr |gradient| / |weight| > 1, lr = 1/1000
    unless given); "dead" where more than 90 % of units are 0 for every sample, "saturated" where more than half of the
    entries are flat. `gradfunc/diagnose/_flow/_verdict.py` has the reasons. The net's verdict is its worst layer's.

    Args:
        model: an `nn.Module` in the mode you train it in, a pure model, or `gf.stateless(...)`. Batch norms normalise
            by the batch in train mode.
        criterion: `criterion(output, target)`, or `gf.whole(fn)`.
        batch: `(*inputs, target)`, or a mapping with a "target".
        lr: the learning rate, for `update` = lr |gradient| / |weight| (a step of plain SGD) and its verdict.
        quantile_sample: the most positions that quantiles and histograms are of; everything else is of all entries.
        bins: of histograms.
        per_sample: whether to look at gradients of single samples too (`gf.per_sample_grads`), for `spread`. It costs
            some ten plain passes: a new function of the losses is planned and verified each time.
        theory: whether to set `gf.init.variance_factor` beside the factors of layers for which it holds: linear and
            convolutional ones in a row. It takes tens of milliseconds a layer.
        seed: of samples of positions, and of draws in the model (dropout).

    Raises:
        TypeError: arguments of another form.
        ValueError: no trainable parameter, or none that meets data; NaN in the batch; an empty batch; numbers out of
            range.

    Example:
        >>> import gradfunc as gf
        >>> from torch import nn
        >>> layers = [part for _ in range(8) for part in (nn.Linear(32, 32), nn.Sigmoid())]
        >>> x = torch.randn(16, 32)
        >>> report = gf.diagnose.gradient_flow(nn.Sequential(*layers), nn.MSELoss(), (x, x))
        >>> report.verdict, report.rows[0].layer, report.rows[0].activation, report.trend.factor < 0.25
        ('vanishing', '0', 'sigmoid', True)
    """
    _check(lr, quantile_sample, bins, per_sample=per_sample, theory=theory)
    problem, _ = asked_problem(CALL, model, criterion, batch, dtype=None, device=None, batch_size=None, seed=seed)
    _refuse_nan(problem)
    said = functools.partial(describe, sample=quantile_sample, bins=bins, seed=abs(seed))
    passes = measure(problem, said, seed)
    samples, notes = None, []
    if per_sample:
        samples, failed = attempt(lambda: _spread.rows(problem, seed))
        notes += [] if failed is None else [f"no spread of samples: {failed}"]
    rows = _rows(passes, problem.model.params, said, samples, lr, theory)
    norms = [row.norm for row in rows if row.change is not None]
    return FlowReport(
        loss=passes.loss,
        batch_size=problem.size,
        rows=rows,
        trend=trend([norm for norm in norms if norm is not None]),
        verdict=verdict_of(rows),
        lr=lr,
        sample=quantile_sample,
        notes=tuple(notes),
    )


def _rows(
    passes: Passes, params: Tensors, said: Any, samples: _spread.Rows | None, lr: float | None, theory: bool
) -> tuple[FlowRow, ...]:
    products = {k for k, measured in enumerate(passes.uses) if _is_product(measured, params)}
    ends = _ends(passes.uses, products)
    norms = [_norm(passes.uses[k]) for k in ends]
    compared = [k for k in sorted(products) if norms[k] is not None]
    last = next((norms[k] for k in reversed(compared) if norms[k]), None)
    before = dict(zip(compared[1:], compared, strict=False))

    @functools.cache
    def of(names: tuple[str, ...]) -> tuple[Distribution, Distribution]:
        return said([params[name] for name in names]), said([passes.gradients[name] for name in names])

    rows, changes = [], []
    for k, measured in enumerate(passes.uses):
        use, seen = measured.use, measured.activation
        weights, gradient = of(measured.weights)
        quotient = None if gradient.nonfinite or weights.nonfinite else ratio(gradient.norm, weights.norm)
        norm = norms[k]
        change = norm / last if k in compared and last and norm is not None else None
        changes += [] if change is None else [change]
        evidence = Evidence(
            nonfinite=_nonfinite(seen.values, measured.gradient, weights, gradient),
            dead=seen.dead,
            units=seen.units,
            saturated=seen.saturated,
            change=change,
            least=min(changes, default=1.0),
            most=max(changes, default=1.0),
            ratio=quotient,
            reached=gradient.norm > 0,
            lr=lr,
        )
        verdict, why = judge(evidence)
        rows.append(
            FlowRow(
                layer=use.layer,
                use=use.number,
                uses=use.of,
                function=use.function,
                parameters=use.names,
                shape=tuple(use.shape),
                activation=use.activation,
                activations=seen.values,
                activation_gradient=measured.gradient,
                weights=weights,
                gradient=gradient,
                ratio=quotient,
                update=None if lr is None or quotient is None else lr * quotient,
                spread=None if samples is None else samples.of(measured.weights),
                norm=norm,
                change=change,
                factor=_quotient(norms[before[k]], norm) if k in before else None,
                gain=measured.gain,
                theory=attempt(functools.partial(theory_of, passes.uses, k, before[k], ends, params))[0]
                if theory and k in before
                else None,
                units=seen.units,
                dead=seen.dead,
                saturated=seen.saturated,
                verdict=verdict,
                evidence=why,
            )
        )
    return tuple(rows)


def _is_product(measured: Measured, params: Tensors) -> bool:
    use = measured.use
    return any(params[name].dim() >= 2 for name in use.names) and not entrywise(use.function)


def _ends(uses: Sequence[Measured], products: set[int]) -> list[int]:
    """Of each use, the last of the norms and scales that follow it directly, before any activation."""
    ends = list(range(len(uses)))
    for k in reversed(ends):
        readers = [j for j in range(k + 1, len(uses)) if k in uses[j].use.sources]
        if uses[k].use.activation is None and readers and readers[0] not in products:
            first = readers[0]
            ends[k] = ends[first] if uses[first].use.sources == (k,) else k
    return ends


def _norm(measured: Measured) -> float | None:
    gradient = measured.gradient
    return None if gradient is None or gradient.nonfinite else gradient.norm


def _quotient(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def _nonfinite(*found: Distribution | None) -> tuple[str, ...]:
    said = ("activations", "their gradient", "weights", "gradients of weights")
    return tuple(name for name, values in zip(said, found, strict=True) if values is not None and values.nonfinite)


def _check(lr: float | None, sample: int, bins: int, **switches: bool) -> None:
    if lr is not None and (isinstance(lr, bool) or not isinstance(lr, (int, float)) or not 0 < lr < math.inf):
        raise ValueError(message(CALL, got=f"lr={lr!r}", expected="a positive number, or None"))
    check_int(CALL, "quantile_sample", sample, 1)
    check_int(CALL, "bins", bins, 1)
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise TypeError(message(CALL, got=f"{name}={value!r}", expected="True or False"))


def _refuse_nan(problem: Problem) -> None:
    if problem.criterion.form == "whole":
        named: Sequence[tuple[str, Any]] = [("the batch", problem.batch)]
    else:
        named = [(f"input {k}", value) for k, value in enumerate(problem.args)]
        named += [(f"input {key!r}", value) for key, value in problem.kwargs.items()]
        named += [("the target", problem.target)]
    for name, value in named:
        tensors: list[Tensor] = tensors_of(value)
        if any(bool(tensor.isnan().any()) for tensor in tensors if not tensor.is_sparse):
            do = "Clean the data first; no statistic of a pass with NaN would mean anything."
            raise ValueError(message(CALL, got=f"NaN in {name}", expected="numbers", do=do))
