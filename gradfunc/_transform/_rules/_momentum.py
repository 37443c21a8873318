"""Sums of past gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..._errors import message
from ..._tree import Tensors, zeros
from .._chain import BatchStage
from .._foreach import add, add_, lerp, lerp_, multiply_
from .._numbers import FINITE, NOT_NEGATIVE, check_flag, check_number, count_of
from .._protocol import Grads, State
from .._stage import How, check_grads, picked
from ._slots import put, typed


@dataclass(frozen=True, repr=False)
class Momentum(BatchStage):
    """Made by `gf.momentum`, which has the meanings."""

    momentum: float
    dampening: float = 0.0
    nesterov: bool = False
    name = "momentum"

    def init(self, params: Tensors, /) -> State:
        """Zeros, which the first gradient replaces."""
        return {"momentum_buffer": zeros(params), "count": 0}

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Grads, State]:
        """The buffer moved on, and a copy of it."""
        values, count = check_grads(self, grads), count_of(state)
        if not values:
            return Grads({}), {**state, "count": count + 1}
        buffers = how.own_state(picked(self, state["momentum_buffer"], values))
        given = typed(values.values(), buffers)
        buffers = add_(multiply_(buffers, self.momentum), given, 1 - self.dampening if count else 1.0)
        out = add(given, buffers, self.momentum) if self.nesterov else buffers
        out = [o.clone() if o is b else o for o, b in zip(typed(out, values.values()), buffers, strict=True)]
        moved = put(state["momentum_buffer"], values, buffers)
        return Grads(dict(zip(values, out, strict=True))), {**state, "momentum_buffer": moved, "count": count + 1}

    def __repr__(self) -> str:
        given = [repr(self.momentum)]
        given += [f"dampening={self.dampening!r}"] if self.dampening else []
        given += ["nesterov=True"] if self.nesterov else []
        return f"momentum({', '.join(given)})"


def momentum(momentum: float, *, dampening: float = 0.0, nesterov: bool = False) -> Momentum:
    """Heavy ball or Nesterov momentum: a stage from gradients to directions, as in `torch.optim.SGD`.

    With mu = `momentum`, the buffer is b = g at the first update and `b = mu b + (1 - dampening) g` at later ones; the
    direction is b, or with `nesterov` `g + mu b` (Sutskever et al. 2013, "On the importance of initialization and
    momentum in deep learning", in torch's form). The count of updates is one for all parameters.

    Args:
        momentum: mu >= 0.
        dampening: what the gradient loses, from the second update on.
        nesterov: look ahead; it needs mu > 0 and no dampening.

    Raises:
        TypeError, ValueError: an argument of another type or range; `nesterov` with dampening or without momentum.

    Example:
        >>> import torch, gradfunc as gf
        >>> step, g = gf.momentum(0.9), {"w": torch.ones(1)}
        >>> _, state = step.update(g, step.init(g))
        >>> step.update(g, state)[0]
        {'w': tensor([1.9000])}
    """
    call = "gf.momentum(momentum)"
    check_number(call, "momentum", momentum, NOT_NEGATIVE, schedule=False)
    check_number(call, "dampening", dampening, FINITE, schedule=False)
    check_flag(call, "nesterov", nesterov)
    check_nesterov(call, momentum, dampening, nesterov)
    return Momentum(float(momentum), float(dampening), nesterov)


def check_nesterov(call: str, momentum: float, dampening: float, nesterov: bool) -> None:
    """Raise ValueError where there is nothing to look ahead along."""
    if nesterov and (momentum <= 0 or dampening != 0):
        got = f"nesterov=True, momentum={momentum!r}, dampening={dampening!r}"
        raise ValueError(message(call, got=got, expected="momentum > 0 and no dampening with nesterov"))


@dataclass(frozen=True, repr=False)
class Averaged(BatchStage):
    """Momentum as a running average that starts from 0: `b = b + (1 - mu)(g - b)`; ahead of it, `g + mu (b - g)`."""

    momentum: float
    nesterov: bool
    name = "averaged"

    def init(self, params: Tensors, /) -> State:
        """Zeros."""
        return {"momentum_buffer": zeros(params)}

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Grads, State]:
        """The buffer moved on, and a copy of it."""
        values = check_grads(self, grads)
        if not values:
            return Grads({}), state
        buffers = how.own_state(picked(self, state["momentum_buffer"], values))
        given = typed(values.values(), buffers)
        buffers = lerp_(buffers, given, 1 - self.momentum)
        out = lerp(given, buffers, self.momentum) if self.nesterov else buffers
        out = [o.clone() if o is b else o for o, b in zip(typed(out, values.values()), buffers, strict=True)]
        moved = put(state["momentum_buffer"], values, buffers)
        return Grads(dict(zip(values, out, strict=True))), {**state, "momentum_buffer": moved}

    def __repr__(self) -> str:
        return f"averaged({self.momentum!r}, nesterov={self.nesterov!r})"
