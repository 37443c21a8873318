"""The moving average of the gradients so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..._tree import Tensors, zeros
from .._chain import BatchStage
from .._foreach import add_, multiply_
from .._numbers import SHARE, Number, at, check_flag, check_number, counted, fixed, shown
from .._protocol import Grads, State
from .._stage import How, check_grads, gathered, picked


@dataclass(frozen=True, repr=False)
class Ema(BatchStage):
    """Made by `gf.ema`, which has the meanings."""

    decay: Number
    debias: bool
    name = "ema"

    def init(self, params: Tensors, /) -> State:
        """The average, the count of updates, and with `debias` the sum of the weights in the average."""
        return {"ema": zeros(params), "count": 0, **({"weight": 0.0} if self.debias else {})}

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Grads, State]:
        """Old times decay plus new times the rest."""
        call = f"{self!r}.update(grads, state)"
        decay = at(call, "decay", self.decay, SHARE, state)
        values = check_grads(self, grads)
        means = how.own_state(picked(self, state["ema"], values))
        means = add_(multiply_(means, decay), list(values.values()), 1 - decay)
        after = {**counted(state), "ema": {**state["ema"], **dict(zip(values, means, strict=True))}}
        out = [_copy(mean, value, how) for mean, value in zip(means, values.values(), strict=True)]
        if self.debias:
            after["weight"] = decay * state["weight"] + (1 - decay)
            for value in out:
                value.div_(after["weight"])
        return gathered(values, out), after

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


def _copy(mean: Tensor, value: Tensor, how: How) -> Tensor:
    """Of the average, in the gradient's dtype, where the gradient may be overwritten in its place."""
    if how.owned and not value.requires_grad:
        return value.copy_(mean)
    return mean.to(value.dtype, copy=True)
