"""Which samples of a batch weigh most in its loss, and which of them push the loss of some: a block at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .._per_sample import PerSampleGrads, PerSampleGradsFunction, per_sample_grads
from .._problem import Problem
from .._report import Report, Table, jsonable, number
from ..audit._losses import Losses
from ..quantities import (
    EigenFactors,
    KroneckerFactors,
    corrected_kronecker_factors,
    grad_cos,
    grad_dot,
    grand,
    influence_functions,
    kronecker_factors,
)

Method = Literal["grand", "grad-dot", "grad-cos", "influence"]
Curvature = Literal["ekfac", "kronecker", "hessian"]
FACTORS: dict[str, Callable[..., KroneckerFactors | EigenFactors]] = {
    "ekfac": corrected_kronecker_factors,
    "kronecker": kronecker_factors,
}
HESSIAN_DAMPING = 0.01
# Samples whose gradients are computed at a time.
AT_ONCE = 64
MEANS = {
    "grand": "GraNd: the norm of the sample's gradient. Its square is the self-influence: what a step of learning rate "
    "lr on the sample takes from its own loss, over lr. share: of the sum of squares over the batch.",
    "grad-dot": "Inner product of gradients: what a step of learning rate lr on the sample takes from the loss, over "
    "lr, to first order.",
    "grad-cos": "Cosine of gradients: grad-dot without the advantage of samples of large gradient.",
    "influence": "By the inverse of the curvature: what training without the sample adds to the loss, times the total "
    "weight of the batch, to first order, at a minimum.",
}


@dataclass(frozen=True)
class Ranked:
    """Samples in the order of the size of what they do.

    Attributes:
        of: the sample whose loss is asked about; None for each its own.
        ids: positions in the batch.
        values: of the method.
        losses: of these samples.
        own: what the sample asked about does to itself, None where none is.
    """

    of: int | None
    ids: tuple[int, ...]
    values: tuple[float, ...]
    losses: tuple[float, ...]
    own: float | None


@dataclass(frozen=True)
class InfluenceReport(Report):
    """What `gradfunc influence --model` found.

    Attributes:
        method: "grand", "grad-dot", "grad-cos" or "influence".
        batch_size: n.
        damping: of the curvature; None for the methods without one, and for a tenth of each mean eigenvalue.
        curvature: what was inverted, None for the methods without one.
        total: the sum of squared norms, for "grand" only.
        ranked: one for each sample that was asked about, or one of the batch.
    """

    method: str
    batch_size: int
    damping: float | None
    curvature: str | None
    total: float | None
    ranked: tuple[Ranked, ...]

    @property
    def ok(self) -> bool:
        """Nothing is judged."""
        return True

    def parts(self) -> Sequence[Table | str]:
        """A table for each."""
        return [self._table(one) for one in self.ranked]

    def _table(self, one: Ranked) -> Table:
        triples = zip(one.ids, one.values, one.losses, strict=True)
        if one.of is None:
            head = ["id", "GraNd", "self-influence", "share", "loss"]
            rows = [[str(i), number(v), number(v**2), self._share(v), number(loss)] for i, v, loss in triples]
            title = f"Samples of most influence on their own loss ({self.batch_size} in the batch)"
            return Table(title, head, rows, MEANS["grand"])
        head = ["id", self.method, "what learning it does", "its own loss"]
        rows = [[str(i), number(v), _does(v), number(loss)] for i, v, loss in triples]
        damping = "a tenth of each mean eigenvalue" if self.damping is None else f"{self.damping:g}"
        how = f" ({self.curvature}, damping {damping})" if self.curvature is not None else ""
        note = f"{MEANS[self.method]} Of sample {one.of} itself: {number(one.own)}."
        return Table(f"Samples that push the loss of sample {one.of}: {self.method}{how}", head, rows, note)

    def _share(self, norm: float) -> str:
        return f"{norm**2 / self.total:.1%}" if self.total else "-"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        out: dict[str, Any] = jsonable({**dataclasses.asdict(self), "ok": self.ok})
        return out


def own_influence(problem: Problem, *, k: int, seed: int, progress: Callable[[int, int], None]) -> InfluenceReport:
    """The samples of largest gradient."""
    parts, losses = [], []
    for g in _blocks(problem, per_sample_grads(Losses(problem).one, seed=seed), progress):
        parts.append(grand(g))
        losses.append(g.losses)
    norms, each = torch.cat(parts).double(), torch.cat(losses).double()
    best = _largest(norms, k)
    total = float(norms.square().sum())
    ranked = Ranked(None, tuple(best.tolist()), tuple(norms[best].tolist()), tuple(each[best].tolist()), None)
    return InfluenceReport("grand", problem.size, None, None, total, (ranked,))


def influence_on(
    problem: Problem,
    ids: Sequence[int],
    *,
    method: Literal["grad-dot", "grad-cos", "influence"],
    k: int,
    seed: int,
    damping: float | None,
    curvature: Curvature,
    progress: Callable[[int, int], None],
) -> InfluenceReport:
    """The samples that do most to the loss of each of some, these themselves left out."""
    if curvature == "hessian" and damping is None:
        damping = HESSIAN_DAMPING
    if method == "influence":
        values, losses = _by_curvature(problem, ids, seed, damping, curvature, progress)
    else:
        values, losses = _first_order(problem, ids, seed, grad_dot if method == "grad-dot" else grad_cos, progress)
    ranked = []
    for asked, column in zip(ids, values.T, strict=True):
        order = _largest(column.abs(), k + 1)
        best = order[order != asked][:k]
        own = float(column[asked])
        ranked.append(
            Ranked(asked, tuple(best.tolist()), tuple(column[best].tolist()), tuple(losses[best].tolist()), own)
        )
    given: tuple[float | None, str | None] = (damping, curvature) if method == "influence" else (None, None)
    return InfluenceReport(method, problem.size, given[0], given[1], None, tuple(ranked))


def _first_order(
    problem: Problem,
    ids: Sequence[int],
    seed: int,
    score: Callable[[PerSampleGrads, PerSampleGrads], Tensor],
    progress: Callable[[int, int], None],
) -> tuple[Tensor, Tensor]:
    f = per_sample_grads(Losses(problem).one, seed=seed)
    targets = _at(problem, f, torch.tensor(ids))
    values, losses = [], []
    for g in _blocks(problem, f, progress):
        values.append(score(g, targets))
        losses.append(g.losses)
    return torch.cat(values).double(), torch.cat(losses).double()


def _by_curvature(
    problem: Problem,
    ids: Sequence[int],
    seed: int,
    damping: float | None,
    curvature: Curvature,
    progress: Callable[[int, int], None],
) -> tuple[Tensor, Tensor]:
    """One sample asked about at a time: its solve, and one pass over the batch whose rows are not kept."""
    losses = Losses(problem)
    f = per_sample_grads(losses.one, seed=seed, chunk_size=AT_ONCE).at(0)
    params, tensors = problem.model.params, losses.tensors
    held, much = _held(f, params, tensors, curvature, damping)
    columns = []
    for done, asked in enumerate(ids, 1):
        one, own = [tensor[asked : asked + 1] for tensor in tensors], f.at(0, index=[asked])
        columns.append(influence_functions(f, params, tensors, one, damping=much, curvature=held, test_loss=own))
        progress(done, len(ids))
    return torch.cat(columns, 1).double(), f(params, *tensors).losses.double()


def _held(
    f: PerSampleGradsFunction, params: Any, tensors: Any, curvature: Curvature, damping: float | None
) -> tuple[str | KroneckerFactors | EigenFactors, Any]:
    """What `influence_functions` takes as curvature and damping."""
    if curvature == "hessian":
        return curvature, damping
    factors = FACTORS[curvature](f, params, tensors)
    return factors, factors.relative_damping() if damping is None else damping


def _blocks(
    problem: Problem, f: PerSampleGradsFunction, progress: Callable[[int, int], None]
) -> Iterator[PerSampleGrads]:
    for ids in torch.arange(problem.size).split(AT_ONCE):
        yield _at(problem, f, ids)
        progress(int(ids[-1]) + 1, problem.size)


def _at(problem: Problem, f: PerSampleGradsFunction, ids: Tensor) -> PerSampleGrads:
    """Of some samples, whose ids name their draws."""
    tensors = [tensor[ids.to(tensor.device)] for tensor in Losses(problem).tensors]
    return f.at(0, index=ids)(problem.model.params, *tensors)


def _largest(values: Tensor, k: int) -> Tensor:
    return values.argsort(descending=True, stable=True)[:k]


def _does(value: float) -> str:
    return "lowers the loss" if value > 0 else "raises the loss" if value < 0 else "nothing"
