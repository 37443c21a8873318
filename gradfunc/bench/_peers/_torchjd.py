"""TorchJD's engine for Gram matrices."""

from __future__ import annotations

from torch import nn

from .._contender import Call, Contender, Library, Limit
from .._workload import Case
from ._copy import Copy, has, has_time_first

TORCHJD = Library(("torchjd",), ("torchjd",), "pip install 'torchjd>=0.18', or gradfunc[bench]")
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
SOURCE = "docstring of torchjd.autogram.Engine"


LIMITS = (
    Limit(has(nn.RNNBase), "no recurrent layers where batch_dim is given", SOURCE),
    Limit(has(*NORMS), "no BatchNorm where batch_dim is given", SOURCE),
    Limit(has_time_first, "inputs and outputs of every module have samples first: batch_first=True", SOURCE),
)


def _gram(case: Case, quantity: str) -> Call:
    from torchjd.autogram import Engine

    copy = Copy.of(case)
    copy.has_samples_first()
    engine = Engine(copy.module, batch_dim=0)

    def call() -> object:
        gram = engine.compute_gramian(copy.losses(copy.module))
        return gram if quantity == "gram" else gram.diagonal().clamp(min=0).sqrt()

    return call


CONTENDERS = (
    Contender(
        "torchjd",
        _gram,
        ("norms", "gram"),
        peer=True,
        settings="autogram.Engine(module, batch_dim=0).compute_gramian(losses); norms from its diagonal",
        library=TORCHJD,
        limits=LIMITS,
    ),
)
