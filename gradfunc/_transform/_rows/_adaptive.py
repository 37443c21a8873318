"""Clipping at a quantile of the norms that is learnt as training goes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..._errors import one_of
from ..._per_sample import PerSampleGrads
from ..._tree import Tensors
from .._chain import RowStage
from .._guarantee import SAMPLES, Guarantee
from .._noise import check_seed, gaussian
from .._numbers import FRACTION, NOT_NEGATIVE, POSITIVE, check_flag, check_number, count_of
from .._protocol import State
from .._said import Facts
from .._stage import How, check_rows
from ._by_norm import POLICIES, Seen, left_out, quotient, refused


@dataclass(frozen=True, repr=False)
class AdaptiveClipPerSample(RowStage):
    """Row i times min(1, C/|g_i|), C following a quantile. Made by `gf.adaptive_clip_per_sample`."""

    initial: float = 0.1
    quantile: float = 0.5
    learning_rate: float = 0.2
    count_noise_std: float = 0.0
    batch_size: float | None = None
    unit: bool = False
    seed: int = 0
    nonfinite: str = "raise"
    name = "adaptive_clip_per_sample"

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """1 where rows are brought to the unit; else C is not known beforehand, and rows only shrink."""
        if not self.unit:
            return dataclasses.replace(before, learns=True)
        bound = None if self.nonfinite == "keep" else 1.0
        return dataclasses.replace(before, bound=bound, per_unit_weight=False, learns=True)

    def init(self, params: Tensors, /) -> State:
        """C before the first update, and the count of updates."""
        return {"max_norm": torch.tensor(self.initial, dtype=torch.float64), "count": 0}

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[PerSampleGrads, State]:
        """The rows clipped at C, and C for the next ones."""
        g, call = check_rows(self, grads), f"{self!r}.update(g, state)"
        limit = state["max_norm"]
        norms = g.norms()
        finite, weighs = norms.isfinite(), (g.weights > 0).to(norms.device)
        if self.nonfinite == "raise" and not bool(finite.all()):
            raise ValueError(refused(call, g))
        if self.nonfinite in ("skip", "zero"):
            g = left_out(g, finite, self.nonfinite)
        ones = torch.ones_like(norms, dtype=torch.float64)
        limit = limit.to(norms.device)
        c = quotient(norms, limit, ones, 0.0, least=True)
        if how.said is not None:
            seen = Seen()
            seen.note(norms, ones, c)
            how.say(self.name, partial(_facts, seen, limit))
        out = g._rescaled(c.double() / limit if self.unit else c)
        return out, {"max_norm": self._next(limit, norms, finite & weighs, state), "count": count_of(state) + 1}

    def _next(self, limit: Tensor, norms: Tensor, counts: Tensor, state: State) -> Tensor:
        """As the paper has it (algorithm 1); what is not finite or has weight 0, and an empty batch, move nothing."""
        below = ((norms.double() <= limit) & counts).sum(dtype=torch.float64)
        if self.batch_size is None:
            size = counts.sum()
            share_of = size.clamp_min(1)
        else:
            size = share_of = torch.full_like(below, self.batch_size)
        if self.count_noise_std:
            below = below + self.count_noise_std * gaussian(below, self.name, self.seed, count_of(state))
        share = torch.where(size > 0, below / share_of, self.quantile)
        return (limit * torch.exp(-self.learning_rate * (share - self.quantile))).detach()

    def __repr__(self) -> str:
        changed = [f"{f.name}={v!r}" for f in dataclasses.fields(self) if (v := getattr(self, f.name)) != f.default]
        return f"{self.name}({', '.join(changed)})"


def adaptive_clip_per_sample(
    initial: float = 0.1,
    *,
    quantile: float = 0.5,
    learning_rate: float = 0.2,
    count_noise_std: float = 0.0,
    batch_size: float | None = None,
    unit: bool = False,
    seed: int = 0,
    nonfinite: str = "raise",
) -> AdaptiveClipPerSample:
    """Clip every sample's gradient at a norm that follows a quantile of the norms: a stage from rows to rows.

    Andrew et al. 2021, "Differentially Private Learning with Adaptive Clipping", algorithm 1: rows are clipped at C;
    then `C <- C exp(-eta (b - q))`, where b is the share of samples with a norm up to C, so that C moves towards the
    q-quantile by a factor of at most `exp(eta)` an update. The state is `{"max_norm": C, "count"}`. Norms are asked at
    once: where rows stream, this is a pass of its own.

    Args:
        initial: C > 0 of the first update; the paper begins at 0.1.
        quantile: q in [0, 1].
        learning_rate: eta >= 0.
        count_noise_std: standard deviation of Gaussian noise on the count of samples up to C, for privacy; the paper
            takes a twentieth of the expected batch size.
        batch_size: what the count is divided by: the expected batch size; None for the number of finite rows of
            weight above 0, which depends on the data.
        unit: divide clipped rows by C, so that the bound is 1 whatever C has become. `gf.gaussian_mechanism` then knows
            the sensitivity; the scale that is lost is for the learning rate to have, as with a normalised step.
        seed: of that noise, which is a function of seed and count.
        nonfinite: for a row whose norm is inf or NaN: as in `gf.clip_per_sample`; such a row counts for no share.

    Formal guarantee, up to rounding: every row's norm is at most the C in the state that was given, with `unit` at most
    1, unless `nonfinite="keep"`. Given the state, row i depends on sample i only; the next C depends on all samples,
    and tells of them unless the count is noisy.

    | norm n                | factor                         | counted as up to C |
    |-----------------------|--------------------------------|--------------------|
    | 0                     | 1                              | yes                |
    | up to C               | 1                              | yes                |
    | above C, such as 1e20 | C/n, rounded down              | no                 |
    | inf, NaN              | by `nonfinite`                 | not at all         |
    | any, weight 0         | as above                       | not at all         |
    | no samples            | -                              | C stays, unless `batch_size` says how many |

    Raises:
        TypeError: an option of another type.
        ValueError: an option out of range (C = 0, inf, negative, NaN); in an update, a norm that is not finite.

    Example:
        >>> import torch, gradfunc as gf
        >>> p = {"w": torch.ones(2)}
        >>> g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())(p, torch.tensor([[3.0, 4.0], [0.0, 0.5]]))
        >>> clip = gf.adaptive_clip_per_sample(1.0, quantile=0.9)
        >>> clipped, state = clip.update(g, clip.init(p))
        >>> clipped.norms(), round(float(state["max_norm"]), 4)
        (tensor([1.0000, 0.5000]), 1.0833)
    """
    call = "gf.adaptive_clip_per_sample(initial)"
    check_number(call, "initial", initial, POSITIVE, schedule=False)
    check_number(call, "quantile", quantile, FRACTION, schedule=False)
    check_number(call, "learning_rate", learning_rate, NOT_NEGATIVE, schedule=False)
    check_number(call, "count_noise_std", count_noise_std, NOT_NEGATIVE, schedule=False)
    if batch_size is not None:
        check_number(call, "batch_size", batch_size, POSITIVE, schedule=False)
        batch_size = float(batch_size)
    check_flag(call, "unit", unit)
    check_seed(call, seed)
    one_of(call, "nonfinite", nonfinite, POLICIES)
    numbers = float(initial), float(quantile), float(learning_rate), float(count_noise_std)
    return AdaptiveClipPerSample(*numbers, batch_size, unit, seed, nonfinite)


def _facts(seen: Seen, limit: Tensor) -> Facts:
    return {"max_norm": limit, **seen.facts()}
