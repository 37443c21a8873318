"""Reductions entry by entry: each entry of the result is made of that entry of all rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..._per_sample import PerSampleGrads
from ..._swap import levels
from ..._tree import Tensors, wide
from .._numbers import Number, Range, at, check_number, counted, counting, fixed, shown
from .._protocol import State
from .._said import Facts
from ._per_unit import OverRows, check_options, size_of

HALF = Range("a number in [0, 0.5)", lambda x: 0 <= x < 0.5)
BLOCK = 2**20  # entries that are sorted at once
Columns = Callable[[Tensor], Tensor]  # from entries of n rows, [n, m] in the accumulation dtype, to [m]


@dataclass(frozen=True, repr=False, kw_only=True)
class OfEntries(OverRows):
    """Rows are formed one parameter at a time, or as many small ones as have no more entries than the largest."""

    def reduced(self, call: str, g: PerSampleGrads, state: State) -> tuple[Tensors, Callable[[], Facts]]:
        """Parameter by parameter."""
        columns = self.columns(g.batch_size, state)
        out: Tensors = {}
        for names in _together(g):
            rows = g._focused(names).materialize()
            for name in names:
                out[name] = _over(rows.pop(name), columns)
        return out, dict

    def columns(self, samples: int, state: State) -> Columns:
        """What is done to the entries of this many rows."""
        raise NotImplementedError


@dataclass(frozen=True, repr=False, kw_only=True)
class Median(OfEntries):
    """Made by `gf.median`, which has the meanings."""

    name = "median"

    def columns(self, samples: int, state: State) -> Columns:
        """The middle one or two."""
        return partial(_middle, cut=(samples - 1) // 2)

    def __repr__(self) -> str:
        return f"median({', '.join(self.options())})"


@dataclass(frozen=True, repr=False, kw_only=True)
class TrimmedMean(OfEntries):
    """Made by `gf.trimmed_mean`, which has the meanings."""

    trim: Number
    name = "trimmed_mean"

    def init(self, params: Tensors, /) -> State:
        """The count of updates, for a schedule."""
        return counting(self.trim)

    def columns(self, samples: int, state: State) -> Columns:
        """All but the outermost."""
        trim = at(repr(self), "trim", self.trim, HALF, state)
        # of the decimal that was written: 0.29 of 100 rows are 29, though 0.29 * 100 < 29 in binary
        return partial(_inner_mean, cut=math.floor(Fraction(repr(trim)) * samples))

    def following(self, state: State) -> State:
        """One more update."""
        return counted(state)

    def __repr__(self) -> str:
        return f"trimmed_mean({', '.join([shown(self.trim), *self.options()])})"


@dataclass(frozen=True, repr=False, kw_only=True)
class SignVote(OfEntries):
    """Made by `gf.sign_vote`, which has the meanings."""

    name = "sign_vote"

    def columns(self, samples: int, state: State) -> Columns:
        """The sign of the sum of signs, which are few enough to be exact."""
        return _majority

    def __repr__(self) -> str:
        return f"sign_vote({', '.join(self.options())})"


def median(*, nonfinite: str = "raise", on_zero_weight: str = "raise") -> Median:
    """The median of the rows, entry by entry: a stage from per-sample gradients to gradients.

    Of an even number of rows it is the mean of the two middle ones, as in numpy (`torch.median` takes the lower one).
    Rows are `g_i / w_i` of the samples with `w_i > 0`, one vote each. With fewer than half of the rows arbitrary, every
    entry stays within the range of that entry of the others.

    Rows are formed one parameter at a time: n times the entries of the largest parameter, and one pass over the batch a
    parameter where rows are computed again at each query. It looks at weights and norms on the host. The middle entries
    are exact; the mean of two is rounded once in float32 or wider, and once more to a half type.

    Args:
        nonfinite: for a row that is inf or NaN somewhere: "raise", or "skip", which leaves the sample out.
        on_zero_weight: where no sample is left: "raise", or "zero" for exact zeros.

    Raises:
        ValueError: another option; in an update: a row that is not finite; no sample with weight > 0.

    Example:
        >>> import torch, gradfunc as gf
        >>> p = {"w": torch.ones(2)}
        >>> x = torch.tensor([[3.0, 4.0], [0.0, 0.5], [1e9, 1.0]])
        >>> g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())(p, x)
        >>> gf.median().update(g, ())[0]["w"]
        tensor([3., 1.])
    """
    check_options("gf.median(...)", nonfinite, on_zero_weight)
    return Median(nonfinite=nonfinite, on_zero_weight=on_zero_weight)


def trimmed_mean(trim: Number = 0.1, *, nonfinite: str = "raise", on_zero_weight: str = "raise") -> TrimmedMean:
    """The mean of the rows without the least and the greatest, entry by entry: from per-sample gradients to gradients.

    Of n entries the `floor(trim * n)` least and as many greatest are left out (Yin et al. 2018, "Byzantine-robust
    distributed learning", definition 2). `trim=0` is the mean of `g_i / w_i`, which is `gf.mean()` of equal weights.
    Rows are those of samples with `w_i > 0`, one vote each. With no more than that many rows arbitrary, every entry
    stays within the range of that entry of the others.

    Rows are formed one parameter at a time: n times the entries of the largest parameter, and one pass over the batch a
    parameter where rows are computed again at each query. It looks at weights and norms on the host. Sums are taken in
    float32 or wider.

    Args:
        trim: a share in [0, 0.5), or a schedule: a function from the count of updates before this one.
        nonfinite: for a row that is inf or NaN somewhere: "raise", or "skip", which leaves the sample out.
        on_zero_weight: where no sample is left: "raise", or "zero" for exact zeros.

    Raises:
        TypeError, ValueError: another option; in an update: a row that is not finite; no sample with weight > 0.

    Example:
        >>> import torch, gradfunc as gf
        >>> p = {"w": torch.ones(1)}
        >>> g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())(p, torch.tensor([1e9, 2.0, 3.0, -1e9]))
        >>> gf.trimmed_mean(0.25).update(g, ())[0]["w"]
        tensor([2.5000])
    """
    call = "gf.trimmed_mean(trim)"
    check_number(call, "trim", trim, HALF, do="gf.median() is the limit of one half.")
    check_options(call, nonfinite, on_zero_weight)
    return TrimmedMean(trim=fixed(trim), nonfinite=nonfinite, on_zero_weight=on_zero_weight)


def sign_vote(*, nonfinite: str = "raise", on_zero_weight: str = "raise") -> SignVote:
    """The sign that more of the rows have, entry by entry: a stage from per-sample gradients to gradients of -1, 0, 1.

    The majority vote of signSGD (Bernstein et al. 2018, algorithm 3). A 0 has no vote; a tie is 0. Rows are those of
    samples with weight > 0, one vote each, however large their weight. The result is exact.

    Rows are formed one parameter at a time: n times the entries of the largest parameter, and one pass over the batch a
    parameter where rows are computed again at each query. It looks at weights and norms on the host.

    Args:
        nonfinite: for a row that is inf or NaN somewhere: "raise", or "skip", which leaves the sample out.
        on_zero_weight: where no sample is left: "raise", or "zero" for exact zeros.

    Raises:
        ValueError: another option; in an update: a row that is not finite; no sample with weight > 0.

    Example:
        >>> import torch, gradfunc as gf
        >>> p = {"w": torch.ones(2)}
        >>> x = torch.tensor([[3.0, 4.0], [0.0, -0.5], [-1e9, 1.0]])
        >>> g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())(p, x)
        >>> gf.sign_vote().update(g, ())[0]["w"]
        tensor([0., 1.])
    """
    check_options("gf.sign_vote(...)", nonfinite, on_zero_weight)
    return SignVote(nonfinite=nonfinite, on_zero_weight=on_zero_weight)


def _together(g: PerSampleGrads) -> Iterator[tuple[str, ...]]:
    """Parameters in order, as many at a time as have no more entries than the largest."""
    most = max(map(size_of, g._shapes.values()), default=0)
    names: tuple[str, ...] = ()
    for name in g.names:
        if names and sum(size_of(g._shapes[other]) for other in (*names, name)) > most:
            yield names
            names = ()
        names = (*names, name)
    if names:
        yield names


def _over(rows: Tensor, columns: Columns) -> Tensor:
    """`[n, *shape]` to `[*shape]`, a block of entries at a time."""
    n, shape, dtype = len(rows), rows.shape[1:], rows.dtype
    flat = rows.reshape(n, math.prod(shape))
    parts = [columns(block.to(wide(dtype))) for block in flat.split(max(BLOCK // n, 1), 1)]
    return torch.cat(parts).to(dtype).reshape(shape)


def _middle(entries: Tensor, cut: int) -> Tensor:
    inner = _ascending(entries)[cut : len(entries) - cut]
    # halves first: a sum of two may overflow
    return inner[0] if len(inner) == 1 else inner[0] / 2 + inner[1] / 2


def _inner_mean(entries: Tensor, cut: int) -> Tensor:
    inner = _ascending(entries)[cut : len(entries) - cut]
    return inner.sum(0) / len(inner)


def _ascending(entries: Tensor) -> Tensor:
    """`[n, m]` sorted along n. On a CPU numpy's is many times as fast as torch's; it knows of no derivative."""
    columns = entries.T.contiguous()
    if columns.device.type == "cpu" and not columns.requires_grad and not levels():
        return torch.from_numpy(np.sort(columns.numpy(), axis=1)).T
    return columns.sort(1).values.T


def _majority(entries: Tensor) -> Tensor:
    return entries.sign().sum(0).sign()
