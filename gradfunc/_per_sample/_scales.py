"""What rows are multiplied by: one number a sample, in steps; some wait until a query computes the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .._tree import At, weighed

# From the norms [b] of some rows, as they are after the steps before, and a number given for each, [b] in float64, to
# what each is multiplied by, [b]. A row's factor is a function of its own norm and number, since rows come in whatever
# pieces are computed at once.
OfNorms = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Step:
    """One factor a sample: `fixed[i]`, or `functions[which[i]]` of the row's norm and that where `which[i] >= 0`.

    `fixed` is `[B]` in float64 where the losses are, `which` `[B]` on the CPU. Values that are joined may each have a
    function of their own.
    """

    fixed: Tensor
    functions: tuple[OfNorms, ...]
    which: Tensor

    @classmethod
    def of(cls, c: Tensor) -> Step:
        """Known numbers."""
        return cls(c, (), torch.full((len(c),), -1))

    def select(self, index: Tensor) -> Step:
        """Of some of the samples."""
        return Step(self.fixed[index], self.functions, self.which[index])

    def at(self, at: At, norms: Callable[[], Tensor]) -> Tensor:
        """The numbers of some samples, whose rows have these norms; they are not asked for unless a function does."""
        c, which = self.fixed[at], self.which[at]
        for k, function in enumerate(self.functions):
            if len(own := (which == k).nonzero()[:, 0]):
                c = c.index_put((own,), function(norms()[own], self.fixed[at][own]).to(c))
        return c


@dataclass(frozen=True, eq=False)
class Scales:
    """Row i is the source's row i times the product of all steps, 0 where one of them is: also for inf and NaN."""

    steps: tuple[Step, ...] = ()

    def times(self, c: Tensor) -> Scales:
        """And then times `c`, `[B]` in float64."""
        if self.steps and not self.steps[-1].functions:
            return Scales((*self.steps[:-1], Step.of(_product(self.steps[-1].fixed, c))))
        return Scales((*self.steps, Step.of(c)))

    def deferred(self, function: OfNorms, given: Tensor) -> Scales:
        """And then times a function of the norms that rows have by then and of `given`, `[B]` in float64."""
        return Scales((*self.steps, Step(given, (function,), torch.zeros(len(given), dtype=torch.int64))))

    def select(self, index: Tensor) -> Scales:
        """Of some of the samples."""
        return Scales(tuple(step.select(index) for step in self.steps))

    def at(self, at: At, norms: Callable[[], Tensor]) -> Tensor | None:
        """What the rows of some samples, of these norms in the source, are multiplied by: `[b]`; None for nothing."""
        c: Tensor | None = None
        for step in self.steps:
            factor = step.at(at, partial(_by_then, norms, c))
            c = factor if c is None else _product(c, factor)
        return c


def joined(parts: Sequence[tuple[Scales, Tensor]]) -> Scales:
    """Of several values one after the other, each beside its losses; steps that a value lacks leave it as it is."""
    depth = max(len(scales.steps) for scales, _ in parts)
    return Scales(tuple(_joined([_step(*part, k) for part in parts]) for k in range(depth)))


def _step(scales: Scales, losses: Tensor, k: int) -> Step:
    return scales.steps[k] if k < len(scales.steps) else Step.of(torch.ones_like(losses, dtype=torch.float64))


def _joined(steps: list[Step]) -> Step:
    functions: list[OfNorms] = []
    which = []
    for step in steps:
        functions += [function for function in step.functions if function not in functions]
        # the last entry is what an index of -1, no function, finds
        places = torch.tensor([*(functions.index(function) for function in step.functions), -1])
        which.append(places[step.which])
    return Step(torch.cat([step.fixed for step in steps]), tuple(functions), torch.cat(which))


def _by_then(norms: Callable[[], Tensor], c: Tensor | None) -> Tensor:
    return norms() if c is None else weighed(norms(), c.abs())


def _product(a: Tensor, b: Tensor) -> Tensor:
    product = a * b  # which has a derivative also where it is 0
    return torch.where(((a == 0) | (b == 0)) & ~product.isfinite(), torch.zeros_like(a), product)
