"""Centring and signs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..._tree import Tensors, wide
from .._chain import BatchStage
from .._guarantee import SAMPLES, Guarantee, times
from .._protocol import Grads, State
from .._signs import signs
from .._stage import How, check_grads, gathered


@dataclass(frozen=True, repr=False)
class Centralize(BatchStage):
    """Made by `gf.centralize`."""

    name = "centralize"

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """An orthogonal projection: no two inputs leave farther apart than they came."""
        return times(before, 1.0)

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Grads, State]:
        """Of each output unit its mean less."""
        values = check_grads(self, grads)
        out = how.own(values.values())
        for value in out:
            if value.dim() > 1 and value.numel():
                value.sub_(value.mean(tuple(range(1, value.dim())), keepdim=True, dtype=wide(value.dtype)))
        return gathered(values, out), state

    def __repr__(self) -> str:
        return "centralize()"


def centralize() -> Centralize:
    """Each output unit's gradient minus its mean: a stage on gradients.

    Of a gradient of two or more dimensions, the mean over all but the first is subtracted; others stay (Yong, Huang,
    Hua, Zhang 2020, "Gradient Centralization", equation 1). What one sample can move the sum by before, it can move no
    farther behind.

    Example:
        >>> import torch, gradfunc as gf
        >>> gf.centralize().update({"w": torch.tensor([[1.0, 3.0]]), "b": torch.tensor([1.0, 3.0])}, ())[0]
        {'w': tensor([[-1.,  1.]]), 'b': tensor([1., 3.])}
    """
    return Centralize()


@dataclass(frozen=True, repr=False)
class Sign(BatchStage):
    """Made by `gf.sign`."""

    name = "sign"

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Grads, State]:
        """Entry by entry; torch's own sign of NaN is 0, which would hide it."""
        values = check_grads(self, grads)
        out = how.own(values.values())
        for value in out:
            value.copy_(signs(value))
        return gathered(values, out), state

    def __repr__(self) -> str:
        return "sign()"


def sign() -> Sign:
    """The sign of every entry, -1, 0 or 1: a stage on gradients.

    Bernstein et al. 2018, "signSGD". 0 stays 0, inf becomes 1 and NaN stays NaN.

    Example:
        >>> import torch, gradfunc as gf
        >>> gf.sign().update({"w": torch.tensor([-2.5, 0.0, 1e-30])}, ())[0]
        {'w': tensor([-1.,  0.,  1.])}
    """
    return Sign()
