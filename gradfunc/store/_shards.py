"""A shard: one file in the format of safetensors, written whole, read by memory map at the header's offset."""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._files import Buffer, replace_file
from .._tree import Tensors
from ._columns import Part, columns
from ._error import reason, refused
from ._layout import read_part
from ._manifest import Manifest, Shard

# What safetensors calls the types that occur here.
_TYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def write_shard(folder: Path, name: str, parts: Sequence[Part]) -> Shard:
    """Write rows with what is kept with them to a new file: synced when it returns, whole or not there at all."""
    pieces = laid_out(columns(parts))
    replace_file(folder / name, *pieces)
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    rows, length = sum(part.count for part in parts), sum(map(len, pieces))
    return Shard(name, rows, length, digest.hexdigest())


def laid_out(columns: Mapping[str, Sequence[Tensor]]) -> list[Buffer]:
    """A file of safetensors in pieces: its header, and the memory of tensors where it is, those of a name in a row.

    safetensors' own writer copies all of it twice, which leaves the heap in pieces after some thousand files.
    """
    header: dict[str, Any] = {"__metadata__": {"gradfunc": "shard of a gradient store"}}
    pieces: list[Buffer] = []
    end = 0
    # wide types first, as safetensors does: each then begins at a multiple of its size
    for name, parts in sorted(columns.items(), key=lambda item: (-item[1][0].element_size(), item[0])):
        start = end
        for part in parts:
            pieces.append(part.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            end += part.numel() * part.element_size()
        kind = next(kind for kind, dtype in _TYPES.items() if dtype == parts[0].dtype)
        shape = [sum(map(len, parts)), *parts[0].shape[1:]]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little") + text, *pieces]


@dataclass(frozen=True, eq=False)
class Mapped:
    """A shard in the address space of this process. Tensors are views of the file: to be read and copied.

    Attributes:
        part: its rows.
    """

    part: Part
    _memory: mmap.mmap

    def done(self) -> None:
        """Let go of the pages that were read; they come again when they are read again."""
        with contextlib.suppress(AttributeError, OSError):  # not every system can
            self._memory.madvise(mmap.MADV_DONTNEED)


def map_shard(call: str, folder: Path, shard: Shard, manifest: Manifest) -> Mapped:
    """Map a shard; its length and header are held to the manifest, its values are not read.

    The system may map megabytes around one entry that is read, so pages are let go of after each use.

    Raises:
        StoreError: it is missing, cut short, or not what the manifest says.
    """
    path = folder / shard.file
    do = "gf.store.verify(path) says what is damaged; open(path, damaged='skip') reads the rest."
    try:
        with open(path, "rb") as file:
            length = os.fstat(file.fileno()).st_size
            if length != shard.bytes:
                raise ValueError(f"it has {length} bytes of {shard.bytes}")
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        with contextlib.suppress(AttributeError, OSError):
            memory.madvise(mmap.MADV_SEQUENTIAL)
        tensors = _tensors(memory, length)
        part = read_part(tensors, shard.rows, manifest)
    except OSError as error:
        raise refused(call, got=f"shard {shard.file}: {reason(error)}", expected="a file to read", do=do) from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        got = f"a damaged shard {shard.file} of {shard.rows} rows: {error}"
        raise refused(call, got=got, expected="the file that was written", do=do) from error
    mapped = Mapped(part, memory)
    mapped.done()
    return mapped


def _tensors(memory: mmap.mmap, length: int) -> Tensors:
    """Views by name. A file of safetensors: eight bytes of length, a header of JSON, then values."""
    start = 8 + int.from_bytes(memory[:8], "little")
    if not 8 < start <= length:
        raise ValueError("it has no header")
    header: dict[str, Any] = json.loads(memory[8:start])
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, (first, last) = _TYPES[entry["dtype"]], entry["data_offsets"]
        count = (last - first) // dtype.itemsize
        if not 0 <= first <= last <= length - start:
            raise ValueError(f"{name} lies outside of the file")
        flat = torch.frombuffer(memory, dtype=dtype, count=count, offset=start + first) if count else torch.empty(0)
        found[name] = flat.to(dtype).view(entry["shape"])
    return found
