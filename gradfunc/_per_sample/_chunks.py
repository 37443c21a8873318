"""How many rows are computed at once: a function of shapes, dtypes and total memory; halved where memory runs out."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from .._engines import Block, out_of_memory, spans
from .._errors import message
from .._tree import At, Tensors, at_positions, compact, count


@dataclass
class Chunks:
    """The chunk size in use. Where it was chosen automatically it shrinks when memory runs out.

    Attributes:
        size: rows at once.
        automatic: whether it may shrink.
        entries: P, of one sample's gradient.
        row_bytes: of the same.
    """

    size: int
    automatic: bool
    entries: int
    row_bytes: int

    @classmethod
    def choose(cls, asked: str | int | None, params: Tensors, samples: int, *, whole: bool = False) -> Chunks:
        """`asked` as it is; "auto": rows within 1/16 of the total memory, never of what happens to be free.

        With `whole` there are no rows to hold, and "auto" begins with all samples.
        """
        entries = sum(value.numel() for value in params.values())
        row = sum(value.numel() * value.element_size() for value in params.values())
        if isinstance(asked, int):
            return cls(asked, False, entries, row)
        if asked is None:
            return cls(max(samples, 1), False, entries, row)
        device = next(iter(params.values())).device
        on_gpu = device.type == "cuda"
        memory = torch.cuda.get_device_properties(device).total_memory if on_gpu else _machine_memory()
        fitting = samples if whole else memory // 16 // max(row, 1)
        return cls(max(1, min(samples or 1, fitting)), True, entries, row)

    def computed(self, call: str, compute: Callable[[At], Block], at: At, total: int) -> Iterator[tuple[At, Block]]:
        """`compute(at)`, in smaller parts where that does not fit into memory.

        Raises:
            torch.OutOfMemoryError: one sample does not fit, or the chunk size was given.
        """
        pending = [at]
        while pending:
            at = pending.pop(0)
            if self.automatic and count(at) > self.size:
                pending = [compact(at_positions(at)[part]) for part in spans(count(at), self.size)] + pending
            elif (block := self._tried(call, compute, at, total)) is not None:
                yield at, block
            else:  # the failed try's memory is free again: its error, which held it, is gone
                self.size = (count(at) + 1) // 2
                pending.insert(0, at)

    def _tried(self, call: str, compute: Callable[[At], Block], at: At, total: int) -> Block | None:
        try:
            return compute(at)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if not self.automatic or count(at) <= 1:
                raise torch.OutOfMemoryError(self._explained(call, count(at), total)) from error
            return None

    def _explained(self, call: str, samples: int, total: int) -> str:
        at_once = "one sample at a time" if samples == 1 else f"{samples} samples at a time"
        fewer = "wrt= to differentiate fewer parameters"
        smaller = "a smaller chunk_size=, or chunk_size='auto'" if samples > 1 else fewer
        return message(
            call,
            got=f"out of memory with {at_once}: B x P = {total} x {self.entries:,} entries, "
            f"{total * self.row_bytes:,} bytes in all, besides what the forward pass keeps",
            expected="rows that fit",
            do=f"Set {smaller}; or ask for sum(), norms() or dot(), which stream, rather than materialize().",
        )


@functools.cache
def _machine_memory() -> int:
    """Total bytes, or the limit of the container; 8 GiB where the system does not say."""
    total = 2**33
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdigit() else total
