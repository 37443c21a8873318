"""Rows for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ._error import StoreError, reason, refused
from ._view import View

FORMATS = ("numpy", "torch", "arrow")


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
    path.mkdir(parents=True)
    rows: Any = np.lib.format.open_memmap(
        path / "rows.npy", mode="w+", dtype=_dtype(view), shape=(len(view), view.manifest.size)
    )
    for at, block in view.blocks():
        rows[at] = block.to(_torch_dtype(view)).numpy()
    rows.flush()
    np.save(path / "ids.npy", view.ids().numpy())
    for name, value in view.metadata().items():
        np.save(path / f"metadata-{name}.npy", _widened(value).numpy())


def _torch(call: str, view: View, path: Path) -> None:
    rows = torch.empty(len(view), view.manifest.size, dtype=view.manifest.torch_dtype)
    for at, block in view.blocks():
        rows[at] = block.to(rows.dtype)
    torch.save({"ids": view.ids(), "rows": rows, "metadata": view.metadata()}, path)


def _arrow(call: str, view: View, path: Path) -> None:
    try:
        import pyarrow as pa
    except ImportError as error:
        do = "pip install 'gradfunc[store]'"
        raise refused(call, got="no pyarrow", expected="the extra that has it", do=do) from error

    def column(value: torch.Tensor) -> Any:
        flat = pa.array(_widened(value).reshape(-1).numpy())
        return flat if value.dim() == 1 else pa.FixedSizeListArray.from_arrays(flat, value[0].numel())

    ids, metadata = view.ids(), view.metadata()
    size = view.manifest.size
    kinds = {name: pa.from_numpy_dtype(_widened(value).numpy().dtype) for name, value in metadata.items()}
    fields = [("id", pa.int64()), ("row", pa.list_(pa.from_numpy_dtype(_dtype(view)), size))]
    for name, value in metadata.items():
        fields.append((name, pa.list_(kinds[name], value.shape[1:].numel()) if value.dim() > 1 else kinds[name]))
    schema = pa.schema(fields)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for at, block in view.blocks():
            rows = column(block.to(_torch_dtype(view)))
            columns = [column(ids[at]), rows, *(column(value[at]) for value in metadata.values())]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def _torch_dtype(view: View) -> torch.dtype:
    """Of rows outside of torch."""
    dtype = view.manifest.torch_dtype
    return torch.float32 if dtype == torch.bfloat16 else dtype


def _dtype(view: View) -> np.dtype[Any]:
    return torch.empty(0, dtype=_torch_dtype(view)).numpy().dtype


def _widened(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.dtype == torch.bfloat16 else value
