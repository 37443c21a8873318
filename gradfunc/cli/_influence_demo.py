"""What `gradfunc influence` shows without a model: labels made wrong on purpose, and who finds them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._per_sample import per_sample_grads
from .._report import Report, Table, jsonable, number
from .._stateless import Stateless, stateless
from .._transform import mean, sgd
from .._tree import Tensors
from ..losses import cross_entropy
from ..models import mlp
from ..quantities import (
    corrected_kronecker_factors,
    el2n,
    grad_cos,
    grad_dot,
    grand,
    influence_functions,
    self_influence,
    self_influence_functions,
)
from ..train import Snapshot, fit

TRAIN, CLEAN, WRONG = 600, 200, 60
EPOCHS, BATCH, LR = 10, 50, 0.5
CLAIM = 0.95
CLAIMED = ("GraNd", "self-influence")
SAYS = {
    "GraNd": "norm of the sample's gradient, after training",
    "self-influence": "sum over epochs of the learning rate times its square",
    "EL2N": "length of the error of the probabilities",
    "loss": "no gradient at all: to compare",
    "self-influence functions": "harm of leaving it out to its own loss, by EKFAC",
    "influence": "harm to clean samples, by EKFAC",
    "grad-cos": "harm to clean samples, cosines",
    "grad-dot": "harm to clean samples, inner products",
}


@dataclass(frozen=True)
class Planted:
    """Digits of which some have a wrong label.

    Attributes:
        train: pixels `[600, 64]` and the labels that are trained on `[600]`.
        clean: 200 other digits, all labels right.
        true: labels of the training samples before some were made wrong, `[600]`.
    """

    train: tuple[Tensor, Tensor]
    clean: tuple[Tensor, Tensor]
    true: Tensor

    @property
    def wrong(self) -> Tensor:
        """Which samples have a wrong label, `[600]`."""
        return self.train[1] != self.true


@dataclass(frozen=True)
class Retrieved:
    """How well a score retrieves the planted samples.

    Attributes:
        method: what scores.
        auc: the area under the ROC curve: how often a planted sample stands before another one.
        first: how many planted samples are among as many that stand first.
    """

    method: str
    auc: float
    first: int


@dataclass(frozen=True)
class Suspect:
    """One training sample: its id, its score, its label, what the model says instead, and what it was."""

    id: int
    score: float
    label: int
    says: int
    probability: float
    true: int

    @property
    def planted(self) -> bool:
        """Whether its label was made wrong."""
        return self.label != self.true


@dataclass(frozen=True)
class InfluenceDemo(Report):
    """The default run.

    Attributes:
        methods: each score.
        suspects: the samples of largest self-influence.
        planted: how many labels were made wrong.
        accuracy: of the model on clean samples.
        seed: of everything drawn.
    """

    methods: tuple[Retrieved, ...]
    suspects: tuple[Suspect, ...]
    planted: int
    accuracy: float
    seed: int

    @property
    def ok(self) -> bool:
        """Whether GraNd or self-influence finds them: an area of at least 0.95."""
        return max(row.auc for row in self.methods if row.method in CLAIMED) >= CLAIM

    def parts(self) -> Sequence[Table | str]:
        """Methods, suspects, verdict."""
        rows = [[m.method, f"{m.auc:.3f}", f"{m.first} of {self.planted}", SAYS[m.method]] for m in self.methods]
        methods = Table(
            f"{self.planted} of {TRAIN} digits have a wrong label: which score finds them",
            ["score", "AUC", "in first", "what it is"],
            rows,
            f"AUC: how often a planted sample stands before another one. in first: of the {self.planted} that stand "
            f"first. The perceptron saw the wrong labels; {self.accuracy:.0%} of {CLEAN} clean digits are right.",
        )
        found = [
            [
                str(s.id),
                number(s.score),
                str(s.label),
                f"{s.says} ({s.probability:.0%})",
                f"yes, it was {s.true}" if s.planted else "no",
            ]
            for s in self.suspects
        ]
        suspects = Table(
            "Samples of largest self-influence",
            ["id", "self-influence", "label", "the model says", "planted"],
            found,
            "For yours: gradfunc influence --model package.module:factory",
        )
        best = max((row for row in self.methods if row.method in CLAIMED), key=lambda row: row.auc)
        told = "found," if self.ok else f"not found (below {CLAIM}):"
        verdict = f"Verdict: the planted samples are {told} by {best.method} with an area of {best.auc:.3f}."
        return [methods, suspects, verdict]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        suspects = [{**dataclasses.asdict(s), "planted": s.planted} for s in self.suspects]
        out: dict[str, Any] = jsonable({**dataclasses.asdict(self), "suspects": suspects, "ok": self.ok})
        return out


def demo(*, seed: int = 0, k: int = 10, progress: Callable[[str], None] | None = None) -> InfluenceDemo:
    """Plant, train, score."""
    from sklearn.metrics import roc_auc_score

    note = progress or (lambda stage: None)
    data = planted(seed)
    model, kept = trained(data, seed, note)
    found = scores(model, kept, data, note)
    wrong = data.wrong
    methods = tuple(
        Retrieved(name, float(roc_auc_score(wrong, found[name])), int(wrong[_first(found[name], WRONG)].sum()))
        for name in SAYS
    )
    chances = model(kept[-1], data.train[0]).softmax(1)
    own = found["self-influence"]
    suspects = tuple(
        Suspect(
            i,
            float(own[i]),
            int(data.train[1][i]),
            int(chances[i].argmax()),
            float(chances[i].max()),
            int(data.true[i]),
        )
        for i in _first(own, k).tolist()
    )
    right = model(kept[-1], data.clean[0]).argmax(1) == data.clean[1]
    return InfluenceDemo(methods, suspects, int(wrong.sum()), float(right.double().mean()), seed)


def planted(seed: int) -> Planted:
    """800 digits in an order of their own; of the first 600, 60 get another label, each of the nine alike."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(x))[: TRAIN + CLEAN]
    pixels, labels = torch.as_tensor(x[order] / 16, dtype=torch.float32), torch.as_tensor(y[order])
    at = torch.as_tensor(rng.permutation(TRAIN)[:WRONG])
    true, given = labels[:TRAIN], labels[:TRAIN].clone()
    given[at] = (given[at] + torch.as_tensor(rng.integers(1, 10, WRONG))) % 10
    return Planted((pixels[:TRAIN], given), (pixels[TRAIN:], labels[TRAIN:]), true)


def trained(data: Planted, seed: int, note: Callable[[str], None]) -> tuple[Stateless, list[Tensors]]:
    """A perceptron, and its parameters after each epoch of plain SGD, which is what TracIn is of."""
    model = stateless(mlp([64, 32, 10], seed=seed))
    kept: list[Tensors] = []

    def keep(snapshot: Snapshot) -> None:
        if snapshot.epoch_ends:
            kept.append(snapshot.next_params)
            note(f"epoch {len(kept)} of {EPOCHS}, loss {snapshot.loss:.3g}")

    chain = mean() >> sgd(LR)
    options: dict[str, Any] = {"epochs": EPOCHS, "batch_size": BATCH, "seed": seed, "progress": False}
    fit(_loss(model), chain, model.params, data.train, callbacks=(keep,), **options)
    return model, kept


def scores(model: Stateless, kept: list[Tensors], data: Planted, note: Callable[[str], None]) -> dict[str, Tensor]:
    """`{method: [600]}`, large for a suspect."""
    loss, params = _loss(model), kept[-1]
    f = per_sample_grads(loss)
    note("gradients of the training samples")
    g, clean = f(params, *data.train), f(params, *data.clean)
    note("self-influence")
    own = self_influence([f(at, *data.train) for at in kept], [LR] * len(kept))
    note("influence functions")
    factors = corrected_kronecker_factors(model.sample, params, data.train[0], likelihood="categorical")
    by: dict[str, Any] = {"damping": factors.relative_damping(), "curvature": factors}
    harm = influence_functions(loss, params, data.train, data.clean, **by)
    return {
        "GraNd": grand(g),
        "self-influence": own,
        "EL2N": el2n(model(params, data.train[0]), data.train[1]),
        "loss": g.losses,
        "self-influence functions": self_influence_functions(loss, params, data.train, **by),
        "influence": -harm.sum(1),
        "grad-cos": -grad_cos(g, clean).sum(1),
        "grad-dot": -grad_dot(g, clean).sum(1),
    }


def _loss(model: Stateless) -> Callable[..., Any]:
    return lambda params, x, y: cross_entropy(model.sample(params, x), y)


def _first(values: Tensor, k: int) -> Tensor:
    return values.argsort(descending=True, stable=True)[:k]
