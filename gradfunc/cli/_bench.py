"""`gradfunc bench`."""

from __future__ import annotations

import json as _json
import os
from pathlib import Path

from .._errors import message
from .._report import Report
from ..bench import of_model, run
from ..bench import zoo as bench_zoo
from ..bench._zoo_table import asked_too
from ._shared import Names, Page, Size, load_problem, running, show


def bench(
    *,
    model: str | None = None,
    zoo: bool = False,
    workloads: Names | None = None,
    contenders: Names | None = None,
    peers: bool = False,
    quantities: Names | None = None,
    rounds: Size = 10,
    warmups: Size = 2,
    threads: Size | None = None,
    device: str | None = None,
    memory: bool = True,
    json: bool = False,
    out: Path | None = None,
    report: Page | None = None,
) -> int:
    """Measure what clipping each sample costs, as a ratio to one plain backward pass, and whether it is right.

    Exit code 1: one of gradfunc's own contenders failed or was wrong; its row says which. Peers may.

    Args:
        model: package.module:factory, a function returning (model, criterion, batch), measured as the workload "model",
            and its first samples asked of every contender and installed peer in float64: exact, wrong or refused; a
            fourth entry, the loop that `audit` takes, is not used. Files beside you are found.
        zoo: instead of timing, ask this of small models with a hazard each, one by one.
        workloads: of mlp, gpt, gpt-tied, cnn, resnet, vit and lstm; default: all of them, or none beside --model.
        contenders: of plain, scan (plain, recurrent layers run as gradfunc runs them), forward, floor (the bare
            operations that clipping by factors cannot do without), products (those of rows, beside materialise),
            gradfunc, gradfunc-vmap and vmap(grad), or a peer by name: expanded-weights, opacus, opacus-ghost, backpack,
            backpack-l2, torchjd, jax; gradfunc's own may name an engine, as in gradfunc:vmap. Default: all but peers;
            with --zoo, peers too. The plain backward pass is always measured.
        peers: measure every installed peer too.
        quantities: of clip-and-sum, norms, gram and materialise, step (of Adam: in-place-adam, chain and
            chain-donated), flow (gradient-flow) and nonfinite (find-nonfinite, of a healthy batch); default:
            clip-and-sum.
        rounds: timed calls of each, interleaved.
        warmups: calls before these; the first is reported on its own.
        threads: of torch; default: its own choice.
        device: where to run, such as cuda:0. Default: where the model is; the CPU for what is built in.
        memory: measure the peak of extra memory, in one more call.
        json: print JSON instead of tables.
        out: write the JSON to this file too.
        report: write one HTML page with tables and figures to this file.
    """
    # torch's profiler announces itself on stderr otherwise; it reads this when it is first used
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    if zoo and (model is not None or workloads is not None):
        do = "Leave --zoo to time them, or the others to ask the zoo."
        raise ValueError(message("gradfunc bench --zoo", got="--model or --workloads", expected="neither", do=do))
    found: Report
    with running() as note:
        if zoo:
            found = bench_zoo(contenders, peers=peers, progress=note)
        else:
            own = [] if model is None else [of_model(*load_problem("bench", model))]
            timed = run(
                [*(workloads or ()), *own] if own or workloads is not None else None,
                contenders,
                peers=peers,
                quantities=quantities or ("clip-and-sum",),
                rounds=rounds,
                warmups=warmups,
                threads=threads,
                device=device,
                memory=memory,
                progress=note,
            )
            found = asked_too(timed, own, contenders, peers=peers, progress=note)
    if out is not None:
        out.write_text(_json.dumps(found.to_dict(), indent=1) + "\n")
    return show(found, json, report)
