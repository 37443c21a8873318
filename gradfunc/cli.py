"""The command line: parse, call one function, print. Exit code 0 fine, 1 a fault found, 2 usage."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Annotated, Any, Literal

import cyclopts
from cyclopts import Parameter, Token
from rich.console import Console

from . import __version__
from ._errors import ModelPathError, kind_of
from ._report import Report
from .audit import _demo, reductions

app = cyclopts.App(
    name="gradfunc", help="The per-sample gradient as a value.", version=__version__, default_parameter=None
)


def _whole_number(type_: Any, tokens: Sequence[Token]) -> int:
    """cyclopts would round 2.5."""
    value = int(tokens[0].value)
    if value < 1:
        raise ValueError("expected a positive whole number")
    return value


@app.command
def audit(
    *,
    model: str | None = None,
    dtype: Literal["float64", "float32", "bfloat16", "float16"] | None = None,
    device: str | None = None,
    batch_size: Annotated[int | None, Parameter(converter=_whole_number)] = None,
    seed: int = 0,
    json: bool = False,
) -> int:
    """Find out why sum, mean and per-sample gradients disagree.

    Without --model: a healthy perceptron on the digits data, the forum question rerun, every mechanism once.

    Args:
        model: package.module:factory, a function returning (model, criterion, batch), or with a fourth: your own
            loop(module, criterion, batch) that collects a gradient. Files beside you are found.
        dtype: precision to audit in; it is repeated in another one. Default: the model's own.
        device: where to run, such as cuda:0. Default: where the model is.
        batch_size: use the first samples of the batch only.
        seed: of dropout and other draws.
        json: print JSON instead of tables.
    """
    # What the user's own code prints must not mix with the report.
    with _progress() as note, redirect_stdout(sys.stderr):
        if model is None:
            report: Report = _demo.demo(
                dtype=dtype or "float32", device=device, batch_size=batch_size or 64, seed=seed, progress=note
            )
        else:
            made, criterion, batch, yours = _load(model)
            report = reductions(
                made,
                criterion,
                batch,
                yours=yours,
                dtype=dtype,
                device=device,
                batch_size=batch_size,
                seed=seed,
                progress=note,
            )
    return _show(report, json)


def main() -> None:
    """Entry point of the console script."""
    try:
        code = app(exit_on_error=True)
    except BrokenPipeError:  # `gradfunc audit | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + 13) from None
    except Exception as error:  # whatever the user's model raises; Python's own exit code, 1, means a fault found
        if os.environ.get("GRADFUNC_TRACEBACK"):
            raise
        text = " ".join(str(error).split())
        if not isinstance(error, ModelPathError):
            text = f"{type(error).__name__}: {text} (GRADFUNC_TRACEBACK=1 shows where)"
        print(f"gradfunc: {text}", file=sys.stderr)
        raise SystemExit(2) from None
    raise SystemExit(code or 0)


def _show(report: Report, as_json: bool) -> int:
    print(json.dumps(report.to_dict(), indent=2) if as_json else report)
    return 0 if report.ok else 1


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A line on stderr that says what is being done, where a person watches."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda stage: None
        return
    with console.status("reading the model") as status:
        yield lambda stage: status.update(stage)


def _load(path: str) -> tuple[Any, Any, Any, Any]:
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


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
