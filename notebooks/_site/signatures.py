"""What the signatures of public names mention: which classes are made by which functions."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

from .names import names

# What stages say to each other, and engines to values.
BETWEEN = ("apply", "after", "evaluation", "flushed", "scaled")


def hide_constructor(app: Any, what: str, name: str, obj: Any, options: Any, args: Any, returned: Any) -> Any:
    """No arguments where a class is made by functions: it is private, an error, or takes what is private."""
    if args and what in ("class", "exception"):
        # A default factory is shown as `<factory>`, which Sphinx cannot read.
        return (args.replace("<factory>", "..."), returned) if _is_called(obj) else ("", "")
    return None


def _is_called(cls: type) -> bool:
    if issubclass(cls, BaseException) or ("._" in cls.__module__ and id(cls) not in _public_ids()):
        return False
    return not any(name.startswith("_") for name in inspect.signature(cls).parameters)


@functools.cache
def _public_ids() -> frozenset[int]:
    return frozenset(id(name.value) for name in names().values())


def mentioned() -> list[type]:
    """gradfunc's classes in the signatures of public names, and in those of each other, that have no public name."""
    known = set(_public_ids())
    found: dict[str, type] = {}
    waiting = [name.value for name in names().values()]
    while waiting:
        for cls in _classes_in(waiting.pop()):
            if id(cls) not in known:
                known.add(id(cls))
                found[f"{cls.__name__} {cls.__module__}"] = cls
                waiting.append(cls)
    return [found[key] for key in sorted(found)]


def made_by(functions: Iterable[Any]) -> set[type]:
    """The classes that these return, and those that are in turn in fields and answers of such classes."""
    waiting = [cls for function in functions for cls in _walk(hints(function).get("return"))]
    found: set[type] = set()
    while waiting:
        cls = waiting.pop()
        if cls not in found:
            found.add(cls)
            waiting += _classes_in(cls, only="return")
    return found


def hints(function: Any) -> dict[str, Any]:
    """Annotations of a function; {} where one names what is there for type checkers only."""
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError):
        return {}


def _classes_in(value: Any, only: str | None = None) -> Iterator[type]:
    """In a function's signature, or in the fields and methods of a class; of signatures `only` this part, if given."""
    members = [value]
    if inspect.isclass(value):
        shown = inspect.getmembers(value, lambda m: inspect.isroutine(m) or isinstance(m, property | cached_property))
        hidden = () if id(value) in _public_ids() else BETWEEN
        members = [m for key, m in shown if not key.startswith("_") and key not in hidden]
        members += [value.__init__] if _is_called(value) else []
        for key, hint in hints(value).items():
            yield from () if key.startswith("_") else _walk(hint)
    for member in members:
        function = getattr(member, "fget", getattr(member, "func", member))
        for part, hint in hints(function).items():
            yield from _walk(hint) if only in (None, part) else ()


def _walk(hint: Any) -> Iterator[type]:
    for cls in (hint, typing.get_origin(hint)):
        if inspect.isclass(cls) and cls.__module__.startswith("gradfunc"):
            yield cls
    for inner in typing.get_args(hint):
        for part in inner if isinstance(inner, list) else [inner]:
            yield from _walk(part)
