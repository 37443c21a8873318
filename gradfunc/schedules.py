"""Numbers that change from step to step: functions from the count of updates before this one to a number.

Any function `count -> float` is a schedule, and every numeric argument of a stage takes one: `gf.scale(schedule)`.
Those made here are values: they compare, pickle, show how they were made, and remember nothing.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ._errors import FINITE, check_int, check_number, kind_of, message, one_of

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class Constant:
    """Made by `gf.schedules.constant`."""

    value: float

    def __call__(self, count: int) -> float:
        """The number."""
        return self.value

    def __repr__(self) -> str:
        return f"constant({self.value!r})"


@dataclass(frozen=True)
class Ramp:
    """From `start` to `end` within `steps`, along a line, a cosine or a power; made by `linear`, `cosine`, ....

    Attributes:
        shape: "linear" or "cosine".
    """

    shape: str
    start: float
    end: float
    steps: int

    def __call__(self, count: int) -> float:
        """The end from `steps` on."""
        done = min(max(count / self.steps, 0.0), 1.0)
        if self.shape == "linear":
            return self.start * (1 - done) + self.end * done
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * done)) / 2

    def __repr__(self) -> str:
        return f"{self.shape}({self.start!r}, {self.end!r}, steps={self.steps})"


@dataclass(frozen=True)
class Exponential:
    """Made by `gf.schedules.exponential`."""

    start: float
    rate: float
    every: int = 1
    staircase: bool = False
    end: float | None = None

    def __call__(self, count: int) -> float:
        """No further than `end`."""
        try:
            power = self.rate ** (count // self.every if self.staircase else count / self.every)
        except OverflowError:  # such as 1.1^10000, long past any end
            power = math.inf
        value = self.start * power if self.start else 0.0
        if self.end is None or self.rate == 1:
            return value
        return max(value, self.end) if self.rate < 1 else min(value, self.end)

    def __repr__(self) -> str:
        given = [] if self.every == 1 else [f"every={self.every}"]
        given += ["staircase=True"] if self.staircase else []
        given += [] if self.end is None else [f"end={self.end!r}"]
        return f"exponential({', '.join([repr(self.start), repr(self.rate), *given])})"


@dataclass(frozen=True)
class Piecewise:
    """Made by `gf.schedules.piecewise`."""

    start: float
    boundaries: tuple[tuple[int, float], ...]

    def __call__(self, count: int) -> float:
        """The number of the last boundary reached."""
        at = bisect.bisect_right([step for step, _ in self.boundaries], count)
        return self.start if at == 0 else self.boundaries[at - 1][1]

    def __repr__(self) -> str:
        return f"piecewise({self.start!r}, {dict(self.boundaries)})"


@dataclass(frozen=True)
class Joined:
    """Made by `gf.schedules.join`: each schedule counts from where it begins."""

    schedules: tuple[Schedule, ...]
    boundaries: tuple[int, ...]

    def __call__(self, count: int) -> float:
        """Of the schedule whose turn it is."""
        at = bisect.bisect_right(self.boundaries, count)
        return self.schedules[at](count - (self.boundaries[at - 1] if at else 0))

    def __repr__(self) -> str:
        return f"join({list(self.schedules)}, {list(self.boundaries)})"


@dataclass(frozen=True)
class OneCycle:
    """Made by `gf.schedules.one_cycle`."""

    peak: float
    steps: int
    rise: float = 0.3
    start_divisor: float = 25.0
    end_divisor: float = 1e4
    anneal: str = "cosine"

    def __call__(self, count: int) -> float:
        """Up, and down."""
        start = self.peak / self.start_divisor
        top = self.rise * self.steps - 1
        if count <= top:
            return _between(self.anneal, start, self.peak, count / top if top > 0 else 1.0)
        share = min((count - top) / (self.steps - 1 - top), 1.0)
        return _between(self.anneal, self.peak, start / self.end_divisor, share)

    def __repr__(self) -> str:
        usual = {"rise": 0.3, "start_divisor": 25.0, "end_divisor": 1e4, "anneal": "cosine"}
        given = [f"{k}={getattr(self, k)!r}" for k, v in usual.items() if getattr(self, k) != v]
        return f"one_cycle({', '.join([repr(self.peak), f'steps={self.steps}', *given])})"


@dataclass(frozen=True)
class FromTorch:
    """Made by `gf.schedules.from_torch`."""

    factory: Callable[[torch.optim.Optimizer], Any]
    lr: float = 1.0
    _known: list[float] = field(default_factory=list, compare=False, repr=False)

    def __call__(self, count: int) -> float:
        """What the scheduler has set after `count` steps; looked up once it has been computed."""
        if count >= len(self._known):
            # All over again, not on from a scheduler that is kept: then nothing depends on what was asked before.
            self._known[:] = _ran(self.factory, self.lr, max(count + 1, 2 * len(self._known), 128))
        return self._known[max(count, 0)]

    def __reduce__(self) -> tuple[Any, ...]:
        return FromTorch, (self.factory, self.lr)

    def __repr__(self) -> str:
        return f"from_torch({getattr(self.factory, '__qualname__', repr(self.factory))}, lr={self.lr!r})"


def constant(value: float) -> Constant:
    """The same number at every step.

    Example:
        >>> import gradfunc as gf
        >>> gf.schedules.constant(0.1)(1000)
        0.1
    """
    return Constant(_number("gf.schedules.constant(value)", "value", value))


def linear(start: float, end: float, *, steps: int) -> Ramp:
    """Along a line from `start` at step 0 to `end` at step `steps`, and `end` from there on.

    Example:
        >>> import gradfunc as gf
        >>> [gf.schedules.linear(1.0, 0.0, steps=4)(t) for t in (0, 1, 4, 9)]
        [1.0, 0.75, 0.0, 0.0]
    """
    return _ramp("linear", start, end, steps)


def cosine(start: float, end: float = 0.0, *, steps: int) -> Ramp:
    """Along half a cosine from `start` at step 0 to `end` at step `steps`, and `end` from there on.

    `end + (start - end) (1 + cos(pi t / steps)) / 2` (Loshchilov, Hutter 2017, "SGDR", equation 5); torch's
    `CosineAnnealingLR` up to `steps`, behind which that rises again.

    Example:
        >>> import gradfunc as gf
        >>> [round(gf.schedules.cosine(1.0, steps=4)(t), 4) for t in (0, 1, 2, 4, 9)]
        [1.0, 0.8536, 0.5, 0.0, 0.0]
    """
    return _ramp("cosine", start, end, steps)


def warmup(after: Schedule | float, *, steps: int, start: float = 0.0) -> Joined:
    """Along a line from `start` to the first number of another schedule, in `steps` steps; then that, from its step 0.

    Example:
        >>> import gradfunc as gf
        >>> schedule = gf.schedules.warmup(gf.schedules.cosine(0.1, steps=100), steps=4)
        >>> [round(schedule(t), 4) for t in (0, 1, 2, 4, 54)]
        [0.0, 0.025, 0.05, 0.1, 0.05]
    """
    call = "gf.schedules.warmup(after, steps=...)"
    then = _schedule(call, "after", after)
    return Joined((Ramp("linear", _number(call, "start", start), float(then(0)), _steps(call, steps)), then), (steps,))


def piecewise(start: float, boundaries: Mapping[int, float]) -> Piecewise:
    """`start`, and from each boundary on the number given there.

    Example:
        >>> import gradfunc as gf
        >>> schedule = gf.schedules.piecewise(0.1, {30: 0.01, 60: 0.001})
        >>> [schedule(t) for t in (0, 29, 30, 100)]
        [0.1, 0.1, 0.01, 0.001]
    """
    call = "gf.schedules.piecewise(start, boundaries)"
    if not isinstance(boundaries, Mapping):
        raise TypeError(message(call, got=kind_of(boundaries), expected="a dict {step: number}"))
    for step, value in boundaries.items():
        _steps(call, step, "a boundary")
        _number(call, f"boundaries[{step}]", value)
    given = tuple(sorted((step, float(value)) for step, value in boundaries.items()))
    return Piecewise(_number(call, "start", start), given)


def exponential(
    start: float, rate: float, *, every: int = 1, staircase: bool = False, end: float | None = None
) -> Exponential:
    """`start rate^(t / every)`; with `staircase` t / every rounded down, as torch's `StepLR`; no further than `end`.

    Example:
        >>> import gradfunc as gf
        >>> [gf.schedules.exponential(1.0, 0.5, every=2, staircase=True)(t) for t in (0, 1, 2, 5)]
        [1.0, 1.0, 0.5, 0.25]
    """
    call = "gf.schedules.exponential(start, rate)"
    if not _number(call, "rate", rate) > 0:
        raise ValueError(message(call, got=f"rate={rate!r}", expected="a finite number > 0"))
    limit = None if end is None else _number(call, "end", end)
    return Exponential(_number(call, "start", start), float(rate), _steps(call, every, "every"), bool(staircase), limit)


def one_cycle(
    peak: float,
    *,
    steps: int,
    rise: float = 0.3,
    start_divisor: float = 25.0,
    end_divisor: float = 1e4,
    anneal: str = "cosine",
) -> OneCycle:
    """Up from `peak / start_divisor` to `peak`, and down to that over `end_divisor`: torch's `OneCycleLR`.

    Smith, Topin 2019, "Super-Convergence". The peak is at step `rise * steps - 1`, the end at `steps - 1`, and stays.

    Args:
        peak: the largest number.
        steps: of the whole cycle, at least 2.
        rise: the share of the steps on the way up, in (0, 1).
        start_divisor: what the peak is divided by at the start.
        end_divisor: what the start is divided by at the end.
        anneal: "cosine" or "linear".

    Raises:
        TypeError, ValueError: something else.

    Example:
        >>> import gradfunc as gf
        >>> schedule = gf.schedules.one_cycle(1.0, steps=10)
        >>> [round(schedule(t), 6) for t in (0, 2, 9)]
        [0.04, 1.0, 4e-06]
    """
    call = "gf.schedules.one_cycle(peak, steps=...)"
    if _steps(call, steps) < 2:
        raise ValueError(message(call, got=f"steps={steps}", expected="an integer >= 2"))
    if not 0 < _number(call, "rise", rise) < 1:
        raise ValueError(message(call, got=f"rise={rise!r}", expected="a number in (0, 1)"))
    for name, value in {"start_divisor": start_divisor, "end_divisor": end_divisor}.items():
        if not _number(call, name, value) > 0:
            raise ValueError(message(call, got=f"{name}={value!r}", expected="a finite number > 0"))
    one_of(call, "anneal", anneal, ("cosine", "linear"))
    return OneCycle(_number(call, "peak", peak), steps, float(rise), float(start_divisor), float(end_divisor), anneal)


def join(schedules: Sequence[Schedule | float], boundaries: Sequence[int]) -> Joined:
    """One schedule after the other, each from its own step 0: the next begins at each boundary.

    Args:
        schedules: one more than there are boundaries; a number is a constant.
        boundaries: steps, in order.

    Raises:
        TypeError, ValueError: something else.

    Example:
        >>> import gradfunc as gf
        >>> schedule = gf.schedules.join([1.0, gf.schedules.linear(1.0, 0.0, steps=2)], [10])
        >>> [schedule(t) for t in (0, 10, 11, 12)]
        [1.0, 1.0, 0.5, 0.0]
    """
    call = "gf.schedules.join(schedules, boundaries)"
    given = tuple(_schedule(call, "schedules", one) for one in schedules)
    steps = tuple(_steps(call, step, "a boundary") for step in boundaries)
    if len(given) != len(steps) + 1:
        got = f"{len(given)} schedules and {len(steps)} boundaries"
        raise ValueError(message(call, got=got, expected="one schedule more than boundaries"))
    if any(a >= b for a, b in itertools.pairwise(steps)):
        raise ValueError(message(call, got=f"boundaries={list(boundaries)}", expected="each above the one before"))
    return Joined(given, steps)


def from_torch(factory: Callable[[torch.optim.Optimizer], Any], *, lr: float = 1.0) -> FromTorch:
    """A scheduler of `torch.optim.lr_scheduler` as a schedule: what it sets after so many steps.

    It runs on an optimizer of one parameter that is made for it, and again whenever more steps are asked for, so that a
    number is a function of the count alone. It pickles if `factory` does.

    Args:
        factory: the optimizer to the scheduler, such as `functools.partial(StepLR, step_size=30)`. One that waits for a
            metric (`ReduceLROnPlateau`) is no function of the count.
        lr: the optimizer's learning rate, which most schedulers multiply.

    Raises:
        TypeError, ValueError: something else; in a call, what `factory` gives is no scheduler of the count.

    Example:
        >>> import functools, gradfunc as gf
        >>> from torch.optim.lr_scheduler import StepLR
        >>> schedule = gf.schedules.from_torch(functools.partial(StepLR, step_size=2, gamma=0.5))
        >>> [schedule(t) for t in (0, 1, 2, 5)]
        [1.0, 1.0, 0.5, 0.25]
    """
    call = "gf.schedules.from_torch(factory)"
    if not callable(factory):
        raise TypeError(message(call, got=kind_of(factory), expected="a function from an optimizer to a scheduler"))
    return FromTorch(factory, _number(call, "lr", lr))


def _ran(factory: Callable[[torch.optim.Optimizer], Any], lr: float, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros((), requires_grad=True)], lr=lr)
    scheduler = factory(optimizer)
    waits = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
    if waits or not isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler):
        call, expected = "gf.schedules.from_torch(factory)", "a scheduler of torch.optim.lr_scheduler that only counts"
        raise TypeError(message(call, got=f"{kind_of(scheduler)} from factory", expected=expected))
    numbers = []
    for _ in range(steps):
        numbers.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return numbers


def _between(anneal: str, start: float, end: float, share: float) -> float:
    if anneal == "linear":
        return start + (end - start) * share
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def _ramp(shape: str, start: float, end: float, steps: int) -> Ramp:
    call = f"gf.schedules.{shape}(start, end, steps=...)"
    return Ramp(shape, _number(call, "start", start), _number(call, "end", end), _steps(call, steps))


def _number(call: str, name: str, value: Any) -> float:
    check_number(call, name, value, FINITE)
    return float(value)


def _steps(call: str, value: int, name: str = "steps") -> int:
    check_int(call, name, value, 1)
    return value


def _schedule(call: str, name: str, value: object) -> Schedule:
    if callable(value):
        return value
    return Constant(_number(call, name, value))
