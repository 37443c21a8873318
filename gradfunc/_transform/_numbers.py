"""Arguments of stages that are numbers, or schedules: functions from the count of updates before this one."""

from __future__ import annotations

from collections.abc import Callable

from .. import _errors
from .._errors import FINITE as FINITE
from .._errors import NOT_NEGATIVE as NOT_NEGATIVE
from .._errors import POSITIVE as POSITIVE
from .._errors import Range as Range
from .._errors import kind_of, message
from ._protocol import State

Number = float | Callable[[int], float]


SHARE = Range("a number in [0, 1)", lambda x: 0 <= x < 1)
FRACTION = Range("a number in [0, 1]", lambda x: 0 <= x <= 1)
NORM = Range("a norm > 0", lambda x: x > 0)


def check_number(call: str, name: str, value: object, range_: Range, *, schedule: bool = True, do: str = "") -> None:
    """Raise unless `value` is a number of this range, or a schedule of such numbers.

    Raises:
        TypeError: it is something else.
        ValueError: it is a number out of range.
    """
    if schedule and callable(value):
        return
    kind = "a number, or a function from the step to one" if schedule else "a number"
    _errors.check_number(call, name, value, range_, kind=kind, do=do)


def check_flag(call: str, name: str, value: object) -> None:
    """Raise TypeError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(message(call, got=f"{name}={value!r}", expected="True or False"))


def fixed(value: Number) -> Number:
    """A number as a float, a schedule as it is."""
    return value if callable(value) else float(value)


def at(call: str, name: str, value: Number, range_: Range, state: State) -> float:
    """The number at this update, whose count is in the state of a stage that `counting` began.

    Raises:
        TypeError, ValueError: the schedule gives something else, or a number out of range.
    """
    if not callable(value):
        return float(value)
    step = count_of(state)
    given = value(step)
    number = float(given) if isinstance(given, (int, float)) or getattr(given, "ndim", None) == 0 else None
    if number is None:
        got = f"{kind_of(given)} from {name}(step={step})"
        raise TypeError(message(call, got=got, expected="a number"))
    if not range_.holds(number):
        raise ValueError(message(call, got=f"{number!r} from {name}(step={step})", expected=range_.text))
    return number


def counting(*values: object) -> State:
    """The state of a stage that remembers nothing but, where a number is a schedule, its count of updates."""
    return {"count": 0} if any(callable(value) for value in values) else ()


def count_of(state: State) -> int:
    """Updates before this one."""
    return int(state["count"])


def counted(state: State) -> State:
    """The state after one more update."""
    return {**state, "count": count_of(state) + 1} if state else state


def shown(value: object) -> str:
    """A number or a schedule in the name of a stage."""
    return getattr(value, "__name__", repr(value)) if callable(value) else repr(value)
