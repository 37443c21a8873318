"""What `gradfunc flow` shows without a model: blocks of one kind, initialised and normalised in different ways."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .._report import Report, Table, findings, jsonable, number
from ..audit._demo import digits
from ._flow import FlowReport, gradient_flow

WIDTH, DEPTH = 100, 5


@dataclass(frozen=True)
class Case:
    """One network: its name, the activation, how weights begin, whether it normalises, what theory and we expect.

    Attributes:
        factor: of the gradient's norm a layer, in the limit of wide layers at the start; None where it depends on the
            data.
        verdict: what must be found.
    """

    name: str
    activation: Callable[[], nn.Module]
    begin: Callable[[torch.Tensor], Any] | None
    normalised: bool
    factor: float | None
    verdict: str


def _he(weight: torch.Tensor) -> None:
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


def _unit(weight: torch.Tensor) -> None:
    nn.init.normal_(weight)


# Factors: sqrt(chi), chi = gain^2 E[phi'^2] (Schoenholz et al. 2017); sqrt(pi / (pi - 1)) for batch norms before a ReLU
# (Yang et al. 2019).
CASES = (
    Case("sigmoid", nn.Sigmoid, None, False, 0.141, "vanishing"),
    Case("tanh", nn.Tanh, None, False, 0.577, "healthy"),
    Case("ReLU", nn.ReLU, None, False, 0.408, "healthy"),
    Case("ReLU, He", nn.ReLU, _he, False, 1.0, "healthy"),
    Case("ReLU, batch norm", nn.ReLU, None, True, 1.211, "healthy"),
    Case("ReLU, N(0, 1)", nn.ReLU, _unit, False, 7.071, "exploding"),
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
        return [table, f"In detail: {first}.", *findings(self.flows[first])]

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
        flows[case.name] = gradient_flow(network(case, seed), criterion, batch, seed=seed)
    return FlowDemo(flows)


def network(case: Case, seed: int) -> nn.Sequential:
    """Of named blocks; global draws are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential()
        for name, module in _modules(case):
            net.add_module(name, module)
        return net


def _modules(case: Case) -> Iterator[tuple[str, nn.Module]]:
    sizes = [64, *[WIDTH] * DEPTH]
    for k, (a, b) in enumerate(itertools.pairwise(sizes)):
        linear = nn.Linear(a, b)
        if case.begin is not None:
            case.begin(linear.weight)
            nn.init.zeros_(linear.bias)
        yield f"linear{k}", linear
        if case.normalised:
            yield f"norm{k}", nn.BatchNorm1d(b)
        yield f"act{k}", case.activation()
    yield "head", nn.Linear(WIDTH, 10)
