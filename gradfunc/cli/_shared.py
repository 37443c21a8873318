"""What every command does: read the model, run, show."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Annotated, Any, Literal

from cyclopts import Parameter, Token
from rich.console import Console

from .._errors import ModelPathError, kind_of
from .._report import Report


def _whole_number(type_: Any, tokens: Sequence[Token]) -> int:
    """cyclopts would round 2.5."""
    value = int(tokens[0].value)
    if value < 1:
        raise ValueError("expected a positive whole number")
    return value


DType = Literal["float64", "float32", "bfloat16", "float16"]
Size = Annotated[int, Parameter(converter=_whole_number)]


def show(report: Report, as_json: bool) -> int:
    """Print a report; the exit code."""
    print(json.dumps(report.to_dict(), indent=2) if as_json else report)
    return 0 if report.ok else 1


@contextmanager
def running() -> Iterator[Callable[[str], None]]:
    """What the user's own code prints goes to stderr, so that it does not mix with the report, and so does progress."""
    with redirect_stdout(sys.stderr), _progress() as note:
        yield note


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A line on stderr that says what is being done, where a person watches."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda stage: None
        return
    with console.status("reading the model") as status:
        yield lambda stage: status.update(stage)


def load(path: str) -> tuple[Any, Any, Any, Any]:
    """Call `package.module:factory`.

    Raises:
        ModelPathError: with one line that says what is wrong.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ModelPathError(f"--model {path!r}: expected package.module:factory")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a script without a main guard must not set our exit code
        raise ModelPathError(f"--model {path!r}: cannot import {module_name}: {_line(error)}") from error
    factory = getattr(module, name, None)
    if factory is None:
        raise ModelPathError(f"--model {path!r}: module {module_name} has no {name!r}")
    if not callable(factory):
        raise ModelPathError(f"--model {path!r}: {name} is {kind_of(factory)}, expected a function")
    try:
        made = factory()
    except (Exception, SystemExit) as error:
        raise ModelPathError(f"--model {path!r}: {name}() raised {_line(error)}") from error
    if not isinstance(made, tuple) or len(made) not in (3, 4):
        came = f"a tuple of {len(made)}" if isinstance(made, tuple) else kind_of(made)
        raise ModelPathError(
            f"--model {path!r}: {name}() returned {came}, expected (model, criterion, batch) or with your loop fourth"
        )
    model, criterion, batch, yours = (*made, None)[:4]
    return model, criterion, batch, yours


def load_problem(command: str, path: str) -> tuple[Any, Any, Any]:
    """The same for a command without use for a loop; where one is given, stderr says so."""
    model, criterion, batch, yours = load(path)
    if yours is not None:
        print(f"gradfunc {command}: the fourth entry, a loop, is not used; gradfunc audit takes it", file=sys.stderr)
    return model, criterion, batch


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
