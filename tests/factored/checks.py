"""Asking the engine under test, and holding its answers against plain autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from oracle import TOLERANCE, Truth, check_queries, close, flat, truth, truth_batched

import gradfunc as gf
from gradfunc._rounding import unit_roundoff

from .cases import CASES, Draw, Problem
from .conftest import ENGINE, FACTORED

F64 = torch.float64


def function(name: str, problem: Problem, mode: str, **options: Any) -> gf.PerSampleGradsFunction:
    """`gf.per_sample_grads` of the case's loss; the loop stands in for a vmap that cannot."""
    engine = "loop" if ENGINE == "vmap" and not CASES[name].vmap else ENGINE
    options = {"engine": engine, "batched": mode == "native", **options}
    return gf.per_sample_grads(problem.loss(mode), **options)


def expected(problem: Problem, mode: str, params: dict[str, torch.Tensor], args: tuple[Any, ...], size: int) -> Truth:
    """One autograd call a row."""
    if mode == "native":
        return truth_batched(problem.batched, params, args)
    return truth(problem.sample, params, size, args)


def tolerance(name: str) -> float:
    """Scaled by the lowest dtype inside."""
    return TOLERANCE * unit_roundoff(CASES[name].lowest) / unit_roundoff(F64)


def check(name: str, g: gf.PerSampleGrads, want: Truth) -> None:
    """Every query, on the scales of the oracle, and that no other engine answered."""
    if FACTORED:
        assert g.engine == "factored", g.explain()
    check_queries(g, want, tolerance(name))
    check_project(g, want, tolerance(name))


class Gaussian:
    """A dense projection by drawn matrices, in blocks of parameters."""

    size = 5

    def __init__(self, rows: dict[str, torch.Tensor]) -> None:
        draw = Draw(7)
        self.matrices = {name: draw(value[0].numel() if len(value) else 0, self.size) for name, value in rows.items()}

    def apply(self, name: str, factor: Any) -> torch.Tensor:
        """`[B, size]`."""
        return factor.dense().double().reshape(factor.size, -1) @ self.matrices[name]


def check_project(g: gf.PerSampleGrads, want: Truth, tolerance: float) -> None:
    """The projection protocol, where the value has it."""
    if not hasattr(g, "project") or not g.batch_size:
        return
    projection = Gaussian(want.rows)
    whole, matrix = flat(want.rows), torch.cat(list(projection.matrices.values()))
    scale = whole.norm(dim=1)[:, None] * matrix.norm(dim=0)
    close(g.project(projection), whole @ matrix, scale, "project", tolerance)


def answered(query: Callable[[], Any], *words: str) -> Any:
    """The answer, or None where it is refused in these words; any other error passes."""
    try:
        return query()
    except RuntimeError as error:
        if not all(word in str(error) for word in words):
            raise
        return None
