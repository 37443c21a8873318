"""Reports and histories as one flat dictionary of numbers: what TensorBoard and other loggers take."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ._errors import check_int, kind_of, message
from ._report import Report
from .train import History

# What names a row of a report, most telling first; fields of one row that are there are joined by slashes.
NAMING = (("name",), ("layer",), ("check",), ("mechanism",), ("pair",), ("fault",), ("how",), ("a", "b"),
          ("model", "contender", "quantity"), ("workload", "contender", "quantity"))  # fmt: skip


def scalars(source: Report | History, *, step: int | None = None) -> dict[str, float | np.ndarray[Any, Any]]:
    """`{name: number or array}` of a report, a history, or one step of a history; levels of names joined by slashes.

    Numbers are floats (yes and no are 1 and 0; NaN and inf stay), tensors and lists of numbers float64 arrays; text and
    what is None are left out. Rows of a report go by what names them, such as the layer; of rows of one name, the
    second is `name#2`. In a history each name has the array of its values, `[n, ...]`, at `history.steps(...)`; reports
    that were captured are spread into one name a number.

    Args:
        source: any report of gradfunc, or the history of a `gf.train.fit`.
        step: of a history: only what was seen at that step, one number (or array) a name.

    Raises:
        TypeError: no report; `step` for a report that is no history.
        ValueError: nothing was seen at that step.

    Example:
        >>> import torch, gradfunc as gf
        >>> report = gf.diagnose.recurrence(torch.eye(2) / 2, steps=3)
        >>> numbers = gf.scalars(report)
        >>> numbers["spectral_radius"], numbers["ok"], numbers["log_norms"].round(2)
        (0.5, 1.0, array([ 0.  , -0.69, -1.39, -2.08]))
        >>> fit = gf.train.fit(lambda p, x: (p["w"] - x).square(), gf.mean() >> gf.sgd(0.25),
        ...                    {"w": torch.zeros(())}, torch.ones(4), batch_size=2)
        >>> gf.scalars(fit.history)["loss"], gf.scalars(fit.history, step=1)["loss"]
        (array([1.  , 0.25]), 0.25)
    """
    call = "gf.scalars(source)"
    if not isinstance(source, Report):
        raise TypeError(message(call, got=kind_of(source), expected="a report, or the history of a training"))
    if isinstance(source, History):
        return _of_history(source, step)
    if step is not None:
        raise TypeError(message(call, got=f"step={step!r} with {kind_of(source)}", expected="a step of a history"))
    return {"ok": float(source.ok), **dict(_walk("", source))}


def _of_history(history: History, step: int | None) -> dict[str, float | np.ndarray[Any, Any]]:
    if step is None:
        return dict(_joined(history))
    check_int("gf.scalars(history, step=...)", "step", step, 0)
    found: dict[str, float | np.ndarray[Any, Any]] = {}
    for name in history:
        for at in np.flatnonzero(history.steps(name) == step):
            found.update(_walk(name, history[name][int(at)]))
    if not found:
        call = f"gf.scalars(history, step={step})"
        raise ValueError(message(call, got=f"step={step}", expected="a step at which something was seen"))
    return found


def _joined(history: History) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Every series as an array; of lists of nested values, what is there at every step in one shape."""
    for name in history:
        values = history[name]
        if isinstance(values, np.ndarray):
            yield name, _array(values)
            continue
        each = [dict(_walk(name, value)) for value in values]
        for key in each[0] if each else ():
            column = [np.asarray(one[key]) for one in each if key in one]
            if len(column) == len(each) and len({array.shape for array in column}) == 1:
                yield key, np.stack(column)


def _walk(name: str, value: Any) -> Iterator[tuple[str, float | np.ndarray[Any, Any]]]:
    """Numbers and arrays in a nest, with their names."""
    if isinstance(value, (bool, int, float, np.number, np.bool_)):
        yield name, float(value)
    elif isinstance(value, (Tensor, np.ndarray)):
        array = _array(value)
        yield name, array if array.ndim else float(array)
    elif isinstance(value, str) and value in ("nan", "inf", "-inf") and not name.endswith(_TEXT):
        yield name, float(value)  # JSON has no number for these
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _walk(_under(name, field.name), getattr(value, field.name))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(_under(name, str(key)), item)
    elif isinstance(value, (list, tuple)):
        yield from _sequence(name, value)


_TEXT = tuple(f"/{field}" for fields in NAMING for field in fields)


def _sequence(name: str, values: Sequence[Any]) -> Iterator[tuple[str, float | np.ndarray[Any, Any]]]:
    if not values:
        return
    if all(isinstance(value, (bool, int, float)) for value in values):
        yield name, np.array(values, dtype=np.float64)
        return
    seen: dict[str, int] = {}
    for k, value in enumerate(values):
        label = _label(value) or str(k)
        seen[label] = seen.get(label, 0) + 1
        label = label if seen[label] == 1 else f"{label}#{seen[label]}"
        yield from _walk(_under(name, label), value)


def _label(row: Any) -> str:
    fields = row if isinstance(row, Mapping) else vars(row) if dataclasses.is_dataclass(row) else {}
    for names in NAMING:
        if all(isinstance(fields.get(name), str) for name in names):
            return "/".join(fields[name] for name in names)
    return ""


def _under(name: str, part: str) -> str:
    return f"{name}/{part}" if name else part


def _array(value: Tensor | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if isinstance(value, Tensor):
        value = value.detach().double().cpu().numpy()
    return value.astype(np.float64)
