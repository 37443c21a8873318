"""What rows are multiplied by: one number a sample, in steps; some wait until a query computes the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from .._tree import At, weighed

# From the norms [b] of some rows, as they are after the steps before, and a number given for each, [b] in float64, to
# what each is multiplied by, [b]. A row's factor is a function of its own norm and number, since rows come in whatever
# pieces are computed at once.
OfNorms = Callable[[Tensor, Tensor], Tensor]
Names = tuple[str, ...]
# Parameters that have been multiplied by the same numbers so far, and these, `[b]`; None for ones.
Group = tuple[Names, Tensor | None]


@dataclass(frozen=True, eq=False)
class Step:
    """One factor a sample: `fixed[i]`, or `functions[which[i]]` of the row's norm and that where `which[i] >= 0`.

    `fixed` is `[B]` in float64 where the losses are, `which` `[B]` on the CPU. Values that are joined may each have a
    function of their own. A step of some parameters, `names`, knows the norms of these alone.
    """

    fixed: Tensor
    functions: tuple[OfNorms, ...]
    which: Tensor
    names: Names | None = None

    @classmethod
    def of(cls, c: Tensor, names: Names | None = None) -> Step:
        """Known numbers."""
        return cls(c, (), torch.full((len(c),), -1), names)

    def select(self, index: Tensor) -> Step:
        """Of some of the samples."""
        return Step(self.fixed[index], self.functions, self.which[index], self.names)

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

    def times(self, c: Tensor, names: Names | None = None) -> Scales:
        """And then times `c`, `[B]` in float64."""
        last = self.steps[-1] if self.steps else None
        if last is not None and not last.functions and last.names == names:
            return Scales((*self.steps[:-1], Step.of(_product(last.fixed, c), names)))
        return Scales((*self.steps, Step.of(c, names)))

    def deferred(self, function: OfNorms, given: Tensor, names: Names | None = None) -> Scales:
        """And then times a function of the norms that rows have by then and of `given`, `[B]` in float64."""
        return Scales((*self.steps, Step(given, (function,), torch.zeros(len(given), dtype=torch.int64), names)))

    def select(self, index: Tensor) -> Scales:
        """Of some of the samples."""
        return Scales(tuple(step.select(index) for step in self.steps))

    def at(
        self, at: At, names: Names, norms: Callable[[Names], Tensor], total: Callable[[list[Tensor]], Tensor]
    ) -> list[Group]:
        """What the rows of some samples are multiplied by, in groups of parameters.

        Args:
            at: the samples.
            names: all parameters of the source.
            norms: of its rows, some parameters together, `[b]`.
            total: the norm of all from those of parts.
        """
        groups: list[Group] = [(names, None)]
        for step in self.steps:
            inside, outside = _split(groups, step.names)
            factor = step.at(at, partial(_by_then, norms, total, inside))
            groups = [(own, factor if c is None else _product(c, factor)) for own, c in inside] + outside
        return groups


def joined(parts: Sequence[tuple[Scales, Tensor]]) -> Scales:
    """Of several values one after the other, each beside its losses; steps that a value lacks leave it as it is."""
    steps = []
    for k in range(max(len(scales.steps) for scales, _ in parts)):
        each = [_step(*part, k) for part in parts]
        for names in dict.fromkeys(step.names for step in each if step is not None):
            own = [step if step is not None and step.names == names else None for step in each]
            steps.append(_joined([step or _ones(losses) for step, (_, losses) in zip(own, parts, strict=True)]))
            steps[-1] = replace(steps[-1], names=names)
    return Scales(tuple(steps))


def _split(groups: Iterable[Group], names: Names | None) -> tuple[list[Group], list[Group]]:
    """The parts of groups that are among the names, and the rest."""
    if names is None:
        return list(groups), []
    chosen = set(names)
    inside: list[Group] = []
    outside: list[Group] = []
    for own, c in groups:
        for part, where in ((True, inside), (False, outside)):
            if some := tuple(name for name in own if (name in chosen) is part):
                where.append((some, c))
    return inside, outside


def _step(scales: Scales, losses: Tensor, k: int) -> Step | None:
    return scales.steps[k] if k < len(scales.steps) else None


def _ones(losses: Tensor) -> Step:
    return Step.of(torch.ones_like(losses, dtype=torch.float64))


def _joined(steps: list[Step]) -> Step:
    functions: list[OfNorms] = []
    which = []
    for step in steps:
        functions += [function for function in step.functions if function not in functions]
        # the last entry is what an index of -1, no function, finds
        places = torch.tensor([*(functions.index(function) for function in step.functions), -1])
        which.append(places[step.which])
    return Step(torch.cat([step.fixed for step in steps]), tuple(functions), torch.cat(which))


def _by_then(
    norms: Callable[[Names], Tensor], total: Callable[[list[Tensor]], Tensor], groups: Sequence[Group]
) -> Tensor:
    each = [norms(names) if c is None else weighed(norms(names), c.abs()) for names, c in groups]
    return each[0] if len(each) == 1 else total(each)


def _product(a: Tensor, b: Tensor) -> Tensor:
    product = a * b  # which has a derivative also where it is 0
    return torch.where(((a == 0) | (b == 0)) & ~product.isfinite(), torch.zeros_like(a), product)
