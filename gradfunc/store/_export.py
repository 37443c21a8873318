"""Gradients for other tools."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor

from .._tree import Tensors, at_positions
from ._columns import LENGTHS, Part
from ._error import StoreError, reason, refused
from ._gradients import stretches
from ._ids import Named, named
from ._kinds import FACTORS, READING
from ._layout import LOSSES, METADATA, ROWS, WEIGHTS, group_of
from ._view import View

FORMATS = ("numpy", "torch", "arrow")


class Column(NamedTuple):
    """A factor of a parameter: its name, what the store calls it there, and what it is."""

    parameter: str
    key: str
    facts: dict[str, Any]

    @property
    def group(self) -> str:
        """What a shard calls it."""
        return group_of(self.parameter, self.key)

    def entries(self, part: Part, name: str) -> Tensor:
        """How many entries rows have ("lengths"), or what a tensor holds of them; also where the part lacks it."""
        held = part.ragged.get(self.group)
        if name == LENGTHS:
            return torch.zeros(part.count, dtype=torch.int32) if held is None else held.lengths
        dtype, shape = self.facts["tensors"][name]
        return torch.empty(0, *shape, dtype=getattr(torch, dtype)) if held is None else held.tensors[name]


def export(call: str, view: View, path: Path, format: str) -> None:
    """Write a new file, or a new folder."""
    if path.exists():
        raise refused(call, got="something that is there already", expected="a new path")
    write = {"numpy": _numpy, "torch": _torch, "arrow": _arrow}[format]
    try:
        write(call, view, path)
    except StoreError:
        raise
    except OSError as error:
        raise refused(call, got=reason(error), expected="a path that can be written") from error


def _numpy(call: str, view: View, path: Path) -> None:
    """A file a tensor; factors numbered, since a name of a parameter need be no name of a file."""
    path.mkdir(parents=True)
    told = []
    for k, column in enumerate(_columns(view)):
        files = {name: f"factor-{k}-{name}.npy" for name in (LENGTHS, *column.facts["tensors"])}
        for name, file in files.items():
            _fill(path / file, view, functools.partial(column.entries, name=name))
        told.append({"parameter": column.parameter, **column.facts, "files": files})
    if view.manifest.is_factored:
        (path / "factors.json").write_text(json.dumps({"reading": READING, FACTORS: told}, indent=1))
    else:
        _fill(path / "rows.npy", view, lambda part: part.plain[ROWS])
    np.save(path / "ids.npy", _outside(named(view.ids())))
    for name, value in _values(view).items():
        np.save(path / f"{name}.npy", _outside(value))
    for name, value in view.metadata().items():
        np.save(path / f"metadata-{quote(name, safe='')}.npy", _outside(value))


def _fill(path: Path, view: View, pick: Callable[[Part], Tensor]) -> None:
    """An array in a file, written as it is read."""
    some = _outside(pick(nothing(view)))
    shape = (sum(len(pick(shard.part)) for shard in view.shards), *some.shape[1:])
    if 0 in shape:  # of nothing there is no map
        np.save(path, np.empty(shape, some.dtype))
        return
    array: Any = np.lib.format.open_memmap(path, mode="w+", dtype=some.dtype, shape=shape)
    _pour(view, pick, lambda at, value: array.__setitem__(at, _outside(value)))
    array.flush()


def _whole(view: View, pick: Callable[[Part], Tensor]) -> Tensor:
    """What all rows have of a column."""
    some = pick(nothing(view))
    out = some.new_empty(sum(len(pick(shard.part)) for shard in view.shards), *some.shape[1:])
    _pour(view, pick, out.__setitem__)
    return out


def _pour(view: View, pick: Callable[[Part], Tensor], put: Callable[[slice, Tensor], None]) -> None:
    """What rows have of a column, a shard at a time, to where it belongs."""
    start = 0
    for shard in view.shards:
        value = pick(shard.part)
        put(slice(start, start + len(value)), value)
        shard.done()
        start += len(value)


def _torch(call: str, view: View, path: Path) -> None:
    ids = named(view.ids())
    found: dict[str, Any] = {"ids": ids if isinstance(ids, Tensor) else ids.tolist(), "metadata": view.metadata()}
    if view.manifest.is_factored:
        found |= {"reading": READING, FACTORS: [], **_values(view)}
    else:
        found["rows"] = _whole(view, lambda part: part.plain[ROWS])
    for column in _columns(view):
        names = (LENGTHS, *column.facts["tensors"])
        tensors = {name: _whole(view, functools.partial(column.entries, name=name)) for name in names}
        found[FACTORS].append({"parameter": column.parameter, **column.facts, **tensors})
    torch.save(found, path)


def _arrow(call: str, view: View, path: Path) -> None:
    """A record a row; what is ragged as lists."""
    try:
        import pyarrow as pa
    except ImportError as error:
        do = "pip install 'gradfunc[store]'"
        raise refused(call, got="no pyarrow", expected="the extra that has it", do=do) from error

    def listed(value: Named) -> Any:
        array = _outside(value)
        return pa.array(array) if array.ndim == 1 else _fixed(array)

    def _fixed(array: np.ndarray[Any, Any]) -> Any:
        size = int(np.prod(array.shape[1:]))
        return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), size)

    def ragged(part: Part, column: Column, name: str) -> Any:
        ends = column.entries(part, LENGTHS).cumsum(0, dtype=torch.int64)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), ends])
        return pa.LargeListArray.from_arrays(pa.array(offsets.numpy()), listed(column.entries(part, name)))

    ids, values, metadata = named(view.ids()), _values(view), view.metadata()

    def batch(at: slice, part: Part) -> Any:
        made = {"id": listed(ids[at])}
        if not view.manifest.is_factored:
            made["row"] = listed(part.plain[ROWS])
        for column in _columns(view):
            made |= {f"{column.group}/{name}": ragged(part, column, name) for name in column.facts["tensors"]}
        made |= {name: listed(value[at]) for name, value in values.items()}
        made |= {METADATA + name: listed(value[at]) for name, value in metadata.items()}
        return pa.record_batch(list(made.values()), names=list(made))

    facts = {"reading": json.dumps(READING), "factors": json.dumps(dict(view.manifest.factors))}
    schema = batch(slice(0, 0), nothing(view)).schema
    if view.manifest.is_factored:
        schema = schema.with_metadata(facts)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for at, part in parts(view):
            writer.write_batch(batch(at, part).replace_schema_metadata(schema.metadata))


def parts(view: View) -> Iterator[tuple[slice, Part]]:
    """Copies of some rows at a time."""
    for at in stretches(view):
        yield at, view.part(at_positions(at))


def nothing(view: View) -> Part:
    """No rows of the store: what their entries look like."""
    return Part(0, {ROWS: torch.empty(0, view.manifest.size, dtype=view.manifest.torch_dtype)})


def _columns(view: View) -> list[Column]:
    return [Column(name, key, facts) for name, own in view.manifest.factors.items() for key, facts in own.items()]


def _values(view: View) -> Tensors:
    """Losses and weights, where the store has them."""
    like = torch.empty((), dtype=torch.float64)
    return {name: view.column(name, like) for name in (LOSSES, WEIGHTS)} if view.manifest.is_factored else {}


def _outside(value: Named) -> np.ndarray[Any, Any]:
    """As an array of numpy's, which has no bfloat16."""
    if not isinstance(value, Tensor):
        return value
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
