"""Every sample per unit of its weight."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..._per_sample import PerSampleGrads
from ..._tree import Tensors
from .._chain import RowStage
from .._guarantee import SAMPLES, Guarantee
from .._protocol import State
from .._stage import How, check_rows


@dataclass(frozen=True)
class NormalizeWeights(RowStage):
    """Numerators over weights. Made by `gf.normalize_weights`."""

    name = "normalize_weights"

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """A bound per unit of weight is one on the norm now; one on the norm says nothing, as weights may be small."""
        bound = before.bound if before.per_unit_weight else None
        return dataclasses.replace(before, bound=bound, per_unit_weight=False)

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[PerSampleGrads, State]:
        """The rows per unit of weight."""
        return check_rows(self, grads)._per_unit(), state

    def __repr__(self) -> str:
        return "normalize_weights()"


def normalize_weights() -> NormalizeWeights:
    """Turn `(n_i, w_i)` into `(n_i / w_i, 1)`: every sample counts the same; a stage from rows to rows.

    A mean behind it is the mean over samples rather than over their weights: over sequences rather than tokens.

    Formal guarantee: a bound per unit of weight from before (`gf.clip_per_sample(C, per_unit_weight=True)`) is a bound
    on the norm now. Row i depends on sample i only if it did before.

    | weight         | gradient and loss | weight |
    |----------------|-------------------|--------|
    | 1              | stay              | 1      |
    | w > 0          | over w            | 1      |
    | 0              | 0                 | 0      |

    Example:
        >>> import torch, gradfunc as gf
        >>> p = {"w": torch.ones(1)}
        >>> f = gf.per_sample_grads(lambda p, x, n: gf.Weighted((p["w"] * x).sum() * n, n))
        >>> g = f(p, torch.tensor([[3.0], [1.0]]), torch.tensor([1.0, 3.0]))
        >>> g.mean()["w"], gf.normalize_weights().update(g, ())[0].mean()["w"]
        (tensor([1.5000]), tensor([2.]))
    """
    return NormalizeWeights()
