"""Normalising every sample's gradient."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from ..._errors import one_of
from ..._per_sample import PerSampleGrads
from ..._tree import Tensors
from .._chain import RowStage
from .._guarantee import SAMPLES, Guarantee
from .._numbers import NOT_NEGATIVE, POSITIVE, Number, at, check_flag, check_number, counted, counting, fixed, shown
from .._protocol import State
from .._stage import How, check_rows
from ._by_norm import POLICIES, Seen, by_norm, quotient


@dataclass(frozen=True, repr=False)
class NormalizePerSample(RowStage):
    """Row i times C/(|g_i| + gamma). Made by `gf.normalize_per_sample`, which has the meanings."""

    max_norm: Number = 1.0
    stability: float = 0.01
    per_unit_weight: bool = False
    nonfinite: str = "raise"
    name = "normalize_per_sample"

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """The bound C, whatever held before: rows may grow."""
        bound = None if callable(self.max_norm) or self.nonfinite == "keep" else self.max_norm
        return dataclasses.replace(before, bound=bound, per_unit_weight=bound is not None and self.per_unit_weight)

    def init(self, params: Tensors, /) -> State:
        """The count of updates, for a schedule."""
        return counting(self.max_norm)

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[PerSampleGrads, State]:
        """The rows, each with its factor."""
        g, call = check_rows(self, grads), f"{self!r}.update(g, state)"
        limit, seen = at(call, "max_norm", self.max_norm, POSITIVE, state), None if how.said is None else Seen()
        g = by_norm(
            call,
            g,
            partial(_factor, limit=limit, eps=self.stability),
            nonfinite=self.nonfinite,
            per_unit_weight=self.per_unit_weight,
            seen=seen,
        )
        if seen is not None:
            how.say(self.name, seen.facts)
        return g, counted(state)

    def __repr__(self) -> str:
        changed = [f"{f.name}={v!r}" for f in dataclasses.fields(self)[1:] if (v := getattr(self, f.name)) != f.default]
        return f"{self.name}({', '.join([shown(self.max_norm), *changed])})"


def normalize_per_sample(
    max_norm: Number = 1.0, *, stability: float = 0.01, per_unit_weight: bool = False, nonfinite: str = "raise"
) -> NormalizePerSample:
    """Scale every sample's gradient to about one norm: a stage from rows to rows.

    Row i is multiplied by `C / (|g_i| + gamma)`: AUTO-S of Bu et al. 2023, "Automatic Clipping: Differentially Private
    Deep Learning Made Easier and Stronger", equation 4.1 with R = C; gamma = 0 is their AUTO-V, plain normalisation.
    Long rows come out just below norm C; rows much shorter than gamma are only multiplied by C / gamma, so that noise
    about 0 is not blown up. Losses and weights stay. As with `gf.clip_per_sample` nothing is computed but norms, and
    factors wait for a sum.

    Args:
        max_norm: C > 0: a number, or a schedule: a function from the count of updates to one.
        stability: gamma >= 0.
        per_unit_weight: normalise `g_i / w_i` instead, to C: row i is `w_i C g_i / (|g_i| + gamma w_i)`.
        nonfinite: for a row whose norm is inf or NaN: as in `gf.clip_per_sample`.

    Formal guarantee, up to rounding: every row's norm (with `per_unit_weight`, that over its weight) is at most C
    unless `nonfinite="keep"`; of a schedule no bound is stated. Row i depends on sample i only if it did before.

    | norm n                              | factor                                |
    |-------------------------------------|---------------------------------------|
    | 0                                   | 1, the row stays 0                    |
    | any finite, such as 1e20            | C/(n + gamma), rounded down           |
    | above 0, gamma 0                    | C/n: norm C, unless C/n overflows     |
    | above 0, weight 0, per unit weight  | 0                                     |
    | inf, NaN                            | by `nonfinite`                        |

    Raises:
        TypeError: an option of another type.
        ValueError: `max_norm` (0, inf, negative, NaN) or `stability` out of range, an unknown `nonfinite`; in an update
            or a query, a norm that is not finite.

    Example:
        >>> import torch, gradfunc as gf
        >>> p = {"w": torch.ones(2)}
        >>> g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())(p, torch.tensor([[3.0, 4.0], [0.0, 0.5]]))
        >>> normalize = gf.normalize_per_sample(stability=0.5)
        >>> normalize.update(g, normalize.init(p))[0].norms()
        tensor([0.9091, 0.5000])
    """
    call = "gf.normalize_per_sample(max_norm)"
    check_number(call, "max_norm", max_norm, POSITIVE)
    check_number(call, "stability", stability, NOT_NEGATIVE, schedule=False)
    check_flag(call, "per_unit_weight", per_unit_weight)
    one_of(call, "nonfinite", nonfinite, POLICIES)
    return NormalizePerSample(fixed(max_norm), float(stability), per_unit_weight, nonfinite)


def _factor(norms: Tensor, unit: Tensor, *, limit: float, eps: float) -> Tensor:
    return quotient(norms, limit, unit, eps, least=False)
