"""`gradfunc bench`."""

from __future__ import annotations

import json as _json
import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..bench import run
from ._shared import Size, running, show

Names = Annotated[list[str], Parameter(consume_multiple=True, negative_iterable=())]


def bench(
    *,
    workloads: Names | None = None,
    contenders: Names | None = None,
    quantities: Names | None = None,
    rounds: Size = 10,
    warmups: Size = 2,
    threads: Size | None = None,
    device: str = "cpu",
    memory: bool = True,
    json: bool = False,
    out: Path | None = None,
) -> int:
    """Measure what clipping each sample costs, as a ratio to one plain backward pass, and whether it is right.

    Args:
        workloads: of mlp, gpt and gpt-tied; default: all of them.
        contenders: of plain, forward, floor (the bare operations that clipping by factors cannot do without),
            gradfunc, gradfunc-vmap and vmap(grad); gradfunc's own may name an engine, as in gradfunc:vmap. Default:
            all of them. The plain backward pass is always measured.
        quantities: of clip-and-sum, norms and gram; default: clip-and-sum.
        rounds: timed calls of each, interleaved.
        warmups: calls before these; the first is reported on its own.
        threads: of torch; default: its own choice.
        device: where to run, such as cuda:0.
        memory: measure the peak of extra memory, in one more call.
        json: print JSON instead of tables.
        out: write the JSON to this file too.
    """
    # torch's profiler announces itself on stderr otherwise; it reads this when it is first used
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with running() as note:
        report = run(
            workloads,
            contenders,
            quantities=quantities or ("clip-and-sum",),
            rounds=rounds,
            warmups=warmups,
            threads=threads,
            device=device,
            memory=memory,
            progress=note,
        )
    if out is not None:
        out.write_text(_json.dumps(report.to_dict(), indent=1) + "\n")
    return show(report, json)
