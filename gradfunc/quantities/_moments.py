"""Mean and spread of the gradients of samples: partial results, which merge."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._errors import kind_of, message
from .._per_sample import PerSampleGrads
from .._tree import Tensors
from ._entries import Part, merged, spreads
from ._read import check_samples, check_value, per_unit, square_of


@dataclass(frozen=True, eq=False)
class Moments:
    """What samples tell of the mean and the variance of their gradients; float64. Made by `gf.quantities.moments`.

    Attributes:
        count: samples of weight above 0.
        weight: `sum w_i`, `[]`.
        squared_weight: `sum w_i^2`, `[]`.
        mean: `m = sum w_i u_i / sum w_i` of rows `u_i = g_i / w_i`, `{name: tensor}`.
        spread: `sum w_i (u_i - m)^2`, `{name: tensor}`: of each entry, or `[]` of each parameter.
    """

    count: int
    weight: Tensor
    squared_weight: Tensor
    mean: Tensors = field(repr=False)
    spread: Tensors = field(repr=False)

    @property
    def entries(self) -> bool:
        """Whether it tells of single entries."""
        return all(value.shape == self.mean[name].shape for name, value in self.spread.items())

    @property
    def concentration(self) -> Tensor:
        """`q = sum w_i^2 / (sum w_i)^2`, `[]`: 1/n for equal weights; the mean's variance is q times a row's."""
        return self.squared_weight / self.weight.square()

    def merge(self, other: Moments) -> Moments:
        """Those of the samples of both, as if they had been one batch: exact but for rounding, in any order.

        Means and spreads by the pairwise update of Chan, Golub, LeVeque 1983, "Algorithms for computing the sample
        variance" (The American Statistician 37), with weights for counts. Cost: a few passes over P entries.

        Raises:
            TypeError: `other` is something else.
            ValueError: it is of other parameters, or one tells of entries and the other of parameters.

        Example:
            >>> import torch, gradfunc as gf
            >>> f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())
            >>> p, x = {"w": torch.zeros(1)}, torch.tensor([[1.0], [3.0], [8.0]])
            >>> a, b = gf.quantities.moments(f(p, x[:1])), gf.quantities.moments(f(p, x[1:]))
            >>> gf.quantities.variance(a.merge(b))["w"]
            tensor([13.], dtype=torch.float64)
        """
        call = "Moments.merge(other)"
        if not isinstance(other, Moments):
            raise TypeError(message(call, got=kind_of(other), expected="gf.quantities.Moments"))
        theirs, ours = ({k: (m.mean[k].shape, v.shape) for k, v in m.spread.items()} for m in (other, self))
        if theirs != ours:
            do = "Ask moments(g) of the same parameters, with the same `entries`."
            raise ValueError(message(call, got=f"moments of {list(theirs)}", expected=f"of {list(ours)}", do=do))
        parts = {
            name: merged(
                Part(self.weight.to(value.device), self.mean[name], value),
                Part(*(t.to(value.device) for t in (other.weight, other.mean[name], other.spread[name]))),
            )
            for name, value in self.spread.items()
        }
        return Moments(
            self.count + other.count,
            self.weight + other.weight.to(self.weight.device),
            self.squared_weight + other.squared_weight.to(self.weight.device),
            {name: part.mean for name, part in parts.items()},
            {name: part.spread for name, part in parts.items()},
        )


def moments(g: PerSampleGrads, *, entries: bool = True) -> Moments:
    """Mean and spread of a batch's gradients, to be merged with those of others and asked for a variance.

    Rows are `u_i = g_i / w_i` of weight `w_i`; samples of weight 0 are absent.

    Cost: with `entries`, for a parameter whose rows are one product each (a layer used once a sample) two products, of
    the size of a weight gradient, in float64; of an embedding the rows that are in use; other rows are formed once,
    about 2^20 entries at a time. P entries twice are held. Without, norms of the rows and one sum; nothing is formed.
    Differences of sums of squares, which both ways without rows are, are off by about n unit roundoffs of float64 times
    the sum of squares.

    Args:
        g: per-sample gradients.
        entries: whether the spread is of every entry, or of each parameter as a whole.

    Raises:
        TypeError: `g` is something else.
        ValueError: no sample of weight above 0.

    Example:
        >>> import torch, gradfunc as gf
        >>> f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())
        >>> found = gf.quantities.moments(f({"w": torch.zeros(2)}, torch.tensor([[1.0, 0.0], [3.0, 0.0]])))
        >>> found.count, found.mean["w"], found.spread["w"]
        (2, tensor([2., 0.], dtype=torch.float64), tensor([2., 0.], dtype=torch.float64))
    """
    call = "gf.quantities.moments(g)"
    check_samples(call, check_value(call, g), 1)
    weights = g.weights.double()
    if entries:
        found = spreads(g)
        mean = {name: part.mean for name, part in found.items()}
        spread = {name: part.spread for name, part in found.items()}
    else:
        with torch.no_grad():
            mean = {name: v.double() / weights.sum().to(v.device) for name, v in g.sum(wide=True).items()}
            raw = squares_by_norms(g)
        spread = {
            name: (raw[name] - weights.sum().to(v.device) * square_of({name: v})).clamp(min=0)
            for name, v in mean.items()
        }
    return Moments(int((weights > 0).sum()), weights.sum(), weights.square().sum(), mean, spread)


def squares_by_norms(g: PerSampleGrads) -> Tensors:
    """`sum w_i |u_i|^2` of each parameter, `[]` in float64."""
    c = g.weights.double() * per_unit(g).square()
    with torch.no_grad():
        norms = g.norms(per_parameter=True)
    return {name: torch.where(c == 0, 0.0, v.double().square().to(c) * c).sum() for name, v in norms.items()}
