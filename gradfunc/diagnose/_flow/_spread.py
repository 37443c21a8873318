"""How the gradients of single samples differ."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ..._per_sample import per_sample_grads
from ..._problem import Problem
from ..._tree import Tensors
from ...audit._losses import Losses


@dataclass(frozen=True)
class Spread:
    """Of the gradients of samples at one layer, per unit of weight, `u_i = g_i / w_i`, with shares `p_i = w_i / sum w`.

    A sample's loss is what the criterion gives under `reduction="none"`, summed over its elements, with weight 1; or
    what a criterion that carries weights says.

    Attributes:
        trace: `sum p_i |u_i|^2 - |mean|^2`, the summed variance of one sample's gradient.
        signal_to_noise: `|mean| / sqrt(trace)`; inf where samples agree.
    """

    trace: float
    signal_to_noise: float


@dataclass(frozen=True)
class Rows:
    """Mean squared norms and mean gradients by parameter."""

    squares: dict[str, float]
    means: dict[str, float]

    def of(self, names: Iterable[str]) -> Spread:
        """Of some parameters together."""
        every = list(names)
        square, mean = sum(self.squares[name] for name in every), sum(self.means[name] for name in every)
        trace = max(square - mean, 0.0)
        return Spread(trace, math.sqrt(mean / trace) if trace else math.inf if mean else math.nan)


def rows(problem: Problem, seed: int) -> Rows:
    """Gradients of every sample, as norms only; the engine is chosen by `gf.per_sample_grads`."""
    losses = Losses(problem)
    f = per_sample_grads(losses.rows, batched=True, seed=seed).at(0)
    g = f(problem.model.params, *losses.tensors)
    weights = g.weights.double()
    used = weights > 0
    shares = weights / weights.sum()
    mean: Tensors = g.mean()
    squares, means = {}, {}
    for name, norms in g.norms(per_parameter=True).items():
        unit = torch.where(used, norms.double() / torch.where(used, weights, 1.0), 0.0)
        squares[name] = float((shares * unit.square()).sum())
        means[name] = float(mean[name].double().square().sum())
    return Rows(squares, means)
