"""What was seen during training: series of values by name, each with the steps at which it was seen."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._errors import kind_of, message, one_of
from .._report import Report, Table, jsonable

MOST = 20  # epochs in a table
ALWAYS = ("loss", "weight", "epoch", "epoch_loss", "validation")  # series of fit's own


class Series(NamedTuple):
    """One quantity: the steps at which it was seen `[n]`, and what was seen, `[n, ...]` or a list of n values."""

    steps: np.ndarray[Any, np.dtype[np.int64]]
    values: Any


@dataclass(frozen=True)
class History(Report):
    """Series by name. `history["loss"]` is an array of one number a step.

    Always there: "loss" (the mean loss of each batch), "weight" (the batch's total weight) and "epoch", one entry a
    step; "epoch_loss" (the mean over all samples of an epoch, each at the parameters of its step), one an epoch. What a
    capture function returns is there under its name, or as "name/key" for each entry of a mapping; validation as
    "validation/loss" and "validation/<metric>". Arrays where each value is a number or all are tensors of one shape;
    else lists of JSON-ready values.

    Example:
        >>> import torch, gradfunc as gf
        >>> def loss(p, x):
        ...     return (p["w"] - x).square()
        >>> fit = gf.train.fit(loss, gf.mean() >> gf.sgd(0.25), {"w": torch.zeros(())}, torch.ones(4), batch_size=2)
        >>> fit.history["loss"]
        array([1.  , 0.25])
        >>> fit.history.steps("epoch_loss"), fit.history["epoch_loss"]
        (array([1]), array([0.625]))
    """

    series: Mapping[str, Series]

    def __getitem__(self, name: str) -> Any:
        """The values of a series.

        Raises:
            ValueError: no series of this name.
        """
        return self._one(name).values

    def __iter__(self) -> Iterator[str]:
        return iter(self.series)

    def __contains__(self, name: object) -> bool:
        return name in self.series

    def __len__(self) -> int:
        return len(self.series)

    def steps(self, name: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The steps at which a series was seen, `[n]`; the first step of a training is 0.

        Raises:
            ValueError: no series of this name.
        """
        return self._one(name).steps

    def _one(self, name: str) -> Series:
        one_of("history[name]", "name", name, self.series)
        return self.series[name]

    def frame(self) -> Any:
        """A `pandas.DataFrame`: one row a step, one column a series of numbers, NaN where a series has no entry.

        Series of tensors and of mappings are left out: they are arrays and lists by name.

        Raises:
            ImportError: pandas is not there.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("history.frame() needs pandas: pip install 'gradfunc[frame]'") from error
        columns = {
            name: pandas.Series(values, index=steps)
            for name, (steps, values) in self.series.items()
            if isinstance(values, np.ndarray) and values.ndim == 1
        }
        return pandas.DataFrame(columns).rename_axis("step")

    @property
    def ok(self) -> bool:
        """Whether every loss was finite (of a batch whose weight is 0 there is none)."""
        return "loss" not in self or bool((np.isfinite(self["loss"]) | (self["weight"] == 0)).all())

    def parts(self) -> list[Table | str]:
        """One row an epoch: its mean loss and validation; of more than twenty, some."""
        if "epoch" not in self:
            return ["No step was made."]
        steps, every = self.steps("epoch"), np.unique(self["epoch"])
        validation = [name for name in self if name.startswith("validation/")]
        rows = []
        for epoch in every[np.unique(np.linspace(0, len(every) - 1, min(len(every), MOST)).round().astype(int))]:
            first, last = steps[self["epoch"] == epoch][[0, -1]]
            cells = [self._last(name, first, last) for name in ("loss", "epoch_loss", *validation)]
            rows.append([str(epoch + 1), str(last + 1), *cells])
        others = [name for name in self if name not in (*ALWAYS, *validation)]
        note = f"captured: {', '.join(others)}" if others else ""
        columns = ["epoch", "steps", "last batch", "mean loss", *validation]
        return [Table("Training, epoch by epoch", columns, rows, note)]

    def _last(self, name: str, first: int, last: int) -> str:
        if name not in self:
            return "-"
        steps, values = self.series[name]
        inside = values[(first <= steps) & (steps <= last)]
        return f"{inside[-1]:.4g}" if len(inside) else "-"

    def to_dict(self) -> dict[str, Any]:
        """`{name: {"steps": [...], "values": [...]}}`, JSON-ready."""
        return {
            name: {"steps": steps.tolist(), "values": jsonable(_listed(values))}
            for name, (steps, values) in self.series.items()
        }


def _listed(values: Any) -> Any:
    return values.tolist() if isinstance(values, np.ndarray) else values


class Recorder:
    """What is gathered while training runs."""

    def __init__(self, history: History | None = None) -> None:
        # one pair an entry, so that an interrupt finds both or none
        self._series: dict[str, list[tuple[int, Any]]] = {}
        self._arrays: dict[str, Series] = {}  # of the first entries, so that a history costs what is new
        for name, (steps, values) in (history.series if history else {}).items():
            each = [np.asarray(value) for value in values] if isinstance(values, np.ndarray) else values
            self._series[name] = list(zip(steps.tolist(), each, strict=True))

    def add(self, name: str, step: int, value: Any) -> None:
        """Note a value, a mapping of values, or a report."""
        if isinstance(value, Report):
            value = _Json(value.to_dict())
        if isinstance(value, Mapping):
            for key, item in value.items():
                self.add(f"{name}/{key}", step, item)
            return
        pairs, call = self._series.setdefault(name, []), f"capture[{name!r}](snapshot)"
        if pairs and pairs[-1][0] == step:
            raise ValueError(message(call, got=f"a second value at step {step}", expected="one value of each name"))
        pairs.append((step, _plain(call, value)))

    def since(self, step: int, *names: str) -> list[list[Any]]:
        """The values of these series from a step on."""
        return [[value for at, value in _back_to(self._series[name], step)][::-1] for name in names]

    def history(self, before: int | None = None) -> History:
        """All of it as it is now, or what was seen at steps before this one."""
        counts = {name: len(pairs) for name, pairs in self._series.items()}
        if before is not None:
            counts = {name: n - len(list(_back_to(self._series[name], before))) for name, n in counts.items()}
        return History({name: self._first(name, n) for name, n in counts.items() if n})

    def _first(self, name: str, n: int) -> Series:
        """The first n entries of a series, in arrays of their own."""
        known = self._arrays.get(name)
        if known is None or len(known.steps) > n:
            return self._remembered(name, _series(self._series[name][:n]))
        new = _series(self._series[name][len(known.steps) : n])
        if not len(new.steps):
            return Series(known.steps.copy(), known.values.copy())
        if not _alike(known.values, new.values):
            return self._remembered(name, _series(self._series[name][:n]))
        steps, values = (np.concatenate(both) for both in zip(known, new, strict=True))
        return self._remembered(name, Series(steps, values))

    def _remembered(self, name: str, series: Series) -> Series:
        self._arrays.pop(name, None)
        if isinstance(series.values, np.ndarray):
            self._arrays[name] = Series(series.steps.copy(), series.values.copy())
        return series


def _series(pairs: list[tuple[int, Any]]) -> Series:
    return Series(np.array([step for step, _ in pairs], dtype=np.int64), _stacked([value for _, value in pairs]))


def _alike(a: Any, b: Any) -> bool:
    """Whether one array can follow the other as it is."""
    return isinstance(b, np.ndarray) and a.shape[1:] == b.shape[1:] and a.dtype == b.dtype


def _back_to(pairs: list[tuple[int, Any]], step: int) -> Iterator[tuple[int, Any]]:
    return itertools.takewhile(lambda pair: pair[0] >= step, reversed(pairs))


class _Json(NamedTuple):
    """JSON-ready values that stay together."""

    value: Any


def _plain(call: str, value: Any) -> Any:
    expected = "a number, tensor, array, report, or a mapping or list of numbers and text"
    came = kind_of(value)
    if isinstance(value, Tensor):
        came = f"a tensor, {value.dtype} and {value.layout}"
        value = _dense(value)
    if isinstance(value, (bool, int, float, np.ndarray, np.number, np.bool_)):
        array = np.array(value)
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:  # what a file can hold
            got = came if array.ndim == 0 or came.startswith("a tensor") else f"an array of {array.dtype}"
            raise TypeError(message(call, got=got, expected=f"{expected}: real ones of at most 64 bits"))
        return array.astype(array.dtype.newbyteorder("="))
    if isinstance(value, _Json):
        value = value.value
    try:
        return json.loads(json.dumps(jsonable(value)))
    except (TypeError, ValueError) as error:
        raise TypeError(message(call, got=came, expected=expected)) from error


def _dense(value: Tensor) -> Any:
    """A copy for numpy, which knows no floats shorter than half; the tensor itself where there is none."""
    if value.layout != torch.strided or value.is_complex():
        return value
    known = not value.is_floating_point() or value.dtype in (torch.float16, torch.float32, torch.float64)
    return value.detach().to(value.dtype if known else torch.float32).cpu().resolve_neg().numpy().copy()


def _stacked(values: list[Any]) -> Any:
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    if len(arrays) == len(values) and len({array.shape for array in arrays}) <= 1:
        return np.stack(arrays) if arrays else np.zeros(0)
    return [value.tolist() if isinstance(value, np.ndarray) else value for value in values]
