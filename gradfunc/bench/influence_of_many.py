"""Influence of 10,000 training samples on 100 test samples of a GPT, exact and projected, in bounded memory.

OMP_NUM_THREADS=1 python -m gradfunc.bench.influence_of_many --out benchmarks/influence-cpu.json

What it costs for n training and m test samples, P parameters, T positions, by blocks of b training samples:

    n x P at once   never: 148 GB here. What is held is the factors of b + m samples, and n x m or n x k numbers.
    pass            forward and backward pass without weight gradients, n times.
    exact           rows of b + m samples formed from their factors for each block, some entries of one parameter at a
                    time: 2 T P (1 + m / b) n flops, the weight gradients of (1 + m / b) n samples; and 2 P m n flops
                    for the inner products. (By positions, without rows: 2 T^2 (inputs + outputs) a pair and layer, 70
                    times as much here. `gram` takes the cheaper.)
    projected       2 T (k_i inputs + k_o outputs) flops a sample and layer; the matrices are drawn once a block.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from .. import projections, quantities
from .._per_sample import per_sample_grads
from ._apart import apart
from ._environment import environment
from ._workload import Case
from ._workloads import gpt

SIZES = (32, 32)
# Samples of a plain pass; one is timed beside each block.
PLAIN = 16
T = TypeVar("T")


def plain(case: Case, ids: slice) -> None:
    """One forward and backward pass of these samples."""
    params = {name: value.clone().requires_grad_() for name, value in case.model.params.items()}
    losses = case.losses(params, *(t[ids] for t in case.batch))
    torch.autograd.grad(losses.numerator.sum(), list(params.values()))


def influence(n: int, m: int, block: int) -> dict[str, Any]:
    """Both ways from the same passes: seconds of the processor for each part, and how far apart they are.

    Seconds of the processor, of one thread, are what others on the machine disturb least.
    """
    case, projection = gpt(batch_size=n + m).case(), projections.two_sided(SIZES)
    f, params = per_sample_grads(case.losses, batched=True), case.model.params
    spent: dict[str, float] = defaultdict(float)

    def timed(part: str, work: Callable[..., T], *args: Any, **options: Any) -> T:
        begun = time.process_time()
        found = work(*args, **options)
        spent[part] += time.process_time() - begun
        return found

    begun = time.perf_counter()
    test = timed("test", f, params, *(t[n:] for t in case.batch))
    psi = timed("test, projected", test.project, projection)
    exact, norms, phi = torch.empty(n, m), torch.empty(n), torch.empty(n, projection.size)
    plain(case, slice(PLAIN))
    for start in range(0, n, block):
        at = slice(start, min(start + block, n))
        g = timed("pass", f, params, *(t[at] for t in case.batch))
        exact[at] = timed("exact", quantities.grad_dot, g, test)
        phi[at] = timed("projected", g.project, projection)
        norms[at] = g.norms()
        timed("plain", plain, case, slice(start, start + PLAIN))
        sys.stderr.write(f"{at.stop} of {n}, {time.perf_counter() - begun:.0f} s\n")
    products = timed("products of features", torch.mm, phi, psi.T)
    damping = 0.1 * float(phi.square().sum()) / projection.size
    kernel = timed("kernel of features", quantities.trak, phi, psi, damping=damping)
    whole = spent.pop("plain") * n / (PLAIN * len(range(0, n, block)))
    both = spent["pass"] + spent["test"]
    projected = both + spent["projected"] + spent["test, projected"] + spent["products of features"]
    return {
        "wall_seconds": time.perf_counter() - begun,
        "cpu_seconds": {"plain passes": whole, **spent},
        "ratio_to_plain": {"exact": (both + spent["exact"]) / whole, "projected": projected / whole},
        "numbers_of_a_projected_sample": projection.size,
        "kernel_is_finite": bool(kernel.isfinite().all()),
        "projected_against_exact": agreement(products, exact, norms[:, None] * test.norms()),
    }


def agreement(got: torch.Tensor, want: torch.Tensor, scale: torch.Tensor, k: int = 10) -> dict[str, Any]:
    """Inner products of features against exact ones, on the scale of two norms, and what the projection promises."""
    off, both = (got - want) / scale, torch.stack([got.flatten(), want.flatten()]).double()
    most = [values.topk(min(k, len(values)), 0).indices.T.tolist() for values in (got, want)]
    kept = [len(set(a) & set(b)) / len(b) for a, b in zip(*most, strict=True)]
    return {
        "root_mean_square_error": float(off.square().mean().sqrt()),
        "stated_root_of_variance_at_most": projections.two_sided(SIZES).variance ** 0.5,
        "largest_error": float(off.abs().max()),
        "root_mean_square_cosine": float((want / scale).square().mean().sqrt()),
        "correlation": float(torch.corrcoef(both)[0, 1]),
        f"of_the_{k}_largest_of_a_test_sample": sum(kept) / len(kept),
    }


def main() -> None:
    """In a process of its own, whose memory is read off."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=10_000)
    parser.add_argument("--test", type=int, default=100)
    parser.add_argument("--block", type=int, default=100)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    parameters = sum(value.numel() for value in gpt(batch_size=1).case().model.params.values())
    where = environment(torch.device("cpu"))
    report = {
        "environment": where,
        "workload": gpt(batch_size=given.train + given.test).about,
        "parameters": parameters,
        "train": given.train,
        "test": given.test,
        "block": given.block,
        "bytes_of_all_rows": given.train * parameters * 4,
        **apart(influence, given.train, given.test, given.block),
    }
    given.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
