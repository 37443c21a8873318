"""One forward and one backward pass of a problem: plain, which is all that a healthy batch costs, or watched."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..._errors import message
from ..._layers import Walk
from ..._nonfinite import Origin, Watch
from ..._problem import Problem
from ..._random import forked
from ..._tree import Tensors, wide
from ...audit._case import attempt, devices_of, mean_loss

CALL = "gf.diagnose.find_nonfinite(model, criterion, batch)"


@dataclass(frozen=True)
class Outcome:
    """What two passes gave.

    Attributes:
        loss: whether it is finite.
        gradients: names of the parameters whose gradient is not.
        origin: of the first number that reached them; None if all are finite, or nothing was watched.
        raised: the error of an operation that refused such a number, "" where none did.
    """

    loss: bool
    gradients: tuple[str, ...]
    origin: Origin | None = None
    raised: str = ""

    @property
    def finite(self) -> bool:
        """Whether all is."""
        return self.loss and not self.gradients


def plain(problem: Problem, seed: int) -> Outcome:
    """The criterion's mean and its gradient, looked at once."""
    loss, grads = _passes(problem, functools.partial(mean_loss, problem), seed)
    return _outcome(loss, grads)


def watched(
    problem: Problem,
    seed: int,
    *,
    of: int | None = None,
    widen: bool = False,
    ranges: bool = True,
    layers: bool = False,
) -> Outcome:
    """The same under a watch. An operation that raises at a number which is not finite ends them, not the search.

    Args:
        problem: all samples, or some.
        seed: of draws in the model.
        of: how many samples the batch has of which these are some: their losses count as they do there.
        widen: make float64 of what the model makes in narrower types.
        ranges: note what operations read.
        layers: follow the model's layers, to say after which one it was.
    """
    model = problem.model
    own = (model.params, model.frozen, model.buffers)
    watch = Watch(_named(problem), own=own, widen=widen, ranges=ranges)
    loss_of = functools.partial(mean_loss, problem) if of is None else functools.partial(_share, problem, of)
    met: list[tuple[int, str]] = []

    def followed(bound: Callable[..., Any]) -> Tensor:
        params: Tensors = bound.args[0]  # type: ignore[attr-defined]
        walk = Walk(params, lambda tensor, use: None)
        loss: Tensor = loss_of(walk.around(bound))
        met.extend((use.output.node._sequence_nr(), use.layer) for use in walk.uses() if use.output is not None)
        return loss

    try:
        with watch:
            got, _ = attempt(lambda: _passes(problem, followed, seed)) if layers else (None, None)
            loss, grads = got or _passes(problem, loss_of, seed)
    except Exception as error:
        origin = watch.refused()
        if origin is None:
            raise  # the user's own
        return Outcome(False, (), origin, said(error))
    found = _outcome(loss, grads)
    if found.finite:
        return found
    results = list(grads.values()) if found.loss else loss
    return Outcome(found.loss, found.gradients, watch.origin(results, met))


def said(error: Exception) -> str:
    """Its kind and first line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _passes(problem: Problem, loss_of: Callable[[Any], Tensor], seed: int) -> tuple[Tensor, Tensors]:
    leaves = {name: value.detach().requires_grad_() for name, value in problem.model.params.items()}
    with torch.enable_grad(), forked(seed, 0, devices=devices_of(problem)):
        loss = loss_of(functools.partial(problem.model, leaves))
        if not loss.requires_grad:
            expected = "a loss that depends on parameters of the model"
            raise ValueError(message(CALL, got="a loss without a gradient", expected=expected))
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return loss, {name: grad for name, grad in zip(leaves, found, strict=True) if grad is not None}


def _share(problem: Problem, of: int, model: Callable[..., Any]) -> Tensor:
    """What some samples add to the mean over `of`: without the 0/0 of a sample whose targets are all ignored."""
    if problem.criterion.form == "rows":
        return problem.criterion.rows(problem.output(model), problem.target).numerator.sum() / of
    if problem.criterion.form == "reducible" and problem.criterion.family == "class":
        return problem.criterion.reduced(problem.output(model), problem.target, "sum") / of
    return mean_loss(problem, model) * (problem.size / of)


def _outcome(loss: Tensor, grads: Tensors) -> Outcome:
    """A sum is NaN or inf where an entry is; as it may overflow besides, entries are asked where one is."""
    sums = [grad._values() if grad.is_sparse else grad for grad in (loss.detach(), *grads.values())]
    sums = [value.sum(dtype=None if value.is_complex() else wide(value.dtype)).to(loss.device) for value in sums]
    good = torch.stack([value.isfinite() for value in sums]).tolist()
    bad = tuple(name for name, fine in zip(grads, good[1:], strict=True) if not fine and not _finite(grads[name]))
    return Outcome(_finite(loss), bad)


def _finite(tensor: Tensor) -> bool:
    values = tensor.detach()._values() if tensor.is_sparse else tensor.detach()
    return bool(values.isfinite().all())


def _named(problem: Problem) -> dict[str, Any]:
    model = problem.model
    named: dict[str, Any] = {f"parameter '{name}'": value for name, value in model.params.items()}
    named |= {f"frozen parameter '{name}'": value for name, value in model.frozen.items()}
    named |= {f"buffer '{name}'": value for name, value in model.buffers.items()}
    if problem.criterion.form == "whole":
        return {**named, "the batch": problem.batch}
    named |= {f"input {k}": value for k, value in enumerate(problem.args)}
    named |= {f"input '{key}'": value for key, value in problem.kwargs.items()}
    return {**named, "the target": problem.target}
