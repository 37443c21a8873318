"""Clipping every sample's gradient by its norm."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from ..._errors import one_of
from ..._per_sample import PerSampleGrads
from ..._tree import Tensors, by_rules, compiled
from .._chain import RowStage
from .._guarantee import SAMPLES, Guarantee
from .._numbers import NORM, NOT_NEGATIVE, Number, at, check_flag, check_number, counted, counting, fixed, shown
from .._protocol import State
from .._said import Facts
from .._stage import How, check_rows
from ._by_norm import POLICIES, Seen, by_norm, left_out, quotient

Groups = str | Mapping[str, Number] | None


@dataclass(frozen=True, repr=False)
class ClipPerSample(RowStage):
    """Row i times min(1, C/|g_i|). Made by `gf.clip_per_sample`, which has the meanings."""

    max_norm: Number
    groups: tuple[tuple[str, Number], ...] | str | None = None
    per_unit_weight: bool = False
    eps: float = 0.0
    nonfinite: str = "raise"
    name = "clip_per_sample"

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """The smaller of two bounds in one unit; of two units, that on the norm itself, which alone bounds a sum.

        Rows only shrink, so that a bound from before still holds. C = inf gives none, nor does a clip that keeps what
        is not finite.
        """
        bound = self._bound
        if bound is None or self.nonfinite == "keep":
            return before
        if before.bound is not None:
            same = before.per_unit_weight == self.per_unit_weight
            if (before.bound <= bound) if same else self.per_unit_weight:
                return before
        return dataclasses.replace(before, bound=bound, per_unit_weight=self.per_unit_weight)

    def init(self, params: Tensors, /) -> State:
        """The count of updates, for schedules."""
        return counting(*self._limits)

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[PerSampleGrads, State]:
        """The rows, each with its factor, or one a group."""
        g, call = check_rows(self, grads), f"{self!r}.update(g, state)"
        every, policy = g.names, self.nonfinite
        seen: dict[str, Seen] = {}
        groups = self._groups(call, every)
        gone = None
        if len(groups) > 1 and policy in ("skip", "zero"):  # of the whole sample
            gone = ~g.norms().isfinite()
            g, policy = left_out(g, ~gone, policy), "keep"
        for label, (names, number) in groups.items():
            limit = at(call, "max_norm", number, NORM, state)
            if how.said is not None:
                seen[label] = Seen()
            part = g if names == every else g._focused(names)
            part = by_norm(
                call,
                part,
                partial(_factor, limit=limit, eps=self.eps),
                nonfinite=policy,
                per_unit_weight=self.per_unit_weight,
                seen=seen.get(label),
                gone=gone,
            )
            g = part if names == every else part._unfocused(every)
        how.say(self.name, partial(_facts, seen))
        return g, counted(state)

    @property
    def _limits(self) -> list[Number]:
        return [self.max_norm, *(c for _, c in self.groups)] if isinstance(self.groups, tuple) else [self.max_norm]

    @property
    def _bound(self) -> float | None:
        """On the norm of a row; None where it is not known before there are parameters."""
        numbers = [limit for limit in self._limits if not callable(limit)]
        if self.groups == "parameter" or len(numbers) < len(self._limits):
            return None
        bound = math.hypot(*numbers)
        return None if math.isinf(bound) else bound

    def _groups(self, call: str, names: tuple[str, ...]) -> dict[str, tuple[tuple[str, ...], Number]]:
        """`{label: (names, C)}`, none of them empty."""
        if self.groups is None:
            return {"": (names, self.max_norm)}
        if isinstance(self.groups, str):
            return {name: ((name,), self.max_norm) for name in names}
        limits = dict(self.groups)
        found = by_rules(call, "groups", names, limits)
        parts = {key: (tuple(name for name in names if found.get(name) == key), c) for key, c in limits.items()}
        others = tuple(name for name in names if name not in found)
        parts["others" if "others" not in parts else "all others"] = others, self.max_norm
        return {label: part for label, part in parts.items() if part[0]}

    def __repr__(self) -> str:
        changed = []
        for field in dataclasses.fields(self)[1:]:
            if (value := getattr(self, field.name)) != field.default:
                changed.append(f"{field.name}={_spelt(value) if isinstance(value, tuple) else repr(value)}")
        return f"{self.name}({', '.join([shown(self.max_norm), *changed])})"


def clip_per_sample(
    max_norm: Number,
    *,
    groups: Groups = None,
    per_unit_weight: bool = False,
    eps: float = 0.0,
    nonfinite: str = "raise",
) -> ClipPerSample:
    """Scale every sample's gradient whose norm exceeds C down to norm C: a stage from rows to rows.

    Row i is multiplied by `min(1, C / |g_i|)`, over all parameters together (Abadi et al. 2016, "Deep Learning with
    Differential Privacy", algorithm 1), and by 1 where the norm is 0. The quotient is rounded down where it would leave
    a norm above C, so clipping twice is clipping once. Rows up to C stay as they are, bit by bit. Losses and weights
    stay. Nothing is computed but norms: the factors wait for a sum, and where rows stream in chunks the norms wait with
    them, so that `clip >> sum` is one pass ("skip" and "zero" take one of their own for the norms).

    Args:
        max_norm: C > 0; inf clips nothing. A number, or a schedule: a function from the count of updates to one.
        groups: what has a norm of its own: None for all parameters together; "parameter" for each alone, clipped at C;
            `{regex: C}` for the parameters whose names a regex matches (`re.fullmatch`, the first that does) together,
            clipped at its own C, and all others together at `max_norm`. A norm that is not finite is a sample's, all
            groups together.
        per_unit_weight: clip `g_i / w_i` instead, that is g_i at `C w_i`: of a loss over 1000 tokens the gradient per
            token rather than their sum. A sample of weight 0 is left out.
        eps: added to the norm, as torch's `clip_grad_norm_` adds 1e-6; norms between C - eps and C then shrink too.
        nonfinite: for a row whose norm is inf or NaN: "raise"; "skip" (the sample counts as absent: gradient, loss and
            weight 0); "zero" (gradient and loss 0, weight kept); "keep" (the row stays, and nothing is bounded).

    Formal guarantee, up to rounding: every row's norm (with `per_unit_weight`, that over its weight) is at most C
    unless `nonfinite="keep"`; with `{regex: C}` at most the root of the sum of all `C^2`; of "parameter" (how many
    there are is not known when a chain is built) and of a schedule no bound is stated. Row i depends on sample i only
    if it did before.

    | norm n                              | factor                                   |
    |-------------------------------------|------------------------------------------|
    | 0                                   | 1                                        |
    | up to C                             | 1                                        |
    | above C                             | C/n, rounded down                        |
    | n + eps above C, with eps           | C/(n + eps)                              |
    | any finite, C = inf                 | 1                                        |
    | above 0, weight 0, per unit weight  | 0                                        |
    | inf, NaN                            | by `nonfinite`                           |

    Raises:
        TypeError: an option of another type.
        ValueError: `max_norm` not above 0, negative `eps`, an unknown `nonfinite`; in an update or, where rows stream,
            in the query that computes them: a norm that is not finite, naming sample and parameters.

    Example:
        >>> import torch, gradfunc as gf
        >>> p = {"w": torch.ones(2)}
        >>> g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())(p, torch.tensor([[3.0, 4.0], [0.0, 0.5]]))
        >>> clip = gf.clip_per_sample(1.0)
        >>> clipped, _ = clip.update(g, clip.init(p))
        >>> clipped.norms()
        tensor([1.0000, 0.5000])
    """
    call, none = "gf.clip_per_sample(max_norm)", "inf clips nothing."
    check_number(call, "max_norm", max_norm, NORM, do=none)
    check_number(call, "eps", eps, NOT_NEGATIVE, schedule=False)
    if isinstance(groups, Mapping):
        for pattern, limit in groups.items():
            compiled(call, "groups", pattern)
            check_number(call, f"groups[{pattern!r}]", limit, NORM, do=none)
    elif groups is not None:
        one_of(call, "groups", groups, ("parameter",), do="Or None, or a dict {regex: max_norm}.")
    check_flag(call, "per_unit_weight", per_unit_weight)
    one_of(call, "nonfinite", nonfinite, POLICIES)
    given = tuple(groups.items()) if isinstance(groups, Mapping) else groups
    return ClipPerSample(fixed(max_norm), given, per_unit_weight, float(eps), nonfinite)


def _factor(norms: Tensor, unit: Tensor, *, limit: float, eps: float) -> Tensor:
    return quotient(norms, limit, unit, eps, least=True)


def _spelt(groups: tuple[tuple[str, Number], ...]) -> str:
    return "{" + ", ".join(f"{pattern!r}: {shown(limit)}" for pattern, limit in groups) + "}"


def _facts(seen: Mapping[str, Seen]) -> Facts:
    """Of one group as it is; of several the share of samples that each clipped, and the same facts over all."""
    if len(seen) == 1:
        return next(iter(seen.values())).facts()
    each = {label: one.facts() for label, one in seen.items()}
    whole = Seen([piece for one in seen.values() for piece in one.pieces])
    return {**whole.facts(), **{f"clipped[{label}]": facts["clipped"] for label, facts in each.items()}}
