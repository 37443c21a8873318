"""What strategies take, read and checked when they are called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from hypothesis import strategies as st

from ..._errors import check_int, kind_of, message, one_of

T = TypeVar("T")
DTypes = torch.dtype | st.SearchStrategy[torch.dtype]
Device = str | torch.device
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def place(call: str, dtype: object, device: Device) -> str:
    """The device's name, for a dtype that is one of `FLOATS` or a strategy of these.

    Raises:
        TypeError, ValueError: something else.
    """
    if isinstance(dtype, st.SearchStrategy):
        pass
    elif not isinstance(dtype, torch.dtype):
        expected = "a torch.dtype, or a strategy that draws one"
        raise TypeError(message(call, got=f"dtype={dtype!r}", expected=expected))
    elif dtype not in FLOATS:
        raise ValueError(message(call, got=f"dtype={dtype}", expected=f"one of {', '.join(map(str, FLOATS))}"))
    try:
        return str(torch.device(device))
    except (TypeError, RuntimeError):
        got = f"device={device!r}"
        raise ValueError(message(call, got=got, expected="a device, such as 'cpu' or 'cuda'")) from None


def dtypes(dtype: DTypes) -> st.SearchStrategy[torch.dtype]:
    """A strategy of the one dtype, or the one that was given."""
    return dtype if isinstance(dtype, st.SearchStrategy) else st.just(dtype)


def sizes(call: str, name: str, least: object, most: object, *, floor: int = 0) -> None:
    """`floor <= least <= most`, both ints.

    Raises:
        TypeError, ValueError: something else.
    """
    check_int(call, f"min_{name}", least, floor)
    check_int(call, f"max_{name}", most, floor)
    if int(str(least)) > int(str(most)):
        got = f"min_{name}={least} and max_{name}={most}"
        raise ValueError(message(call, got=got, expected=f"min_{name} <= max_{name}"))


def some_of(call: str, name: str, value: Sequence[str] | None, known: Iterable[str]) -> list[str]:
    """Some of the known names, by default all, in the order in which these shrink.

    Raises:
        TypeError: no list of names.
        ValueError: none, or one that is not known.
    """
    every = list(known)
    if value is None:
        return every
    if isinstance(value, str) or not isinstance(value, (list, tuple, set, frozenset)):
        got, expected = f"{name}={value!r}", "a list of names, or None for all"
        raise TypeError(message(call, got=got, expected=expected))
    if not value:
        raise ValueError(message(call, got=f"{name}={value!r}", expected="at least one name"))
    for one in value:
        one_of(call, name, one, every)
    return [one for one in every if one in value]


def flag(call: str, name: str, value: object) -> None:
    """Raise TypeError unless `value` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(message(call, got=f"{name}={value!r}", expected="True or False"))


def shape_of(call: str, name: str, value: object) -> tuple[int, ...]:
    """A shape as a tuple of ints >= 0.

    Raises:
        TypeError: something else.
        ValueError: a negative size.
    """
    if not isinstance(value, (tuple, list)) or not all(type(size) is int for size in value):
        raise TypeError(message(call, got=f"{name}={value!r}", expected="a tuple of ints >= 0"))
    if any(size < 0 for size in value):
        raise ValueError(message(call, got=f"{name}={value!r}", expected="a tuple of ints >= 0"))
    return tuple(value)


def instance(call: str, name: str, value: object, kind: type[T], expected: str) -> T:
    """`value`, which is a `kind`.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, kind):
        raise TypeError(message(call, got=f"{name}={kind_of(value)}", expected=expected))
    return value


def mapping(call: str, name: str, value: object) -> Mapping[str, Any]:
    """A mapping with names as keys.

    Raises:
        TypeError: something else.
    """
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError(message(call, got=f"{name}={value!r}", expected="a mapping of parameter names"))
    return value
