"""What every command does: read the model, run, show."""

from __future__ import annotations

import importlib
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from cyclopts import Parameter, Token
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from .. import plot
from .._errors import ModelPathError, kind_of, message
from .._page import page
from .._problem import read
from .._report import Report
from ..bench._environment import environment


def _whole_number(type_: Any, tokens: Sequence[Token]) -> int:
    """cyclopts would round 2.5."""
    value = int(tokens[0].value)
    if value < 1:
        raise ValueError("expected a positive whole number")
    return value


DType = Literal["float64", "float32", "bfloat16", "float16"]
Size = Annotated[int, Parameter(converter=_whole_number)]
Names = Annotated[list[str], Parameter(consume_multiple=True, negative_iterable=())]


def _positive(type_: Any, value: float | None) -> None:
    if value is not None and not 0 < value < math.inf:
        raise ValueError("expected a positive number")


def _beside_a_folder(type_: Any, value: Path | None) -> None:
    """Before anything long is run."""
    if value is not None and (value.is_dir() or not value.parent.is_dir()):
        raise ValueError("expected a file in a folder that is there")


def _no_file(type_: Any, value: Path | None) -> None:
    if value is None:
        return
    there = next(part for part in (value, *value.absolute().parents) if part.exists())
    if not there.is_dir():
        raise ValueError(f"expected a folder; {there} is a file")


Rate = Annotated[float, Parameter(validator=_positive)]
Page = Annotated[Path, Parameter(validator=_beside_a_folder)]
Folder = Annotated[Path, Parameter(validator=_no_file)]
NO_FIGURES = "No figures: matplotlib is not there (pip install 'gradfunc[plot]')."
SAID = ("date", "gradfunc", "commit", "python", "torch", "numpy", "system", "cpu", "threads")  # of the environment


def show(report: Report, as_json: bool, to: Path | None = None) -> int:
    """Print a report, and write it as a page if a file is given; the exit code."""
    print(json.dumps(report.to_dict(), indent=2) if as_json else report)
    if to is not None:
        figures = figures_of(report)
        every = environment(torch.device("cpu"))
        text = page(
            " ".join(["gradfunc", *sys.argv[1:2]]),
            report,
            figures,
            environment={name: every[name] for name in SAID},
            command=shlex.join(["gradfunc", *sys.argv[1:]]),
            notes=[] if figures is not None else [NO_FIGURES],
        )
        to.write_text(text, encoding="utf-8")
    return 0 if report.ok else 1


def keep(report: Report, folder: Path | None) -> None:
    """Write report.json and the figures that fit it into a folder, if one is given."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    figures = figures_of(report)
    if figures is None:
        print(f"gradfunc: {NO_FIGURES}", file=sys.stderr)
    for name, figure in (figures or {}).items():
        plot.save(figure, folder / f"{name}.svg")


def figures_of(report: Report) -> dict[str, Any] | None:
    """All that fit; None without matplotlib."""
    try:
        return plot.figures(report)
    except ImportError:
        return None


@contextmanager
def running() -> Iterator[Callable[[str], None]]:
    """What the user's own code prints goes to stderr, so that it does not mix with the report, and so does progress."""
    with redirect_stdout(sys.stderr), _progress() as note:
        yield note


@contextmanager
def counting(unit: str) -> Iterator[Callable[[int, int], None]]:
    """The same, where progress is (done, all): a bar with the rate and the time that is left."""
    console = Console(stderr=True)
    with redirect_stdout(sys.stderr):
        if not console.is_terminal:
            yield lambda done, total: None
            return
        with Progress(BarColumn(), MofNCompleteColumn(), _Rate(unit), TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task("", total=None)

            def note(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            yield note


class _Rate(ProgressColumn):
    """How many of a unit are done in a second, from the second note on: what was there at the first took no time."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """Digits that can be read, without an exponent."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.{0 if speed >= 100 else 1}f} {self._unit}" if speed else "")


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A line on stderr that says what is being done, where a person watches."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda stage: None
        return
    with console.status("reading the model") as status:
        yield lambda stage: status.update(stage)


def of_a_model(command: str, **options: Any) -> None:
    """Refuse options that the default run has no use for, where they are given."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if given:
        call = f"gradfunc {command}"
        raise ValueError(message(call, got=f"{', '.join(given)} without --model", expected="both, or neither"))


def load(path: str, fourth: str = "your loop") -> tuple[Any, Any, Any, Any]:
    """Call `package.module:factory`. Its fourth entry, None where there is none, is named in what is raised.

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
            f"--model {path!r}: {name}() returned {came}, expected (model, criterion, batch) or with {fourth} fourth"
        )
    model, criterion, batch, yours = (*made, None)[:4]
    return model, criterion, batch, yours


def load_problem(command: str, path: str, batch_size: int | None = None) -> tuple[Any, Any, Any]:
    """The same for a command without use for a loop; where one is given, stderr says so. The first samples if asked."""
    model, criterion, batch, yours = load(path)
    if yours is not None:
        print(f"gradfunc {command}: the fourth entry, a loop, is not used; gradfunc audit takes it", file=sys.stderr)
    if batch_size is not None:
        problem = read(f"gradfunc {command}", model, criterion, batch)
        batch = problem.rows(0, min(batch_size, problem.size)).batch
    return model, criterion, batch


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
