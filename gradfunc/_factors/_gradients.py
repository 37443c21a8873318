"""`{name: Gradient}`: the rows of every parameter, as sums of factors, and what is asked of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._errors import message
from .._tree import At, Tensors, count, is_whole, weighed, wide
from ._blocks import fitting, spans
from ._dense import Dense
from ._factor import Factor
from ._mapped import Mapped, as_they_are
from ._outer import Outer
from ._unfolded import Unfolded


@dataclass(frozen=True, eq=False)
class Gradient:
    """One parameter's gradient of every sample: the sum of `factors`, exact zeros where there are none.

    Attributes:
        like: what a row looks like: a tensor of the parameter's shape, dtype and device. Its values are not read.
        size: number of samples, B.
        factors: those that can be joined are; a `Dense` stands alone.
    """

    like: Tensor
    size: int
    factors: tuple[Factor, ...]

    @classmethod
    def of(cls, like: Tensor, size: int, factors: Sequence[Factor]) -> Gradient:
        """Join what can be joined: kinds of equal features along T, and all with rows that are dense anyway.

        Raises:
            ValueError: a factor of another shape or number of samples.
        """
        for factor in factors:
            if (factor.size, factor.shape) != (size, tuple(like.shape)):
                got = f"a factor of {factor.size} rows of shape {factor.shape}"
                raise ValueError(message("Gradient.of", got=got, expected=f"{size} of shape {tuple(like.shape)}"))
        if not like.numel():
            return cls(like, size, ())
        if len(factors) > 1 and any(isinstance(factor, Dense) for factor in factors):
            return cls(like, size, (Dense(_added(like, size, factors)),))
        groups: dict[tuple[object, ...], list[Factor]] = {}
        for factor in factors:
            groups.setdefault((factor.kind, *factor.features), []).append(factor)
        return cls(like, size, tuple(_joined(group) for group in groups.values()))

    def formed(self) -> Gradient:
        """The same, its rows formed now: one product then serves all questions."""
        if not self.factors or any(isinstance(factor, Dense) for factor in self.factors):
            return self
        rows = self.factors[0].dense() if len(self.factors) == 1 else _added(_wide(self.like), self.size, self.factors)
        return Gradient(self.like, self.size, (Dense(rows),))

    @property
    def dtype(self) -> torch.dtype:
        """In which answers are given."""
        return wide(self.like.dtype)

    def select(self, at: At) -> Gradient:
        """Some of the samples."""
        if is_whole(at, self.size):
            return self
        return Gradient(self.like, count(at), tuple(factor.select(at) for factor in self.factors))

    def mapped(self, fn: Callable[[Tensor], Tensor]) -> Gradient:
        """The same factors on the tensors that `fn` makes of theirs, perhaps on another device."""
        factors = tuple(factor.mapped(fn) for factor in self.factors)
        like = _like(factors[0].tensors[-1], self.like.dtype, self.like.shape) if factors else self.like
        return Gradient(like, self.size, factors)

    def scaled(self, c: Tensor) -> Gradient:
        """Rows times `c`, `[B]`: one half of every factor is multiplied, the other where a 0 could meet inf or NaN."""
        if any(isinstance(factor, Mapped) for factor in self.factors):
            return Gradient(self.like, self.size, (Mapped(self, c, as_they_are),))
        kept = (c != 0).to(c.dtype)
        return Gradient(self.like, self.size, tuple(_scaled(factor, c, kept) for factor in self.factors))

    def dense(self) -> Tensor:
        """Every row, `[B, *shape]`, in the parameter's dtype."""
        if not self.factors:
            return self.like.new_zeros(self.size, *self.like.shape)
        if len(self.factors) == 1 and (isinstance(self.factors[0], Dense) or self.factors[0].dtype == self.like.dtype):
            return self.factors[0].dense().to(self.like.dtype)
        return _added(self.like, self.size, self.factors)


Gradients = dict[str, Gradient]


def from_rows(rows: Mapping[str, Tensor]) -> Gradients:
    """Rows `{name: [B, *shape]}` as they are."""
    return {
        name: Gradient(_like(value, value.dtype, value.shape[1:]), len(value), (Dense(value),))
        for name, value in rows.items()
    }


def select(rows: Gradients, at: At) -> Gradients:
    """Some of the samples, in the order of `at`."""
    return {name: gradient.select(at) for name, gradient in rows.items()}


def scaled(rows: Gradients, c: Callable[[str], Tensor | None]) -> Gradients:
    """Rows times `c(name)`, `[B]`, factors kept; a coefficient 0 leaves exact zeros, also for inf and NaN."""
    out = {}
    for name, gradient in rows.items():
        own = c(name)
        out[name] = gradient if own is None else gradient.scaled(own)
    return out


def through(rows: Gradients, fn: Callable[[Tensor], Tensor], c: Callable[[str], Tensor | None]) -> Gradients:
    """Every entry of the rows, times `c(name)`, `[B]`, through a function of entries; formed when asked."""
    return {
        name: Gradient(gradient.like, gradient.size, (Mapped(gradient, c(name), fn),) if gradient.like.numel() else ())
        for name, gradient in rows.items()
    }


def dense(rows: Gradients) -> Tensors:
    """`{name: [B, *shape]}` in the parameters' dtypes; views of what factors hold where that is rows."""
    return {name: gradient.dense() for name, gradient in rows.items()}


def tensors(rows: Gradients) -> list[Tensor]:
    """All that is held."""
    return [tensor for gradient in rows.values() for factor in gradient.factors for tensor in factor.tensors]


def mapped(rows: Gradients, fn: Callable[[Tensor], Tensor]) -> Gradients:
    """The same factors on the tensors that `fn` makes of theirs, perhaps on another device."""
    return {name: gradient.mapped(fn) for name, gradient in rows.items()}


def scratch_of(rows: Gradients) -> int:
    """The default budget in entries: the largest input of a layer, and 2^16 at least."""
    factors = [factor for g in rows.values() for factor in g.factors]
    within = [inner for factor in factors if isinstance(factor, Mapped) for inner in factor.inner.factors]
    held = (factor.x.numel() for factor in (*factors, *within) if isinstance(factor, (Outer, Unfolded)))
    return max(2**16, *held, 0)


def _scaled(factor: Factor, c: Tensor, kept: Tensor) -> Factor:
    halves = list(factor.tensors)
    others = [weighed(half, kept) if half.is_floating_point() else half for half in halves[:-1]]
    made = iter([*others, weighed(halves[-1], c)])
    return factor.mapped(lambda _: next(made))


def _like(some: Tensor, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """A tensor of one entry that looks like many."""
    return some.new_empty((), dtype=dtype).expand(tuple(shape))


def _wide(like: Tensor) -> Tensor:
    """What looks the same in the accumulation dtype."""
    return _like(like, wide(like.dtype), like.shape)


def _added(like: Tensor, size: int, factors: Sequence[Factor]) -> Tensor:
    """The sum of all rows, rounded once to the parameter's dtype, about 2^20 entries at a time."""
    out = like.new_empty(size, *like.shape)
    for at in spans(size, fitting(2**20, like.numel())):
        total = factors[0].select(at).dense().to(wide(like.dtype))
        for factor in factors[1:]:
            total = total + factor.select(at).dense()
        out[at] = total
    return out


def _joined(group: Sequence[Factor]) -> Factor:
    """Factors of one kind and equal features as one."""
    first = group[0]
    if len(group) == 1:
        return first
    columns = iter([torch.cat(column, 1) for column in zip(*(factor.tensors for factor in group), strict=True)])
    return first.mapped(lambda _: next(columns))
