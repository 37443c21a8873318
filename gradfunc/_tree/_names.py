"""Which of the parameters: by a pattern, by name, by a predicate; and a value for each by rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from torch import Tensor

from .._errors import kind_of, message

Selection = str | Sequence[str] | Callable[[str, Tensor], bool]
V = TypeVar("V")


def layer_of(name: str) -> str:
    """The module that a parameter belongs to: its name without the last part, or as it is where it has one part."""
    return name.rpartition(".")[0] or name


def check_selection(call: str, option: str, given: object) -> None:
    """Raise TypeError unless this selects names."""
    if not (isinstance(given, (str, Sequence)) or callable(given)):
        expected = "a regex, a sequence of names, or a predicate(name, tensor)"
        raise TypeError(message(call, got=f"{option}={given!r}", expected=expected))


def selected(call: str, option: str, params: Mapping[str, Tensor], given: Selection) -> list[str]:
    """Names among `params`, in their order.

    Raises:
        ValueError: no regular expression; names that are not there; nothing selected.
    """
    names = list(params)
    if isinstance(given, str):
        pattern = compiled(call, option, given)
        chosen = [name for name in names if pattern.fullmatch(name)]
    elif callable(given):
        chosen = [name for name in names if given(name, params[name])]
    else:
        if unknown := [name for name in given if name not in params]:
            raise ValueError(message(call, got=f"{option} with {unknown}", expected=f"names of parameters: {names}"))
        chosen = [name for name in names if name in set(given)]
    if not chosen:
        do = "A string is a regular expression for the whole name (re.fullmatch)."
        got = f"{option}={given!r}, which matches nothing"
        raise ValueError(message(call, got=got, expected=f"a match among {names}", do=do))
    return chosen


def compiled(call: str, option: str, pattern: object) -> re.Pattern[str]:
    """A regular expression.

    Raises:
        TypeError, ValueError: something else.
    """
    if not isinstance(pattern, str):
        raise TypeError(message(call, got=f"{kind_of(pattern)} in {option}", expected="a regular expression"))
    try:
        return re.compile(pattern)
    except re.error as error:
        got = f"{option}={pattern!r} ({error})"
        raise ValueError(message(call, got=got, expected="a regular expression")) from error


def by_rules(
    call: str, option: str, names: Iterable[str], rules: Mapping[str, V], *, exact: bool = True
) -> dict[str, str]:
    """`{name: key}` of the first rule whose key is the name, or a regular expression for the whole of it.

    Names that no rule matches are left out. A key that is the name comes before all patterns, unless `exact` is False:
    then every key is a pattern, and the order of the rules alone decides.

    Raises:
        ValueError: a rule that no name matches.
    """
    names, patterns = list(names), {key: compiled(call, option, key) for key in rules}
    found = {}
    for name in names:
        first = next((key for key, pattern in patterns.items() if pattern.fullmatch(name)), None)
        key = name if exact and name in rules else first
        if key is not None:
            found[name] = key
    for key, pattern in patterns.items():
        if not any((exact and name == key) or pattern.fullmatch(name) for name in names):
            got = f"{option} with {key!r}, which matches nothing"
            raise ValueError(message(call, got=got, expected=f"a match among {names}"))
    return found
