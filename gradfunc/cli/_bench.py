"""`gradfunc bench`."""

from __future__ import annotations

import json as _json
import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..bench import Workload, of_model, run
from ._shared import Size, load_problem, running, show

Names = Annotated[list[str], Parameter(consume_multiple=True, negative_iterable=())]


def bench(
    *,
    model: str | None = None,
    workloads: Names | None = None,
    contenders: Names | None = None,
    quantities: Names | None = None,
    rounds: Size = 10,
    warmups: Size = 2,
    threads: Size | None = None,
    device: str | None = None,
    memory: bool = True,
    json: bool = False,
    out: Path | None = None,
) -> int:
    """Measure what clipping each sample costs, as a ratio to one plain backward pass, and whether it is right.

    Exit code 1: a contender failed or was wrong; its row says which.

    Args:
        model: package.module:factory, a function returning (model, criterion, batch), measured as the workload "model";
            a fourth entry, the loop that `audit` takes, is not used. Files beside you are found.
        workloads: of mlp, gpt, gpt-tied, cnn, resnet, vit and lstm; default: all of them, or none beside --model.
        contenders: of plain, forward, floor (the bare operations that clipping by factors cannot do without),
            gradfunc, gradfunc-vmap and vmap(grad); gradfunc's own may name an engine, as in gradfunc:vmap. Default:
            all of them. The plain backward pass is always measured.
        quantities: of clip-and-sum, norms and gram; default: clip-and-sum.
        rounds: timed calls of each, interleaved.
        warmups: calls before these; the first is reported on its own.
        threads: of torch; default: its own choice.
        device: where to run, such as cuda:0. Default: where the model is; the CPU for what is built in.
        memory: measure the peak of extra memory, in one more call.
        json: print JSON instead of tables.
        out: write the JSON to this file too.
    """
    # torch's profiler announces itself on stderr otherwise; it reads this when it is first used
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with running() as note:
        chosen: list[str | Workload] | None = None if workloads is None else [*workloads]
        if model is not None:
            chosen = [*(chosen or ()), of_model(*load_problem("bench", model))]
        report = run(
            chosen,
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
