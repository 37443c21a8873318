"""The command line: parse, call one function, print. Exit code 0 fine, 1 a fault found, 2 usage. One command a file."""

from __future__ import annotations

import os
import sys

import cyclopts

from .. import __version__
from .._errors import ModelPathError
from ._audit import audit
from ._bench import bench
from ._check import check
from ._doctor import doctor
from ._flow import flow
from ._influence import influence
from ._recurrence import recurrence_
from ._store import store

app = cyclopts.App(
    name="gradfunc", help="The per-sample gradient as a value.", version=__version__, default_parameter=None
)
app.command(audit)
app.command(check)
app.command(flow)
app.command(recurrence_, name="recurrence")
app.command(doctor)
app.command(influence)
app.command(bench)
app.command(store)


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
