"""Moving averages, weight decay, centring, signs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..._tree import Tensors, wide
from .._chain import BatchStage
from .._guarantee import SAMPLES, Guarantee, times
from .._numbers import FINITE, SHARE, Number, at, check_flag, check_number, counted, counting, fixed, shown
from .._protocol import Grads, State
from .._stage import How, check_grads, check_params
from ._norms import check_names


@dataclass(frozen=True, repr=False)
class Ema(BatchStage):
    """Made by `gf.ema`, which has the meanings."""

    decay: Number
    debias: bool = False
    name = "ema"

    def init(self, params: Tensors, /) -> State:
        """The average, the count of updates, and with `debias` the sum of the weights in the average."""
        zeros = {k: torch.zeros_like(v, dtype=wide(v.dtype)).detach() for k, v in params.items()}
        return {"ema": zeros, "count": 0, **({"weight": 0.0} if self.debias else {})}

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Grads, State]:
        """Old times decay plus new times the rest."""
        call = f"{self!r}.update(grads, state)"
        decay = at(call, "decay", self.decay, SHARE, state)
        values = check_grads(self, grads)
        check_names(call, values, state["ema"])
        means = how.own_state([state["ema"][name] for name in values])
        if means:
            torch._foreach_mul_(means, decay)
        for mean, value in zip(means, values.values(), strict=True):
            mean.add_(value, alpha=1 - decay)
        after = {**counted(state), "ema": {**state["ema"], **dict(zip(values, means, strict=True))}}
        out = [_copy(mean, value, how) for mean, value in zip(means, values.values(), strict=True)]
        if self.debias:
            after["weight"] = decay * state["weight"] + (1 - decay)
            for value in out:
                value.div_(after["weight"])
        return Grads(dict(zip(values, out, strict=True))), after

    def __repr__(self) -> str:
        return f"ema({shown(self.decay)}{', debias=True' if self.debias else ''})"


def ema(decay: Number, debias: bool = False) -> Ema:
    """The exponential moving average of the gradients so far: a stage on gradients.

    `m_t = decay m_{t-1} + (1 - decay) g_t`, from `m_0 = 0`. With `debias` the output is m_t over the sum of the weights
    in it, `1 - decay^t` for a fixed decay, so that a constant gradient comes out as it is (Kingma, Ba 2015, "Adam",
    section 3). The average is in the state, in float32 for half types. An entry that is inf or NaN stays in it: put
    `gf.skip_nonfinite` before. What one sample moves, it moves in all later steps, so no bound is stated.

    Args:
        decay: in [0, 1), or a schedule: a function from the count of updates before this one.
        debias: whether to divide by the sum of the weights.

    Raises:
        TypeError, ValueError: something else; in an update, gradients of names that are not in the state.

    Example:
        >>> import torch, gradfunc as gf
        >>> stage = gf.ema(0.9, debias=True)
        >>> g = {"w": torch.tensor([1.0])}
        >>> out, state = stage.update(g, stage.init(g))
        >>> out["w"], state["ema"]["w"]
        (tensor([1.]), tensor([0.1000]))
    """
    check_number("gf.ema(decay)", "decay", decay, SHARE)
    check_flag("gf.ema(decay)", "debias", debias)
    return Ema(fixed(decay), debias)


@dataclass(frozen=True, repr=False)
class AddDecayedWeights(BatchStage):
    """Made by `gf.add_decayed_weights`, which has the meanings."""

    weight_decay: Number
    name = "add_decayed_weights"

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """A translation by what the parameters fix: one sample moves the output as far as the input."""
        return times(before, 1.0)

    def init(self, params: Tensors, /) -> State:
        """The count of updates, for a schedule."""
        return counting(self.weight_decay)

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Grads, State]:
        """Every entry."""
        call = f"{self!r}.update(grads, state, params)"
        decay = at(call, "weight_decay", self.weight_decay, FINITE, state)
        values, weights = check_grads(self, grads), check_params(self, params)
        check_names(call, values, weights)
        out = how.own(values.values())
        if out:
            torch._foreach_add_(out, [weights[name].detach() for name in values], alpha=decay)
        return Grads(dict(zip(values, out, strict=True))), counted(state)

    def __repr__(self) -> str:
        return f"add_decayed_weights({shown(self.weight_decay)})"


def add_decayed_weights(weight_decay: Number) -> AddDecayedWeights:
    """Gradients plus `weight_decay` times the parameters: a stage on gradients, the L2 penalty of torch's `sgd`.

    Of some parameters only: `gf.masked(gf.add_decayed_weights(0.1), r".*weight")`. It needs `params`.

    Args:
        weight_decay: a finite number, or a schedule: a function from the count of updates before this one.

    Raises:
        TypeError, ValueError: something else; in an update, no `params`.

    Example:
        >>> import torch, gradfunc as gf
        >>> stage = gf.add_decayed_weights(0.1)
        >>> stage.update({"w": torch.tensor([1.0])}, (), {"w": torch.tensor([2.0])})[0]
        {'w': tensor([1.2000])}
    """
    check_number("gf.add_decayed_weights(weight_decay)", "weight_decay", weight_decay, FINITE)
    return AddDecayedWeights(fixed(weight_decay))


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
        return Grads(dict(zip(values, out, strict=True))), state

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
            value.copy_(torch.where(value.isnan(), value, value.sign()))
        return Grads(dict(zip(values, out, strict=True))), state

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


def _copy(mean: Tensor, value: Tensor, how: How) -> Tensor:
    """Of the average, in the gradient's dtype, where the gradient may be overwritten in its place."""
    if how.owned and not value.requires_grad:
        return value.copy_(mean)
    return mean.to(value.dtype, copy=True)
