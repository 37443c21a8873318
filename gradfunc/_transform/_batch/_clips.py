"""Clips of the batch's gradient: entry by entry, by its norm, by the norm of each parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..._errors import one_of
from ..._tree import Tensors
from .._chain import BatchStage
from .._guarantee import SAMPLES, Guarantee, times
from .._numbers import NORM, NOT_NEGATIVE, Number, Range, at, check_number, counted, counting, fixed, shown
from .._protocol import Grads, State
from .._said import Facts
from .._stage import How, check_grads, gathered
from ._norms import POLICIES, measured, multiply, of_norms, parameter_norm, shrinking, zero_unless

_LIMIT = Range("a number > 0", lambda x: x > 0)
_NONE = "inf clips nothing."


@dataclass(frozen=True, repr=False)
class ClipByValue(BatchStage):
    """Made by `gf.clip_by_value`, which has the meanings."""

    limit: Number
    name = "clip_by_value"

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """Each entry is projected onto an interval, so no two inputs leave farther apart than they came."""
        return times(before, 1.0)

    def init(self, params: Tensors, /) -> State:
        """The count of updates, for a schedule."""
        return counting(self.limit)

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Grads, State]:
        """Every entry."""
        limit = at(repr(self), "limit", self.limit, _LIMIT, state)
        values = check_grads(self, grads)
        if how.said is not None:
            over = [(value.detach().abs() > limit).sum().double() for value in values.values()]
            how.say(self.name, lambda: {"clipped": _share(over, values)})
        out = how.own(values.values())
        for value in out:
            value.clamp_(-limit, limit)
        return gathered(values, out), counted(state)

    def __repr__(self) -> str:
        return f"clip_by_value({shown(self.limit)})"


def clip_by_value(limit: Number) -> ClipByValue:
    """Every entry clamped to [-limit, limit]: a stage on gradients, `torch.nn.utils.clip_grad_value_` as a function.

    It turns the gradient: [2.5, 0.8] clamped at 1 is 20.9 degrees off. What one sample can move the sum by before, it
    can move no farther behind.

    | entry            | becomes                |
    |------------------|------------------------|
    | within the limit | itself, bit by bit     |
    | beyond, or inf   | limit, with its sign   |
    | NaN              | NaN                    |
    | any, limit = inf | itself                 |

    Args:
        limit: above 0, or a schedule: a function from the count of updates before this one.

    Raises:
        TypeError, ValueError: something else.

    Example:
        >>> import torch, gradfunc as gf
        >>> gf.clip_by_value(1.0).update({"w": torch.tensor([2.5, -0.8])}, ())[0]
        {'w': tensor([ 1.0000, -0.8000])}
    """
    check_number("gf.clip_by_value(limit)", "limit", limit, _LIMIT, do=_NONE)
    return ClipByValue(fixed(limit))


@dataclass(frozen=True, repr=False)
class ClipByGlobalNorm(BatchStage):
    """Made by `gf.clip_by_global_norm`, which has the meanings."""

    max_norm: Number
    eps: float
    nonfinite: str
    name = "clip_by_global_norm"

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """What one sample can move the input by bounds what it can move the output by.

        g times min(1, C / |g|) is the nearest point to g of the ball of radius C. A projection onto a convex set never
        takes two points farther apart. With eps the map is continuous, the identity while |g| + eps <= C, and beyond
        has the symmetric derivative with eigenvalues C / (|g| + eps) across g and C eps / (|g| + eps)^2 along it; both
        lie in [0, 1] as |g| + eps >= C and >= eps. Along the line between two points it then moves no faster than the
        line does.
        """
        return times(before, 1.0)

    def init(self, params: Tensors, /) -> State:
        """The count of updates, for a schedule."""
        return counting(self.max_norm)

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Grads, State]:
        """One factor for all entries."""
        call = f"{self!r}.update(grads, state)"
        limit = at(call, "max_norm", self.max_norm, NORM, state)
        values = check_grads(self, grads)
        out, norms = measured(call, values, how, self.nonfinite, parameter_norm)
        norm = of_norms(norms)
        factor = shrinking(norm, limit, self.eps)
        multiply(out, factor)
        if self.nonfinite == "skip":
            zero_unless(norm.isfinite(), out)
        how.say(self.name, lambda: norm_facts(norm, factor))
        return gathered(values, out), counted(state)

    def __repr__(self) -> str:
        given = [shown(self.max_norm)] + ([f"eps={self.eps!r}"] if self.eps else [])
        return f"{self.name}({', '.join([*given, *shown_policy(self.nonfinite)])})"


def clip_by_global_norm(max_norm: Number, *, eps: float = 0.0, nonfinite: str = "raise") -> ClipByGlobalNorm:
    """The gradient times `min(1, C / |g|)`, the norm over all parameters together: a stage on gradients.

    The direction stays. (Pascanu, Mikolov, Bengio 2013, "On the difficulty of training recurrent neural networks",
    algorithm 1.) The norm is taken in float64 and overflows for no finite gradient of a smaller type. With `eps=1e-6`
    it is `torch.nn.utils.clip_grad_norm_`. What one sample can move the sum by before, it can move no farther behind.

    | norm n                       | the gradient times                        |
    |------------------------------|-------------------------------------------|
    | 0                            | 1                                         |
    | up to C                      | 1: stays, bit by bit                      |
    | above C                      | C/n                                       |
    | n + eps above C, with eps    | C/(n + eps)                               |
    | any finite, C = inf          | 1                                         |
    | inf, NaN                     | by `nonfinite`                            |

    Args:
        max_norm: C > 0; inf clips nothing. A number, or a schedule: a function from the count of updates.
        eps: added to the norm.
        nonfinite: where the norm is inf or NaN: "raise", which asks the device once a step; without asking: "skip", the
            whole gradient becomes 0; "zero", entries that are not finite become 0 before the norm is taken; "keep",
            the gradient stays as it is.

    Raises:
        TypeError, ValueError: `max_norm` not above 0, negative `eps`, an unknown `nonfinite`; in an update, a norm that
            is not finite, naming the parameters.

    Example:
        >>> import torch, gradfunc as gf
        >>> gf.clip_by_global_norm(1.0).update({"w": torch.tensor([3.0]), "b": torch.tensor([4.0])}, ())[0]
        {'w': tensor([0.6000]), 'b': tensor([0.8000])}
    """
    call = "gf.clip_by_global_norm(max_norm)"
    check_number(call, "max_norm", max_norm, NORM, do=_NONE)
    check_number(call, "eps", eps, NOT_NEGATIVE, schedule=False)
    one_of(call, "nonfinite", nonfinite, POLICIES)
    return ClipByGlobalNorm(fixed(max_norm), float(eps), nonfinite)


@dataclass(frozen=True, repr=False)
class ClipByParameterNorm(BatchStage):
    """Made by `gf.clip_by_parameter_norm`, which has the meanings."""

    max_norm: Number
    nonfinite: str
    name = "clip_by_parameter_norm"

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """The projection onto a product of balls, which is convex: no two inputs leave farther apart than they came."""
        return times(before, 1.0)

    def init(self, params: Tensors, /) -> State:
        """The count of updates, for a schedule."""
        return counting(self.max_norm)

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Grads, State]:
        """A factor a parameter."""
        call = f"{self!r}.update(grads, state)"
        limit = at(call, "max_norm", self.max_norm, NORM, state)
        values = check_grads(self, grads)
        out, norms = measured(call, values, how, self.nonfinite, parameter_norm)
        factors = [shrinking(norm, limit) for norm in norms]
        for value, factor in zip(out, factors, strict=True):
            value.mul_(factor)
        if self.nonfinite == "skip":
            zero_unless(of_norms(norms).isfinite(), out)
        how.say(self.name, lambda: _each_facts(norms, factors))
        return gathered(values, out), counted(state)

    def __repr__(self) -> str:
        return f"{self.name}({', '.join([shown(self.max_norm), *shown_policy(self.nonfinite)])})"


def clip_by_parameter_norm(max_norm: Number, *, nonfinite: str = "raise") -> ClipByParameterNorm:
    """Every parameter's gradient times `min(1, C / |g_p|)`, by a norm of its own: a stage on gradients.

    The direction as a whole may turn. Groups of parameters with one norm each: `gf.partition` of
    `gf.clip_by_global_norm`. Edge cases are those of `gf.clip_by_global_norm`, parameter by parameter; what is not
    finite in one is dealt with for all together.

    Args:
        max_norm: C > 0; inf clips nothing. A number, or a schedule: a function from the count of updates.
        nonfinite: where a norm is inf or NaN: "raise", which asks the device once a step; "skip", "zero" or "keep", as
            in `gf.clip_by_global_norm`.

    Raises:
        TypeError, ValueError: as in `gf.clip_by_global_norm`.

    Example:
        >>> import torch, gradfunc as gf
        >>> gf.clip_by_parameter_norm(1.0).update({"w": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.5])}, ())[0]
        {'w': tensor([0.6000, 0.8000]), 'b': tensor([0.5000])}
    """
    call = "gf.clip_by_parameter_norm(max_norm)"
    check_number(call, "max_norm", max_norm, NORM, do=_NONE)
    one_of(call, "nonfinite", nonfinite, POLICIES)
    return ClipByParameterNorm(fixed(max_norm), nonfinite)


def norm_facts(norm: Tensor, factor: Tensor) -> Facts:
    """Of a clip with one factor."""
    clipped = (factor < 1).double().detach()
    return {"norm": norm.detach(), "factor": factor.detach(), "clipped": clipped, "nonfinite": _odd(norm)}


def shown_policy(nonfinite: str) -> list[str]:
    """In the name of a stage."""
    return [] if nonfinite == "raise" else [f"nonfinite={nonfinite!r}"]


def _each_facts(norms: Sequence[Tensor], factors: Sequence[Tensor]) -> Facts:
    if not norms:
        return {}
    device = norms[0].device
    each = torch.stack([factor.detach().to(device) for factor in factors])
    norm = of_norms(norms)
    return {"norm": norm.detach(), "clipped": (each < 1).double().mean(), "nonfinite": _odd(norm)}


def _odd(norm: Tensor) -> Tensor:
    return (~norm.detach().isfinite()).double()


def _share(over: Sequence[Tensor], values: Tensors) -> Tensor | float:
    """Of all entries; `over` counts those of each parameter."""
    entries = sum(value.numel() for value in values.values())
    if not entries:
        return 0.0
    return torch.stack([count.to(over[0].device) for count in over]).sum() / entries
