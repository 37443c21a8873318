"""What `gradfunc audit` shows without a model: a healthy one, the forum question rerun, every mechanism once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._problem import read
from .._report import Report, Table, jsonable, number
from .._stateless import Stateless, stateless
from .._tree import Tensors, subtract
from ..models import mlp
from ._case import Case, attempt
from ._causes import largest
from ._examples import example
from ._measure import forum_one_at_a_time, measure
from ._mechanisms import BY_NAME, MECHANISMS
from ._options import DTYPES
from ._reductions import reductions
from ._report import ReductionReport

PUBLISHED = (0.0316, 0.0316, 0.0, 0.0, 0.0316, 0.0316)


@dataclass(frozen=True)
class ForumPair:
    """One line of the forum question's table: as published, measured here, predicted by the closed form."""

    pair: str
    published: float
    measured: float
    predicted: float


@dataclass(frozen=True)
class Triggered:
    """A mechanism made to act: the discrepancy of a pair, its closed form, and how well the two agree."""

    mechanism: str
    pair: str
    measured: float | None
    predicted: float | None
    relative_error: float | None
    found: bool | None
    why_not: str | None


@dataclass(frozen=True)
class DemoReport(Report):
    """The default audit.

    Attributes:
        reductions: a healthy perceptron on the digits data.
        forum: the six pairs of the forum question, its loop run as it was posted.
        mechanisms: every mechanism triggered once.
    """

    reductions: ReductionReport
    forum: tuple[ForumPair, ...]
    mechanisms: tuple[Triggered, ...]

    @property
    def ok(self) -> bool:
        """Whether the healthy model is found healthy, and every mechanism found."""
        return self.reductions.ok and all(row.found is not False for row in self.mechanisms)

    def parts(self) -> Sequence[Table | str]:
        """Tables in reading order."""
        forum = [[p.pair, f"{p.published:g}", number(p.measured), number(p.predicted)] for p in self.forum]
        rows = [
            [t.mechanism, t.pair, number(t.measured), number(t.predicted), number(t.relative_error), self._formula(t)]
            for t in self.mechanisms
        ]
        return [
            "A perceptron on scikit-learn's digits: nothing is wrong with it.",
            *self.reductions.parts(),
            Table(
                "The forum question: why does 'none' differ from 'sum' and 'mean'? Its loop, as posted, on this model",
                ["pair", "published", "measured", "max |g_1 - g_0| / n, or 0"],
                forum,
                "Not because of the loss: the gradient of a sum is the sum of the gradients. The loop keeps "
                "param.grad.view(...) without a clone; zeroing in place and the next backward turn sample 0's "
                "gradient into sample 1's. 'none' and 'one by one' share that loop, so they agree with each other.",
            ),
            Table(
                "Every mechanism by which reductions disagree, triggered once",
                ["mechanism", "pair", "measured", "predicted", "error", "closed form"],
                rows,
                "error: |measured - predicted| / |measured|. For yours: gradfunc audit --model package.module:factory",
            ),
        ]

    @staticmethod
    def _formula(row: Triggered) -> str:
        note = {True: "", False: "  NOT FOUND", None: f"  (not run: {row.why_not})"}[row.found]
        return BY_NAME[row.mechanism].formula + note

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        out: dict[str, Any] = jsonable(
            {
                "reductions": self.reductions.to_dict(),
                "forum": [vars(pair) for pair in self.forum],
                "mechanisms": [vars(row) for row in self.mechanisms],
                "ok": self.ok,
            }
        )
        return out


def digits(batch_size: int = 64) -> tuple[Stateless, nn.Module, tuple[Tensor, Tensor]]:
    """The embedded problem: scikit-learn's digits (pixels scaled to [0, 1]), a small perceptron, cross entropy."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    batch = (torch.as_tensor(x[:batch_size] / 16, dtype=torch.float32), torch.as_tensor(y[:batch_size]))
    return stateless(mlp([64, 32, 10])), nn.CrossEntropyLoss(), batch


def demo(
    *,
    dtype: str = "float32",
    device: str | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> DemoReport:
    """Run the default audit."""
    note = progress or (lambda stage: None)
    problem = digits(batch_size)
    report = reductions(*problem, dtype=dtype, device=device, seed=seed, progress=note)
    note("the forum question")
    forum = forum_pairs(Case.of(read("gradfunc audit", *problem).cast(DTYPES[dtype], device), seed))
    triggered = []
    for mechanism in MECHANISMS:
        note(f"mechanism {mechanism.name}")
        triggered.append(_trigger(mechanism.name, dtype, device, seed))
    return DemoReport(report, forum, tuple(triggered))


def forum_pairs(case: Case) -> tuple[ForumPair, ...]:
    """The six pairs of the question: both of its loops alias, so they agree with each other and with nothing else."""
    measured = measure(case.problem, None, case.seed, lambda stage: None)
    ways: dict[str, Tensors] = {
        "none": measured.grads("forum loop"),
        "sum": measured.grads("sum / n"),
        "avg": measured.grads("mean"),
        "one by one": forum_one_at_a_time(measured.case),
    }
    assert measured.per_sample is not None
    first = measured.per_sample.first
    aliased = largest(subtract(first[1], first[0])) / case.size if len(first) > 1 else 0.0
    names = ["none - sum", "none - avg", "none - one by one", "sum - avg", "sum - one by one", "avg - one by one"]
    camps = {"none": 0, "one by one": 0, "sum": 1, "avg": 1}
    rows = []
    for name, published in zip(names, PUBLISHED, strict=True):
        a, b = name.split(" - ")
        predicted = aliased if camps[a] != camps[b] else 0.0
        rows.append(ForumPair(name, published, largest(subtract(ways[a], ways[b])), predicted))
    return tuple(rows)


def _trigger(name: str, dtype: str, device: str | None, seed: int) -> Triggered:
    made = example(name, seed=seed)
    options: dict[str, Any] = {"yours": made.yours, "dtype": dtype, "device": device, "seed": seed}
    report, why_not = attempt(lambda: reductions(made.model, made.criterion, made.batch, **options))
    if report is None:  # no kernel for it in this precision
        return Triggered(name, " - ".join(made.pair), None, None, None, None, why_not)
    pair = report.pair(*made.pair)
    cause = next((cause for cause in pair.causes if name in cause.mechanisms), None)
    return Triggered(
        name,
        f"{pair.a} - {pair.b}",
        pair.discrepancy,
        cause.predicted if cause else None,
        cause.relative_error if cause else None,
        cause is not None,
        None,
    )
