"""The public names of gradfunc, found rather than listed: whatever its public modules re-export or define."""

from __future__ import annotations
import __future__

import functools
import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradfunc as gf

# Called by name from a shell or from pytest, not from Python.
COMMANDS = (
    "gradfunc.cli",
    "gradfunc.bench.attribution",
    "gradfunc.bench.influence_of_many",
    "gradfunc.bench.rows_on_disk",
    "gradfunc.testing.plugin",
)


@dataclass(frozen=True)
class Name:
    """A public name.

    Attributes:
        path: such as "gradfunc.losses.mse".
        value: what it names.
        same: the path of the first name of the same thing, where that is another.
    """

    path: str
    value: Any
    same: str | None = None

    @property
    def short(self) -> str:
        """As people write it: "gf.losses.mse"."""
        return self.path.replace("gradfunc", "gf", 1)

    @property
    def last(self) -> str:
        """Without its namespace."""
        return self.path.rpartition(".")[2]

    @property
    def kind(self) -> str:
        """ "class", "function" or "data", as autodoc calls them."""
        if inspect.isclass(self.value):
            return "class"
        return "function" if inspect.isroutine(self.value) else "data"


@functools.cache
def namespaces() -> dict[str, types.ModuleType]:
    """Public modules by path, `gradfunc` first: no part of whose path begins with an underscore."""
    found = {"gradfunc": gf}
    for info in pkgutil.walk_packages(gf.__path__, "gradfunc."):
        private = any(part.startswith("_") for part in info.name.split("."))
        if not private and not info.name.startswith(COMMANDS):
            found[info.name] = importlib.import_module(info.name)
    return found


def public(module: types.ModuleType) -> Iterator[tuple[str, Any]]:
    """What a module offers: `__all__`, or what a package re-exports and a file defines."""
    listed = getattr(module, "__all__", None)
    for name in listed if listed is not None else vars(module):
        value = getattr(module, name)
        if (
            not name.startswith(("_", "pytest_"))
            and not inspect.ismodule(value)
            and (listed is not None or _offered(module, value))
        ):
            yield name, value


def _offered(module: types.ModuleType, value: object) -> bool:
    package, home = hasattr(module, "__path__"), getattr(value, "__module__", None)
    if inspect.isclass(value) or inspect.isroutine(value) or isinstance(value, typing.NewType):
        return str(home).startswith("gradfunc") if package else home == module.__name__
    # A constant of a package was imported on purpose; a file's own cannot be told from what it uses itself.
    return package and not isinstance(value, __future__._Feature | bool)


@functools.cache
def names() -> dict[str, Name]:
    """All of them by path, those of `gradfunc` itself first."""
    found: dict[str, Name] = {}
    first: dict[int, str] = {}
    for where, module in namespaces().items():
        for name, value in public(module):
            path = f"{where}.{name}"
            same = first.setdefault(id(value), path)
            found[path] = Name(path, value, None if same == path else same)
    return found
