"""From a batch to the next parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._errors import kind_of, message
from .._per_sample import PerSampleGrads, PerSampleGradsFunction, per_sample_grads
from .._swap import levels
from .._tree import Tensors
from ._chain import Chain, name_of, places
from ._guarantee import NOTHING
from ._landing import Landing
from ._numbers import check_flag
from ._protocol import Grads, State, Transformation, Updates
from ._reductions import Accumulate, FromGram, GeometricMedian, Reduction
from ._rows import ClipPerSample
from ._said import StepReport
from ._stage import AnyStage, How, report_of


def apply_updates(params: Tensors, updates: Updates | None) -> Tensors:
    """The parameters plus their updates, each in the parameter's dtype and without a graph.

    Args:
        params: `{name: tensor}`.
        updates: `{name: tensor}` of some or all of them; None for no update yet, which gives `params` itself. What has
            none stays as it is.

    Raises:
        ValueError: an update of another name or shape.

    Example:
        >>> import torch, gradfunc as gf
        >>> gf.apply_updates({"w": torch.ones(2)}, gf.Updates({"w": torch.tensor([0.5, -0.5])}))
        {'w': tensor([1.5000, 0.5000])}
    """
    return _applied(params, updates, owned=False)


def _applied(params: Tensors, updates: Updates | None, *, owned: bool) -> Tensors:
    """The same; updates that nobody else holds may become the parameters."""
    if updates is None:
        return params
    for name, update in updates.items():
        if name not in params or params[name].shape != update.shape:
            expected = f"shape {tuple(params[name].shape)}" if name in params else f"one of {list(params)}"
            got = f"an update of '{name}', shape {tuple(update.shape)}"
            raise ValueError(message("gf.apply_updates(params, updates)", got=got, expected=expected))
    landed = updates.at(params) if isinstance(updates, Landing) else {}
    out = {}
    for name, value in params.items():
        if name in landed:
            out[name] = landed[name].detach() if owned else landed[name].detach().clone()
        elif name in updates:
            out[name] = _sum(value.detach(), updates[name].detach(), owned)
        else:
            out[name] = value
    return out


def _sum(value: Tensor, update: Tensor, owned: bool) -> Tensor:
    if owned and update.dtype == value.dtype and update.device == value.device:
        return update.add_(value)
    return (value + update).to(value.dtype)


@dataclass(frozen=True, eq=False)
class StepFunction:
    """`run(params, state, *args, step=None, index=None, **kwargs) -> (params | grads, state, report)`."""

    f: PerSampleGradsFunction
    step: Transformation[PerSampleGrads, Any]
    donate: bool = False
    report: bool = True

    def __call__(
        self,
        params: Tensors,
        state: State,
        /,
        *args: Any,
        step: int | None = None,
        index: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensors, State, StepReport]:
        """One batch, `args` and `kwargs`, through the chain; `step` and `index` name the draws of the loss."""
        if step is None and index is not None:
            call = "gf.make_step(loss, step)(params, state, ..., index=...)"
            raise ValueError(message(call, got="an index and no step", expected="step= beside index="))
        f = self.f if step is None else self.f.at(step, index)
        return self.advance([self.rows(f, params, args, kwargs)], state, params)

    @property
    def gives(self) -> Any:
        """What the chain gives: Updates, or Grads."""
        return places(self.step)[1]

    def advance(self, rows: list[PerSampleGrads], state: State, params: Tensors) -> tuple[Tensors, State, StepReport]:
        """The rows of one batch, alone in a list that is left empty, through the chain."""
        # no name here holds the rows: they are free as soon as the chain has reduced them
        if isinstance(self.step, AnyStage):
            how = How([] if self.report else None, owned=True, donate=self.donate, lands=self.gives is Updates)
            out, state = self.step.apply(rows.pop(), state, params, how)
            report, owned = report_of(how), self.step.fresh and not levels()
        else:
            out, state = self.step.update(rows.pop(), state, params)
            report, owned = StepReport(), False
        if self.gives is not Updates:
            return out, state, report
        return _applied(params, out, owned=owned), state, report

    def rows(
        self,
        f: PerSampleGradsFunction,
        params: Tensors,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        spent: bool = True,
    ) -> PerSampleGrads:
        """Rows that no later backward pass asks for: a state must not hold on to the batches of all steps before.

        `spent` where nobody asks them once the chain has reduced them.
        """
        if levels():  # a transform of torch.func differentiates what is around the step
            return f(params, *args, **kwargs)
        with torch.no_grad():
            g, spent = f(params, *args, **kwargs), spent and _keeps_none(self.step)
            return dataclasses.replace(g, _spent=spent, _held=() if spent else g._held)


# Reductions that keep no rows and ask for one sum, last.
SUMMING = (Reduction, Accumulate, GeometricMedian, FromGram)


def _keeps_none(step: Any) -> bool:
    """Whether all stages up to a reduction are known to hold no rows, so that it may free each layer as it sums it."""
    for stage in step.stages if type(step) is Chain else (step,):
        if type(stage) is not ClipPerSample:  # not a class made of it, which may keep what it is given
            return type(stage) in SUMMING
    return False


def make_step(
    loss_or_f: Callable[..., Any] | PerSampleGradsFunction,
    step: Transformation[PerSampleGrads, Grads | Updates],
    *,
    donate: bool = False,
    report: bool = True,
) -> StepFunction:
    """A function from parameters, state and a batch to the next ones: `run(params, state, *args, **kwargs)`.

    It returns `(params, state, report)` for a chain that ends in updates, `(grads, state, report)` for one that ends in
    gradients. Keyword arguments `step=` and `index=` of `run` go to `f.at`; all others, and `args`, to the loss.
    Nothing holds the per-sample gradients once the chain has reduced them; where nothing but clips comes before
    `gf.sum()`, `gf.mean()`, `gf.accumulate`, `gf.geometric_median` or `gf.from_gram`, each parameter's are free before
    the next is summed.

    Args:
        loss_or_f: a loss of one sample, or what `gf.per_sample_grads` made of one, with its options.
        step: a chain from per-sample gradients on. Its last stage says what it gives: `gives = gf.Updates`.
        donate: tensors of the state and parameters that `run` is given may be overwritten, as by torch's optimisers:
            for a loop that needs the last alone. Those of `model.params` are the module's, which changes with them.
        report: whether stages say what they did; quantiles of norms are computed for it at each step. Without, the
            report that `run` gives is empty, and costs nothing.

    Raises:
        TypeError: `step` is no stage, takes something else, or does not end in gradients or updates.
        ValueError: a stage needs rows that depend on one sample each, such as `gf.gaussian_mechanism` without
            `sensitivity=`, and the loss is one with `batched=True`, which may couple them.

    Example:
        >>> import torch, gradfunc as gf
        >>> step = gf.clip_per_sample(1.0) >> gf.mean()
        >>> run = gf.make_step(lambda p, x: (p["w"] * x).sum(), step)
        >>> p = {"w": torch.ones(2)}
        >>> grads, state, report = run(p, step.init(p), torch.tensor([[3.0, 4.0], [0.0, 0.5]]))
        >>> grads["w"], float(report["clip_per_sample"]["clipped"])
        (tensor([0.3000, 0.6500]), 0.5)
    """
    call = "gf.make_step(loss, step)"
    for name, value in {"donate": donate, "report": report}.items():
        check_flag(call, name, value)
    if not isinstance(step, Transformation):
        raise TypeError(message(call, got=kind_of(step), expected="a stage or a chain of stages"))
    takes, gives = places(step)
    if takes not in (None, PerSampleGrads):
        got = f"{name_of(step)}, which takes {takes.__name__}"
        raise TypeError(message(call, got=got, expected="a chain that takes per-sample gradients"))
    if gives not in (Grads, Updates):
        came = "does not say what it gives" if gives is None else f"gives {gives.__name__}"
        do = "End the chain with a reduction (gf.mean()) or a rule; one of your own says gives = gf.Updates."
        raise TypeError(message(call, got=f"{name_of(step)}, which {came}", expected="Grads or Updates", do=do))
    f = loss_or_f if isinstance(loss_or_f, PerSampleGradsFunction) else per_sample_grads(loss_or_f)
    if f.options.batched and isinstance(step, AnyStage):
        step.after(NOTHING, "batched=True")  # a loss of the whole batch may couple its rows
    return StepFunction(f, step, donate, report)
