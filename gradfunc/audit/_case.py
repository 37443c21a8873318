"""One problem at one precision: the shared forward pass, and the estimators measured from it.

All losses of a batch come from one forward pass under `reduction="none"`: *elements* `[n, ...]`. Each estimator of the
mean gradient is measured the plain way, as its user would write it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._engines import gradients
from .._errors import message
from .._problem import Problem
from .._random import Record, RecordDraws, forked
from .._tree import Tensors, add, norm, scale
from .._weights import Weighted, as_weighted

Grads = Tensors


@dataclass(frozen=True, eq=False)
class Forward:
    """One forward pass of the whole batch.

    Attributes:
        output: the model's output; None for a whole criterion.
        elements: losses under "none", `[n, ...]` with their graph; None where a whole criterion gives a scalar.
        weights: `[n]`, where the criterion carries its weights itself.
        scalar: the mean loss of a whole criterion.
    """

    output: Any
    elements: Tensor | None
    weights: Tensor | None
    scalar: Tensor | None


@dataclass(frozen=True, eq=False)
class PerSample:
    """What one backward pass a sample shows.

    Attributes:
        total: sum of the gradients.
        magnitude: sum of their absolute values, entry by entry: the scale of rounding in a sum.
        norms: sum of their norms.
        first: the gradients of samples 0 and 1.
    """

    total: Grads
    magnitude: Grads
    norms: float
    first: tuple[Grads, ...]


@dataclass(frozen=True)
class Passes:
    """How a batch was passed through the model in parts: the size of each, and its draws (None: not replayable)."""

    sizes: list[int]
    draws: list[Record] | None


@dataclass(frozen=True, eq=False)
class Case:
    """A problem at one precision, with its forward pass."""

    problem: Problem
    seed: int
    leaves: Tensors
    forward: Forward
    draws: Record | None

    @classmethod
    def of(cls, problem: Problem, seed: int) -> Case:
        """Run the forward pass."""
        leaves = {name: value.detach().requires_grad_() for name, value in problem.model.params.items()}
        with torch.enable_grad(), forked(seed, 0, devices=devices_of(problem)), recorded() as records:
            forward = run(problem, leaves)
        return cls(problem, seed, leaves, forward, records[0] if records else None)

    @property
    def size(self) -> int:
        """Number of samples."""
        return self.problem.size

    def elements_under(self, context: AbstractContextManager[Any]) -> Tensor:
        """The elements (or the scalar of a whole criterion) of another forward pass, under an intervention."""
        with torch.enable_grad(), forked(self.seed, 0, devices=devices_of(self.problem)), context:
            forward = run(self.problem, self.leaves)
        return value_of(forward)

    def gradient(self, c: Tensor, elements: Tensor | None = None) -> Grads:
        """`sum c * d(elements)`: one backward pass."""
        of = value_of(self.forward) if elements is None else elements
        return self.filled(gradients(of, self.leaves, c.to(of.dtype).expand_as(of)))

    def filled(self, grads: dict[str, Tensor | None]) -> Grads:
        """With zeros for what a loss does not depend on."""
        return {name: torch.zeros_like(self.leaves[name]) if g is None else g for name, g in grads.items()}

    def zeros(self) -> Grads:
        """Zero for every parameter."""
        return {name: torch.zeros_like(value).detach() for name, value in self.leaves.items()}


def run(problem: Problem, params: Tensors) -> Forward:
    """Run model and criterion on the whole batch."""
    return forward_of(problem, functools.partial(problem.model, params))


def forward_of(problem: Problem, model: Callable[..., Any]) -> Forward:
    """The same for the model as a function of its inputs."""
    criterion = problem.criterion
    if criterion.form == "whole":
        out = problem.whole(model)
        if isinstance(out, Tensor) and out.dim() == 0:
            return Forward(None, None, None, out)
        rows = _checked(problem, as_weighted("gf.whole(fn)", out, batched=True))
        return Forward(None, rows.numerator, rows.weight, None)
    output = problem.output(model)
    if criterion.form == "scalar":
        return Forward(output, None, None, criterion.called(output, problem.target))
    if criterion.form == "rows":
        rows = _checked(problem, criterion.rows(output, problem.target))
        return Forward(output, rows.numerator, rows.weight, None)
    elements = criterion.reduced(output, problem.target, "none")
    if elements.dim() == 0 or len(elements) != problem.size:
        raise ValueError(
            message(
                "criterion(output, target)",
                got=f"losses of shape {tuple(elements.shape)} under reduction='none' for {problem.size} samples",
                expected="the samples in dimension 0",
                do="Say where the batch sits with gf.stateless(model, in_dims=..., out_dims=...), or use gf.whole(fn).",
            )
        )
    return Forward(output, elements, None, None)


def value_of(forward: Forward) -> Tensor:
    """The elements, or the scalar where there are none."""
    value = forward.elements if forward.elements is not None else forward.scalar
    assert value is not None
    return value


# --- estimators of the mean gradient --------------------------------------------------------------


def per_sample(case: Case) -> PerSample:
    """One backward pass a sample's loss."""
    elements = case.forward.elements
    assert elements is not None
    total, magnitude, norms, first = case.zeros(), case.zeros(), 0.0, []
    for i in range(case.size):
        g = case.filled(gradients(elements[i].sum(), case.leaves))
        total = add(total, g)
        magnitude = {name: value + g[name].abs() for name, value in magnitude.items()}
        norms += norm(g)
        if i < 2:
            first.append(g)
    return PerSample(total, magnitude, norms, tuple(first))


def reduced(case: Case, reduction: str) -> Grads:
    """One backward pass of the criterion's own "sum" or "mean", from the shared forward pass."""
    forward, criterion = case.forward, case.problem.criterion
    if forward.scalar is not None:
        loss = forward.scalar
    elif forward.weights is not None:
        assert forward.elements is not None
        loss = ratio(forward.elements, forward.weights) if reduction == "mean" else forward.elements.sum()
    else:
        loss = criterion.reduced(forward.output, case.problem.target, reduction)
    grads = case.filled(gradients(loss, case.leaves))
    return scale(grads, 1 / case.size) if reduction == "sum" else grads


def sliced(case: Case) -> Grads:
    """The criterion's mean on one row of the output at a time, averaged over samples."""
    return scale(_accumulated(case, slice_losses(case)), 1 / case.size)


def slice_losses(case: Case) -> Iterator[Tensor]:
    """The mean loss of each sample, sliced from the shared output."""
    problem = case.problem
    for i in range(case.size):
        if case.forward.weights is not None:
            assert case.forward.elements is not None
            yield ratio(case.forward.elements[i : i + 1], case.forward.weights[i : i + 1])
        else:
            row = problem.output_rows(case.forward.output, i, i + 1)
            yield problem.criterion.reduced(row, problem.rows(i, i + 1).target, "mean")


def refed(case: Case) -> tuple[Grads, float, Passes]:
    """The mean loss of the model run on one sample at a time, averaged; the mean norm of those gradients; the passes.

    Where the model refuses a batch of one (BatchNorm on vectors), samples go in twos and a last three.
    """
    error: Exception | None = None
    for sizes in ([1] * case.size, [*[2] * (case.size // 2 - 1), 2 + case.size % 2] if case.size > 3 else []):
        try:
            if sizes:
                return _refed(case, sizes)
        except Exception as refusal:  # whatever the model raises on a batch of one
            error = error or refusal
    assert error is not None
    raise error


def _refed(case: Case, sizes: list[int]) -> tuple[Grads, float, Passes]:
    total, norms, start, records = case.zeros(), 0.0, 0, []
    with forked(case.seed, 1, devices=devices_of(case.problem)):
        for size in sizes:
            part = case.problem.rows(start, start + size)
            with torch.enable_grad(), recorded() as record:
                loss = mean_loss(part, functools.partial(part.model, case.leaves))
            records += record
            g = case.filled(gradients(loss, case.leaves))
            total = add(total, scale(g, size / case.size))
            norms += norm(g) * size / case.size
            start += size
    return total, norms, Passes(sizes, records if len(records) == len(sizes) else None)


def mean_loss(problem: Problem, model: Callable[..., Any]) -> Tensor:
    """The criterion's own mean over a batch, as a training loop computes it, of the model as a function of inputs."""
    if problem.criterion.form == "reducible":
        return problem.criterion.reduced(problem.output(model), problem.target, "mean")
    forward = forward_of(problem, model)
    if forward.scalar is not None:
        return forward.scalar
    assert forward.elements is not None
    assert forward.weights is not None
    return ratio(forward.elements, forward.weights)


def ratio(numerators: Tensor, weights: Tensor) -> Tensor:
    """The mean of rows that carry their weights; 0, not NaN, where every weight is 0."""
    weight = weights.sum()
    return numerators.sum() / torch.where(weight == 0, torch.ones_like(weight), weight)


def _accumulated(case: Case, losses: Iterator[Tensor]) -> Grads:
    total = case.zeros()
    for loss in losses:
        total = add(total, case.filled(gradients(loss, case.leaves)))
    return total


# --- help -------------------------------------------------------------------------------------------


@contextmanager
def recorded() -> Iterator[list[Record]]:
    """Records the draws inside; the list stays empty if one of them cannot be replayed."""
    mode = RecordDraws()
    records: list[Record] = []
    with mode:
        yield records
    if not mode.failed:
        records.append(mode.record)


def devices_of(problem: Problem) -> set[torch.device]:
    """Where the parameters are."""
    return {value.device for value in problem.model.params.values()}


def attempt(fn: Callable[[], Any]) -> tuple[Any, str | None]:
    """`(value, None)`, or `(None, first line of the error)`."""
    try:
        return fn(), None
    except Exception as error:  # the user's model and loop may raise anything; the rest of the audit goes on
        lines = str(error).strip().splitlines()
        return None, f"{type(error).__name__}: {lines[0] if lines else ''}"


def _checked(problem: Problem, rows: Weighted) -> Weighted:
    if len(rows.numerator) != problem.size:
        raise ValueError(
            message(
                "criterion",
                got=f"{len(rows.numerator)} losses for {problem.size} samples",
                expected="one loss a sample",
            )
        )
    return rows
