"""A store of synthetic rows, built and queried in processes of their own: rows a second, the disk's own speed, memory.

python -m gradfunc.bench.rows_on_disk FOLDER --rows 1000000 --out benchmarks/store-cpu.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from .. import store as stores
from ._apart import apart
from ._environment import environment

BATCH = 1024


def block(start: int, count: int, size: int) -> torch.Tensor:
    """Rows start to start + count: normal numbers by a generator seeded with the start."""
    return torch.randn(count, size, generator=torch.Generator().manual_seed(start))


def build(folder: str, rows: int, size: int) -> dict[str, Any]:
    """Append all rows; the time of making them is not counted."""
    store = stores.GradientStore.create(folder, size=size, dtype="float16")
    appending = 0.0
    with store.writer() as writer:
        for start in range(0, rows, BATCH):
            made = block(start, min(BATCH, rows - start), size)
            begun = time.perf_counter()
            writer.append(made)
            appending += time.perf_counter() - begun
        begun = time.perf_counter()
        writer.flush()
        appending += time.perf_counter() - begun
    held = sum(shard.bytes for shard in store.manifest.shards)
    return {"seconds": appending, "bytes": held, "files": len(store.manifest.shards)}


def read(folder: str) -> dict[str, Any]:
    """Every file from beginning to end, into one buffer: what the disk and the system can do."""
    room = bytearray(2**24)
    begun, total = time.perf_counter(), 0
    for path in sorted(Path(folder).glob("rows-*")):
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(room):
                total += count
    return {"seconds": time.perf_counter() - begun, "bytes": total}


def query(folder: str, size: int, queries: int) -> dict[str, Any]:
    """The ten largest of each query; queries are rows of the store, so that the largest is known."""
    ids = torch.arange(queries) * 37
    asked = torch.stack([block(int(i) // BATCH * BATCH, BATCH, size)[int(i) % BATCH] for i in ids])
    begun = time.perf_counter()
    found = stores.GradientStore.open(folder).top_k(asked, 10)
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "queries": queries, "found": found.ids[:, 0].tolist() == ids.tolist()}


def verify(folder: str) -> dict[str, Any]:
    """Every byte against its checksum."""
    begun = time.perf_counter()
    ok = stores.verify(folder).ok
    return {"seconds": time.perf_counter() - begun, "ok": ok}


def forget(folder: str) -> None:
    """Let the system drop its copies of the files."""
    os.sync()
    for path in Path(folder).glob("rows-*"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def main() -> None:
    """Build, then ask cold and warm, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--queries", type=int, default=16)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    folder = str(given.folder)
    steps: dict[str, dict[str, Any]] = {}
    try:
        steps["build"] = apart(build, folder, given.rows, given.size)
        for state in ("cold", "warm"):
            for name, work, args in (
                ("read", read, ()),
                (f"top_k of {given.queries}", query, (given.size, given.queries)),
                ("top_k of 1", query, (given.size, 1)),
            ):
                if state == "cold":
                    forget(folder)
                steps[f"{name}, {state}"] = apart(work, folder, *args)
        steps["verify, warm"] = apart(verify, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for step in steps.values():
        step["rows_a_second"] = round(given.rows / step["seconds"])
        step["bytes_a_second"] = round(steps["build"]["bytes"] / step["seconds"])
    facts = {"rows": given.rows, "size": given.size, "dtype": "float16"}
    report = {"environment": environment(torch.device("cpu")), **facts, "steps": steps}
    given.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
