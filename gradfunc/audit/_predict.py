"""Closed forms: the gradient that an estimator has if given mechanisms act and no others."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from functools import cached_property

import torch
from torch import Tensor

from .._tree import Tensors
from ._measure import Measured
from ._mechanisms import BY_NAME, Mechanism, Parts, parts_of, singles, spread

Active = frozenset[str]


class Predictor:
    """Predictions for one measured case, each computed once: `sum c * d(elements)`, one backward pass."""

    def __init__(self, measured: Measured) -> None:
        self.case, self.passes = measured.case, measured.passes
        self._gradients: dict[tuple[str, Active], Tensors] = {}
        self._elements: dict[tuple[str, Active], Tensor] = {}
        self._loops: dict[tuple[str, Active], Tensors] = {}

    def estimate(self, estimator: str, active: Active) -> Tensors:
        """The estimator's gradient under the weight and forward mechanisms in `active`."""
        relevant = frozenset(name for name in active if estimator in BY_NAME[name].moves)
        key = (estimator, relevant)
        if key not in self._gradients:
            c = self._coefficients(estimator, relevant)
            self._gradients[key] = self.case.gradient(c, self._forward(estimator, relevant))
        return self._gradients[key]

    def parts(self, estimator: str) -> Parts:
        """The parts in which 're-fed' or 'yours' passed the batch; none if they did not cover it."""
        return parts_of(self.passes[estimator].sizes) if estimator in self.passes else []

    def loop(self, c: Tensor, active: Active) -> tuple[Tensors, float]:
        """The gradient of a loop with coefficients `c`, `[n]`, under the forward mechanisms in `active`.

        Returns `(direction, factor)`, whose product it is: many loops differ by a factor alone, and share a direction.
        """
        largest = float(c.abs().max())
        if largest == 0:
            return self.case.zeros(), 0.0
        c = c / (largest * self._divisor(self.true_weights))
        key = (",".join(f"{value:.12e}" for value in c.tolist()), active)
        if key not in self._loops:
            self._loops[key] = self.case.gradient(self._shaped(c), self._forward("yours", active))
        return self._loops[key], largest

    def sample_weights(self, active: Iterable[str]) -> Tensor:
        """The weight of each sample, `[n]`, under the weight mechanisms in `active`: 1 without any."""
        elements = self.case.forward.elements
        if elements is None:
            return torch.ones(self.case.size, dtype=torch.float64, device=self._device())
        weights = torch.ones_like(elements).detach()
        for mechanism in _of(active, "weight"):
            if mechanism.weight is not None:
                weights = weights * self._shaped(mechanism.weight(self.case))
        rows = weights.reshape(self.case.size, -1)
        return rows.sum(1) if any(m.counts for m in _of(active, "weight")) else rows.mean(1)

    def true_sample_weights(self) -> Tensor:
        """The weight with which the criterion's own mean counts each sample."""
        return self.sample_weights(self.true_weights)

    @cached_property
    def true_weights(self) -> Active:
        """The weight mechanisms that act in the criterion's own mean."""
        return frozenset(m.name for m in BY_NAME.values() if m.kind == "weight" and m.applies(self.case))

    def _coefficients(self, estimator: str, active: Active) -> Tensor:
        n, weights = self.case.size, self.sample_weights(active)
        if estimator in ("none", "sum / n"):
            return torch.ones_like(weights).mul(1 / n).reshape(-1, *self._trailing())
        if estimator == "forum loop":
            loop = BY_NAME["aliased_first_sample"].loop
            assert loop is not None
            _, c = next(iter(loop(self.case, singles(n), torch.ones_like(weights))))
            return self._shaped(c)
        if self.case.forward.elements is None:  # a scalar: its parts' means average to it
            return torch.ones((), dtype=weights.dtype, device=weights.device)
        parts = {"mean": [range(n)], "sliced": singles(n), "re-fed": self.parts("re-fed")}[estimator]
        factors = [len(part) / n for part in parts]
        if members := [m.members for m in _of(active, "weight") if m.members is not None]:
            masks = [mask.to(weights) for mask in members[0](self.case, parts)]
            pairs = zip(masks, factors, strict=True)
            return torch.stack([mask * (factor / mask.sum()) for mask, factor in pairs]).sum(0)
        return self._shaped(spread(parts, weights, factors) / self._divisor(active))

    def _divisor(self, active: Active) -> Tensor:
        found = [m.divides(self.case) for m in _of(active, "weight") if m.divides is not None]
        return found[0] if found else torch.ones((), dtype=torch.float64, device=self._device())

    def _forward(self, estimator: str, active: Active) -> Tensor | None:
        mechanisms = [m for m in _of(active, "forward") if estimator in m.moves]
        if not mechanisms:
            return None
        key = (estimator, frozenset(m.name for m in mechanisms))
        if key not in self._elements:
            passes = self.passes[estimator]
            with ExitStack() as stack:
                for m in mechanisms:
                    assert m.intervene is not None
                    stack.enter_context(m.intervene(passes.sizes, passes.draws))
                self._elements[key] = self.case.elements_under(stack.pop_all())
        return self._elements[key]

    def _device(self) -> torch.device:
        return next(iter(self.case.leaves.values())).device

    def _shaped(self, per_row: Tensor) -> Tensor:
        """A value a row, or an element, in a shape that broadcasts over the elements."""
        elements = self.case.forward.elements
        if elements is None:
            return per_row
        return per_row.reshape(*per_row.shape, *[1] * (elements.dim() - per_row.dim()))

    def _trailing(self) -> list[int]:
        elements = self.case.forward.elements
        return [] if elements is None else [1] * (elements.dim() - 1)


def _of(names: Iterable[str], kind: str) -> list[Mechanism]:
    return [BY_NAME[name] for name in names if BY_NAME[name].kind == kind]
