"""Where in the user's code something happens: the line, and the module whose forward pass it is in."""

from __future__ import annotations

import linecache
import os
import sysconfig
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

_OURS = os.path.dirname(os.path.abspath(__file__))
_TORCH = os.path.dirname(os.path.abspath(torch.__file__))
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")})


class Place(NamedTuple):
    """Where some frames, outermost first, stand.

    Attributes:
        code: the innermost line outside of torch and gradfunc, "" where there is none.
        where: its "file:line", and that of the user's own line if it lies in a library.
        module: the path of the module in whose forward pass it is (the class of the outermost), "" outside of any.
    """

    code: str = ""
    where: str = ""
    module: str = ""


def place_of(frames: Sequence[tuple[Any, int]]) -> Place:
    """Where these `(frame, line)` stand."""
    outside = [(frame, line) for frame, line in frames if not within(frame.f_code.co_filename, _OURS, _TORCH)]
    module = _module([frame for frame, _ in frames])
    if not outside:
        return Place(module=module)
    frame, line = outside[-1]
    own = [one for one in outside if not within(one[0].f_code.co_filename, *_INSTALLED)]
    where = _spelt(frame, line)
    if own and own[-1][0] is not frame:
        where += f", called at {_spelt(*own[-1])}"
    return Place(linecache.getline(frame.f_code.co_filename, line).strip(), where, module)


def in_torch(frame: Any) -> bool:
    """Whether a frame runs torch's own code."""
    return within(frame.f_code.co_filename, _TORCH)


def within(path: str, *folders: str) -> bool:
    """Whether a file lies in one of these folders, or in none of the user's."""
    return path.startswith(("<frozen", "<eval_with_key>")) or any(
        path.startswith(folder + os.sep) for folder in folders
    )


def _spelt(frame: Any, line: int) -> str:
    path = frame.f_code.co_filename
    if path.startswith("<"):  # typed, or made by exec
        return f"{path}:{line}"
    path = os.path.abspath(path)
    for folder in _INSTALLED:
        path = path.removeprefix(folder + os.sep)
    return f"{os.path.relpath(path) if path.startswith(os.getcwd() + os.sep) else path}:{line}"


def _module(frames: list[Any]) -> str:
    """The path of the innermost module whose forward pass is running, in the outermost one that is the user's."""
    modules = [frame.f_locals.get("self") for frame in frames]
    known = [m for m in modules if isinstance(m, nn.Module) and not within(_file_of(m), _OURS)]
    if not known:
        return ""
    names = {id(module): name for name, module in known[0].named_modules()}
    return next((names[id(m)] or type(m).__name__ for m in reversed(known) if id(m) in names), "")


def _file_of(module: nn.Module) -> str:
    forward: Any = type(module).forward
    code = getattr(forward, "__code__", None)
    return "" if code is None else str(code.co_filename)
