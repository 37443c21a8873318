"""What `gradfunc flow` shows without a model: blocks of one kind, initialised and normalised in different ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._report import Report, Table, findings, jsonable, number
from .._stateless import Stateless, stateless
from ..audit._demo import digits
from ..init import Scheme, initialize, kaiming_normal, normal, variance_factor, zeros
from ..models import block
from ._flow import FlowReport, gradient_flow

WIDTH, DEPTH = 100, 5


@dataclass(frozen=True)
class Case:
    """One network.

    Attributes:
        name: of the activation, and of what is not as torch has it.
        activation: of every block.
        gain: `sqrt(fan_in Var[W])` of its weights.
        begin: how weights begin; None as torch begins them.
        norm: of `gf.models.block`.
        verdict: what must be found.
    """

    name: str
    activation: Callable[[Tensor], Tensor]
    gain: float
    begin: Scheme | None
    norm: str | None
    verdict: str

    @property
    def factor(self) -> float:
        """Of the gradient's norm a layer, in the limit of wide layers, at the start."""
        return variance_factor(self.activation, self.gain, self.norm).backward


LINEAR = 3**-0.5  # of nn.Linear: uniform weights of variance 1 / (3 fan_in)
CASES = (
    Case("sigmoid", torch.sigmoid, LINEAR, None, None, "vanishing"),
    Case("tanh", torch.tanh, LINEAR, None, None, "healthy"),
    Case("ReLU", torch.relu, LINEAR, None, None, "healthy"),
    Case("ReLU, He", torch.relu, 2**0.5, kaiming_normal(nonlinearity="relu"), None, "healthy"),
    Case("ReLU, batch norm", torch.relu, LINEAR, None, "batch", "healthy"),
    Case("ReLU, N(0, 1)", torch.relu, WIDTH**0.5, normal(), None, "exploding"),
)


@dataclass(frozen=True)
class FlowDemo(Report):
    """The default flow.

    Attributes:
        flows: `{name: report}`, a network each.
    """

    flows: dict[str, FlowReport]

    @property
    def ok(self) -> bool:
        """Whether each network is found to be what it is."""
        return all(self.flows[case.name].verdict == case.verdict for case in CASES)

    def parts(self) -> Sequence[Table | str]:
        """The networks compared, and the first in detail."""
        rows = []
        for case in CASES:
            found = self.flows[case.name]
            trend = found.trend
            factor, total = (trend.factor, trend.total) if trend else (None, None)
            rows.append([case.name, number(case.factor), number(factor), number(total), found.verdict])
        table = Table(
            f"{DEPTH} blocks of {WIDTH} units on scikit-learn's digits, initialised as torch does unless said",
            ["network", "theory", "factor", "first / last", "verdict"],
            rows,
            "theory: of wide layers, at the start. factor: of the gradient's norm, a layer on the way back. first / "
            "last: of that norm. For yours: gradfunc flow --model package.module:factory",
        )
        first = next(iter(self.flows))
        other = [
            f"{case.name} is not {case.verdict}" for case in CASES if self.flows[case.name].verdict != case.verdict
        ]
        told = f"Verdict: {', '.join(other) or 'every network is found to be what it is made to be'}."
        return [table, f"In detail: {first}.", *findings(self.flows[first]), told]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        out: dict[str, Any] = jsonable(
            {"flows": {name: found.to_dict() for name, found in self.flows.items()}, "ok": self.ok}
        )
        return out


def demo(*, batch_size: int = 128, seed: int = 0, progress: Callable[[str], None] | None = None) -> FlowDemo:
    """Run the default."""
    note = progress or (lambda stage: None)
    _, criterion, batch = digits(batch_size)
    flows = {}
    for case in CASES:
        note(case.name)
        flows[case.name] = gradient_flow(network(case, seed), criterion, batch, theory=True, seed=seed)
    return FlowDemo(flows)


def network(case: Case, seed: int) -> Stateless:
    """Five blocks and a head, its own draws."""
    model = stateless(
        block(64, layers=DEPTH, width=WIDTH, activation=case.activation, norm=case.norm, outputs=10, seed=seed)
    )
    if case.begin is None:
        return model
    params = initialize(model.params, {r"h.*weight": case.begin, r"h.*bias": zeros()}, seed=seed)
    return model.bind(params)
