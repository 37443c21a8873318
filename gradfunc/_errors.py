"""The grammar of messages: repeat the call, say what came, what was expected, and what to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


class GradfuncWarning(UserWarning):
    """Something the caller should know about a result that is still exact.

    Example:
        >>> import warnings
        >>> warnings.simplefilter("error", GradfuncWarning)    # make it stop the program
        >>> warnings.resetwarnings()
    """


class EngineError(NotImplementedError):
    """An engine cannot run a loss that autograd can differentiate. The message names the place and the ways out.

    Attributes:
        engine: the one that was asked for, or "any".
        why: what stopped it, in words.
        operation: the line of code that it stopped at, "" where torch does not tell.
        where: "file:line" of that, and of the caller's own line if it lies in a library.
        module: the path of the module in whose forward pass it is (the class of the outermost), "" outside of any.
        exits: what to do instead, each on its own.

    Example:
        >>> import torch, gradfunc as gf
        >>> def loss(p, x):
        ...     return (p["w"] * x).sum() if x.sum() > 0 else p["w"].sum()
        >>> try:
        ...     gf.per_sample_grads(loss, engine="vmap")({"w": torch.ones(2)}, torch.ones(3, 2))
        ... except gf.EngineError as error:
        ...     print(error.exits[-1])
        Pass engine='loop' or 'auto': one autograd call a sample takes whatever autograd can differentiate.
    """

    def __init__(
        self, text: str, *, engine: str, why: str, operation: str, where: str, module: str, exits: tuple[str, ...]
    ) -> None:
        super().__init__(text)
        self.engine, self.why, self.operation = engine, why, operation
        self.where, self.module, self.exits = where, module, exits

    def __reduce__(self) -> tuple[Any, ...]:
        fields = ("engine", "why", "operation", "where", "module", "exits")
        return _engine_error, (str(self), {name: getattr(self, name) for name in fields})


def _engine_error(text: str, fields: dict[str, Any]) -> EngineError:
    """As it was before it went to another process."""
    return EngineError(text, **fields)


class ModelPathError(ValueError):
    """A `--model package.module:factory` that cannot be read, called or understood."""


def message(call: str, *, got: str, expected: str, do: str = "") -> str:
    """Spell one error: `call: got ...; expected .... do`.

    Example:
        >>> message("gf.reduce(g, 'avg')", got="'avg'", expected="'mean'")
        "gf.reduce(g, 'avg'): got 'avg'; expected 'mean'."
    """
    return f"{call}: got {got}; expected {expected}." + (f" {do}" if do else "")


def one_of(call: str, name: str, value: object, options: Iterable[str], do: str = "") -> None:
    """Raise ValueError unless `value` is one of `options`."""
    known = list(options)
    if value not in known:
        raise ValueError(
            message(call, got=f"{name}={value!r}", expected=f"{name} to be one of {_listed(known)}", do=do)
        )


def check_int(call: str, name: str, value: object, least: int) -> None:
    """Raise TypeError unless `value` is an int, ValueError if it is below `least`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(message(call, got=f"{name}={value!r}", expected=f"an int >= {least}"))
    if value < least:
        raise ValueError(message(call, got=f"{name}={value!r}", expected=f"an int >= {least}"))


@dataclass(frozen=True)
class Range:
    """Which numbers an argument may be. `text` says it in a message."""

    text: str
    holds: Callable[[float], bool]


FINITE = Range("a finite number", math.isfinite)
NOT_NEGATIVE = Range("a finite number >= 0", lambda x: 0 <= x < math.inf)
POSITIVE = Range("a finite number > 0", lambda x: 0 < x < math.inf)


def check_number(call: str, name: str, value: object, range_: Range, *, kind: str = "a number", do: str = "") -> None:
    """Raise TypeError unless `value` is a number, ValueError if it is out of range."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(message(call, got=f"{name}={value!r}", expected=kind))
    if not range_.holds(value):
        raise ValueError(message(call, got=f"{name}={value!r}", expected=range_.text, do=do))


def kind_of(value: object) -> str:
    """How a message names a value that came: `a list`, `an int`, `None`."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"an {name}" if name[0].lower() in "aeiou" else f"a {name}"


def _listed(options: list[str]) -> str:
    return ", ".join(repr(option) for option in options)
