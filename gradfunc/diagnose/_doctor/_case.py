"""What probes look at: each measurement is taken once, when it is first asked for, and its passes are counted."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..._engines import gradients
from ..._problem import Criterion, Problem
from ..._random import RecordDraws, ReplayDraws, forked
from ..._transform import StepReport
from ..._tree import Tensors, norm, subtract
from ...audit._case import attempt, devices_of, mean_loss
from ...audit._independence import Independence, independence
from ...quantities import HessianExtremes, hessian_extremes
from .._flow import FlowReport, gradient_flow
from . import _limits
from ._copies import Count, Descent, Pass, copies
from ._finding import NotRun
from ._outputs import kind_of_criterion, last_activation


@dataclass(frozen=True, eq=False)
class Case:
    """A model, a criterion, data and an optimiser, with what is measured of them.

    Attributes:
        problem: the model, the criterion and the first batch.
        batches: all batches that were read.
        given: the first batch as it came.
        module: the user's module; None for a pure model.
        optimizer: the user's, or None.
        step: the user's update, or None.
        seed: of draws in the model.
        reports: what the user's chain said at earlier steps.
        count: passes so far.
    """

    problem: Problem
    batches: tuple[Problem, ...]
    given: Any
    module: nn.Module | None
    optimizer: Optimizer | None
    step: Any
    seed: int
    reports: tuple[StepReport, ...] = ()
    count: Count = field(default_factory=Count)

    # --- the criterion and the data -------------------------------------------------------------------------------

    @property
    def criterion(self) -> Criterion:
        """The criterion."""
        return self.problem.criterion

    @functools.cached_property
    def kind(self) -> str:
        """The name of torch's functional: "mse_loss", "cross_entropy", ...; "" for another criterion."""
        return kind_of_criterion(self.criterion)

    @property
    def target(self) -> Tensor:
        """The target of the first batch.

        Raises:
            NotRun: it is no tensor, or belongs to a criterion on the whole.
        """
        if not isinstance(self.problem.target, Tensor):
            raise NotRun("the target is no single tensor")
        return self.problem.target

    @functools.cached_property
    def targets(self) -> Tensor:
        """Those of all batches, one after the other."""
        _ = self.target
        return torch.cat([batch.target.detach() for batch in self.batches])

    @functools.cached_property
    def inputs(self) -> Tensor:
        """The first floating input with dimensions of its own, of all batches: `[n, ...]`.

        Raises:
            NotRun: there is none.
        """
        for k, value in enumerate(self.problem.args):
            if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1:
                return torch.cat([batch.args[k].detach() for batch in self.batches])
        raise NotRun("no floating input with features")

    # --- passes -----------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _passed(self) -> tuple[Pass | None, str | None]:
        with self._draws:
            return attempt(lambda: self.pass_at(self.problem, self.problem.model.params))

    @functools.cached_property
    def _draws(self) -> RecordDraws:
        """Of the first pass, once it ran."""
        return RecordDraws()

    @functools.cached_property
    def again(self) -> Tensor:
        """The loss of a second forward pass with the seed of the first."""
        return self.loss_of(self.problem, self.problem.model.params)[1].detach()

    @property
    def repeats(self) -> bool:
        """Whether both passes give the same, to the bit."""
        return torch.equal(self.first.loss.detach(), self.again)

    @property
    def error(self) -> str:
        """What the forward or backward pass raised, "" where both ran."""
        return self._passed[1] or ""

    @property
    def first(self) -> Pass:
        """The pass of the first batch.

        Raises:
            NotRun: it failed.
        """
        if self._passed[0] is None:
            raise NotRun("the pass of the first batch fails: see the findings")
        return self._passed[0]

    @property
    def output(self) -> Tensor:
        """The model's output, with its graph."""
        if not isinstance(self.first.output, Tensor):
            raise NotRun("the output is no single tensor")
        return self.first.output

    @property
    def loss(self) -> float:
        """The user's loss of the first batch."""
        return float(self.first.loss.detach())

    @functools.cached_property
    def gradient(self) -> Tensors:
        """Of the user's loss; zeros where none comes."""
        params = self.problem.model.params
        found = self.first.gradients
        return {name: torch.zeros_like(value) if (g := found[name]) is None else g for name, value in params.items()}

    @functools.cached_property
    def model_output(self) -> Tensor | None:
        """The output for the first batch, also where the criterion refuses it; None where the model does, or of a whole
        criterion."""
        if self._passed[0] is not None:
            return self._passed[0].output if isinstance(self._passed[0].output, Tensor) else None
        if self.criterion.form == "whole":
            return None
        params = {name: value.detach() for name, value in self.problem.model.params.items()}
        self.count.forward += 1
        with torch.no_grad(), forked(self.seed, 0, devices=devices_of(self.problem)):
            found, _ = attempt(lambda: self.problem.output(functools.partial(self.problem.model, params)))
        return found if isinstance(found, Tensor) else None

    @functools.cached_property
    def falls(self) -> bool:
        """Whether the loss is lower after some steps of the optimiser on copies."""
        losses = self.descent.losses
        return losses[-1] < losses[0] or losses[-1] == losses[0] == 0

    @functools.cached_property
    def waiting(self) -> tuple[str, ...]:
        """Parameters that are 0 and will move with the first step: a head, a gate or a branch that begins at 0."""
        params = self.problem.model.params
        zero = [name for name, value in params.items() if not bool(value.any())]
        return tuple(name for name in zero if bool(self.gradient[name].any()))

    @functools.cached_property
    def waking(self) -> tuple[str, ...]:
        """Parameters whose gradient is exactly 0 now, and is not after a step: the optimiser's, else one that moves
        weights by a thousandth."""
        asleep = [name for name, g in self.gradient.items() if not bool(g.any())]
        params = self.problem.model.params
        if not asleep or not self.waiting:
            return ()
        if self.optimizer is not None and self.module is not None and any(self.rates):
            return tuple(name for name in asleep if name in self.descent.reached)
        share = 1e-3 * norm(params) / (norm(self.gradient) or 1.0)
        moved = {name: value.detach() - share * self.gradient[name] for name, value in params.items()}
        found = self.pass_at(self.problem, moved).gradients
        return tuple(name for name in asleep if (g := found[name]) is not None and bool(g.any()))

    @functools.cached_property
    def made_by(self) -> str:
        """The activation that made the output, "" where another operation did."""
        return last_activation(self.output)

    def loss_of(self, problem: Problem, params: Tensors) -> tuple[Any, Tensor]:
        """Output and loss, as the user's criterion reduces it."""
        self.count.forward += 1
        seen: list[Any] = []

        def model(*args: Any, **kwargs: Any) -> Any:
            seen.append(problem.model(params, *args, **kwargs))
            return seen[-1]

        with torch.enable_grad(), forked(self.seed, 0, devices=devices_of(problem)):
            if problem.criterion.form == "reducible" and problem.criterion.option("reduction") == "sum":
                loss = problem.criterion.reduced(problem.output(model), problem.target, "sum")
            else:
                loss = mean_loss(problem, model)
        return (seen[-1] if seen else None), loss

    def pass_at(self, problem: Problem, params: Tensors) -> Pass:
        """A forward and a backward pass elsewhere."""
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        output, loss = self.loss_of(problem, leaves)
        if not loss.requires_grad:
            return Pass(output, loss, dict.fromkeys(leaves))
        self.count.backward += 1
        return Pass(output, loss, gradients(loss, leaves))

    @functools.cached_property
    def in_double(self) -> Pass:
        """The pass in float64, with the draws of the first one.

        Raises:
            NotRun: it fails there, or its draws cannot be those of the first.
        """
        _ = self.first
        if not self.repeats:
            raise NotRun("two passes with one seed differ")
        if self._draws.failed:
            raise NotRun("the model draws inside of a fused operator: float64 would draw otherwise")
        problem = self.problem.cast(torch.float64)
        with ReplayDraws([self._draws.record]):
            found, failed = attempt(lambda: self.pass_at(problem, problem.model.params))
        if found is None:
            raise NotRun(f"the model does not run in float64: {failed}")
        return found  # type: ignore[no-any-return]

    @functools.cached_property
    def flow(self) -> FlowReport:
        """`gf.diagnose.gradient_flow` of the first batch, by rates in use: the user's own has probes of its own."""
        _ = self.first
        self.count.forward += 1
        self.count.backward += 1
        found, failed = attempt(
            lambda: gradient_flow(
                self.problem.model,
                self.criterion,
                self.problem.batch,
                quantile_sample=100,
                seed=self.seed,
            )
        )
        if found is None:
            raise NotRun(f"gradient_flow: {failed}")
        return found  # type: ignore[no-any-return]

    @functools.cached_property
    def independence(self) -> Independence:
        """Whether a sample's loss depends on other samples, of the first sixteen.

        Raises:
            NotRun: it cannot be told.
        """
        problem = self.problem.rows(0, min(self.problem.size, 16))
        found, failed = attempt(lambda: independence(problem, self.seed))
        if found is None:
            raise NotRun(failed)
        self.count.forward += 2 * (problem.size - 1).bit_length() + 2
        return found  # type: ignore[no-any-return]

    # --- the optimiser --------------------------------------------------------------------------------------------

    @property
    def rates(self) -> list[float]:
        """Learning rates of the optimiser's groups."""
        groups: Sequence[dict[str, Any]] = [] if self.optimizer is None else self.optimizer.param_groups
        return [float(group["lr"]) for group in groups if "lr" in group]

    @functools.cached_property
    def halves(self) -> tuple[float, float]:
        """Squared norms of the batch's gradient, and of half the difference of those of its halves: of chance alone.

        Raises:
            NotRun: fewer than four samples, or no halves.
        """
        half = self.problem.size // 2
        if half < 2:
            raise NotRun("too few samples")
        found, failed = attempt(lambda: self.pass_at(self.problem.rows(0, half), self.problem.model.params))
        if found is None:
            raise NotRun(f"the first half of the batch fails: {failed}")
        given = {name: g for name, g in found.gradients.items() if g is not None}
        # the second half is what the mean lacks: the difference of both is twice that of the first and the mean
        return norm(self.gradient) ** 2, norm(subtract(given, {name: self.gradient[name] for name in given})) ** 2

    @functools.cached_property
    def curvature(self) -> HessianExtremes:
        """Ends of the Hessian of the user's loss of the first batch."""
        return self.curvature_in({})

    def curvature_in(self, scales: Tensors) -> HessianExtremes:
        """The same in the parameters `value / scale`: of `D H D`, D the scales."""
        problem = self.problem
        params = {name: value.detach() / scales.get(name, 1.0) for name, value in problem.model.params.items()}

        def loss(u: Tensors, _: Tensor) -> Tensor:
            given = problem.cast(torch.float64) if next(iter(u.values())).dtype == torch.float64 else problem
            wide = {name: value * scales[name].to(value) if scales else value for name, value in u.items()}
            return self.loss_of(given, wide)[1][None]

        row = next(iter(params.values())).new_zeros(1)
        found, failed = attempt(
            lambda: hessian_extremes(
                loss, params, (row,), batched=True, engine="loop", verify=False, tol=1e-2, max_products=200
            )
        )
        if found is None:
            raise NotRun(f"no curvature: {failed}")
        self.count.backward += 2 * found.products
        return found  # type: ignore[no-any-return]

    @functools.cached_property
    def descent(self) -> Descent:
        """Some steps of the optimiser on copies.

        Raises:
            NotRun: no optimiser, or none that can be copied.
        """
        from_copies = copies(self.module, self.optimizer)
        _ = self.first
        problem = self.problem
        named = dict(from_copies[0].named_parameters())
        before = {name: named[name].detach().clone() for name in problem.model.params}
        losses: list[float] = []
        reached: list[tuple[str, ...]] = []

        def closure() -> float:
            now = {name: named[name].detach() for name in problem.model.params}
            found = self.pass_at(problem, now) if losses else self.first  # the first one is known
            for name, g in found.gradients.items():
                named[name].grad = None if g is None else g.detach().clone()
            reached.append(tuple(n for n, g in found.gradients.items() if g is not None and bool(g.any())))
            losses.append(float(found.loss.detach()))
            return losses[-1]

        moved: Tensors = {}
        for _k in range(_limits.STEPS):
            _, failed = attempt(lambda: from_copies[1].step(closure))
            if failed is not None:
                raise NotRun(f"the optimiser's step on a copy fails: {failed}")
            moved = moved or {name: named[name].detach() - value for name, value in before.items()}
        final, failed = attempt(lambda: self.loss_of(problem, {n: named[n].detach() for n in problem.model.params})[1])
        losses.append(float(final.detach()) if final is not None else float("nan"))
        # an optimiser that evaluates several times a step gives more losses than steps: the first and the last count
        return Descent(tuple(losses), moved, reached[1] if len(reached) > 1 else ())
