"""`{name: Gradient}`: the rows of every parameter, as sums of factors, and what is asked of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ._dense import Dense
from ._factor import Factor


@dataclass(frozen=True, eq=False)
class Gradient:
    """One parameter's gradient of every sample: the sum of `factors`, exact zeros where there are none.

    Attributes:
        like: what a row looks like: a tensor of the parameter's shape, dtype and device. Its values are not read.
        size: number of samples, B.
        factors: at most one of each kind, kinds that have no terms across them merged.
    """

    like: Tensor
    size: int
    factors: tuple[Factor, ...]


Gradients = dict[str, Gradient]


def from_rows(rows: Mapping[str, Tensor]) -> Gradients:
    """Rows `{name: [B, *shape]}` as they are."""
    return {
        name: Gradient(value.new_empty(()).expand(value.shape[1:]), len(value), (Dense(value),))
        for name, value in rows.items()
    }
