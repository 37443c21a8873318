"""Influence of 64 samples on 16 of a GPT: gradfunc and other libraries, what they cost and whether they are right.

OMP_NUM_THREADS=1 python -m gradfunc.bench.attribution --out benchmarks/attribution-cpu.json

Each runs in a process of its own. Its ratio is to plain forward and backward passes of the same samples, in seconds of
the processor, which others on the machine disturb least; the first call is beside the others, since gradfunc certifies
itself there. Its scores are compared with the definition: torch's own gradients in float64, one by one, of the
parameters that it takes into account, on the scale of the two norms. What fails is recorded with its error.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._apart import apart
from ._attribution import CONTENDERS
from ._contender import version_of
from ._environment import environment
from ._workload import Case
from ._workloads import gpt
from .influence_of_many import PLAIN, plain

LIBRARIES = ("dattri", "kronfluence", "traker")
# Seconds of the processor: what has taken longer than the one is asked once more at most, than the other is given up.
PATIENCE, LIMIT = 60.0, 900


def made(count: int) -> Case:
    """The GPT workload with so many samples."""
    return gpt(batch_size=count).case()


def truth(folder: str, n: int, m: int) -> dict[str, Any]:
    """Inner products by definition, `[parameters, n, m]`, and norms `[n, parameters]`, `[m, parameters]`."""
    case = made(n + m).cast(torch.float64)
    params = {name: value.clone().requires_grad_() for name, value in case.model.params.items()}

    def row(i: int) -> tuple[Tensor, ...]:
        loss = case.losses(params, *(t[i : i + 1] for t in case.batch)).numerator.sum()
        return torch.autograd.grad(loss, list(params.values()))

    test = [row(n + j) for j in range(m)]
    products, left = torch.empty(len(params), n, m).double(), torch.empty(n, len(params)).double()
    for i in range(n):
        for k, value in enumerate(row(i)):
            products[k, i] = torch.stack([(value * own[k]).sum() for own in test])
            left[i, k] = value.norm()
    right = torch.stack([torch.stack([value.norm() for value in own]) for own in test])
    torch.save((products, left, right), f"{folder}/truth")
    return {"names": list(params)}


def asked(folder: str, name: str, n: int, m: int, rounds: int) -> dict[str, Any]:
    """Scores of one contender, in turn with plain passes; and how far they are from the definition."""
    case = made(n + m)
    way = CONTENDERS[name]
    call, covered = way.make(case, n)
    seconds: list[float] = []
    beside: list[float] = []

    def passes() -> None:
        for at in range(0, n + m, PLAIN):
            plain(case, slice(at, at + PLAIN))

    passes()
    while len(seconds) < 2 or (len(seconds) <= rounds and sum(seconds) < PATIENCE):
        spent, scores = _timed(call)
        seconds.append(spent)
        beside.append(_timed(passes)[0])
    used = torch.tensor([key in covered for key in case.model.params])
    products, left, right = torch.load(f"{folder}/truth")
    want, scores = products[used].sum(0), scores.double()
    scale = left[:, used].norm(dim=1)[:, None] * right[:, used].norm(dim=1)
    later = seconds[1:]
    found = {
        "about": way.about,
        "promised": way.promised,
        "parameters": sum(case.model.params[key].numel() for key in covered),
        "first_seconds": seconds[0],
        "seconds": statistics.median(later),
        "calls": len(later),
        "plain_seconds": statistics.median(beside),
        "ratio_to_plain": statistics.median(later) / statistics.median(beside),
        "correlation": float(torch.corrcoef(torch.stack([scores.flatten(), want.flatten()]))[0, 1]),
    }
    if way.promised != "TRAK":  # its scores are no inner products
        found["largest_error"] = float(((scores - want) / scale).abs().max())
    return found


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.process_time()
    found = work()
    return time.process_time() - begun, found


def main() -> None:
    """One process after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=64)
    parser.add_argument("--test", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        apart(truth, folder, given.train, given.test)
        for name in given.contenders:
            sys.stderr.write(f"{name}\n")
            try:
                found[name] = apart(asked, folder, name, given.train, given.test, given.rounds, seconds=LIMIT)
            except (RuntimeError, EOFError) as error:
                found[name] = {"refused": str(error) or "the process ended"}
    report = {
        "environment": environment(torch.device("cpu")),
        "libraries": {name: version_of(name) for name in LIBRARIES},
        "workload": gpt(batch_size=given.train + given.test).about,
        "train": given.train,
        "test": given.test,
        "contenders": found,
    }
    given.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
