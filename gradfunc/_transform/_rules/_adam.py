"""Adam and AdamW."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..._swap import levels
from ..._tree import Tensors
from .._batch import AddDecayedWeights
from .._chain import chain
from .._foreach import add_
from .._landing import Landing
from .._numbers import NOT_NEGATIVE, Number, check_flag, check_number, counted, fixed
from .._protocol import Grads, State, Updates
from .._stage import How, check_grads, check_params, picked
from ._descend import Descend
from ._named import Named, spelt
from ._scale_by_adam import ScaleByAdam, check_adam, quick
from ._slots import dense


@dataclass(frozen=True, repr=False)
class Adam(Named):
    """The chain of its parts, with the last ones in one pass over memory."""

    moments: ScaleByAdam
    descent: Descend
    decay: AddDecayedWeights | None
    decoupled: bool

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Any, State]:
        """Moments, decay and step size together, where nothing carries a graph."""
        self.chain._check_state(state, "update(grads, state, params)")
        values, states = check_grads(self, grads), dict(state)
        if levels() or any(value.requires_grad for value in values.values()):
            return self.chain.apply(grads, state, params, how)
        decay, rate = self.decay, 0.0
        if decay is not None:
            rate, old = decay.rate(states[decay.name]), states[decay.name]
            if not self.decoupled:
                grads, _ = decay.apply(grads, old, params, how)
            states[decay.name] = counted(old)
        factor = self.descent.factor(states["descend"])
        states["descend"] = counted(states["descend"])
        start = self._start(values, states["scale_by_adam"], params, how) if how.lands else None
        out, states["scale_by_adam"] = self.moments.scaled(grads, states["scale_by_adam"], how, factor, start)
        if decay is not None and self.decoupled and values:
            weights = [weight.detach() for weight in picked(self, check_params(self, params), values)]
            out = Grads(dict(zip(out, add_(list(out.values()), weights, factor * rate), strict=True)))
        return Updates(dict(out) if start is None else Landing.at_once(out)), states

    def _start(self, values: Tensors, state: State, params: Tensors | None, how: How) -> list[Tensor] | None:
        """What to step from in one pass over memory: copies of the parameters, or these where they are donated.

        None where torch's kernel takes them not. Decoupled decay reads the parameters once more, so it needs copies.
        """
        weights = [weight.detach() for weight in picked(self, check_params(self, params), values)]
        moments = picked(self, state["exp_avg"], values)
        alike = all(
            weight.dtype == value.dtype == moment.dtype
            for weight, value, moment in zip(weights, values.values(), moments, strict=True)
        )
        if not alike or not quick([*values.values(), *weights]):
            return None
        if how.donate and not (self.decoupled and self.decay is not None):
            return dense(weights)
        return [weight.clone() for weight in dense(weights)]


def adam(
    lr: Number = 1e-3,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: Number = 0.0,
    amsgrad: bool = False,
) -> Adam:
    """Adam, as `torch.optim.Adam`: a rule, from gradients to updates.

    The chain `gf.scale_by_adam(betas) >> gf.descend(lr)` as one stage in one pass over memory, behind the gradient plus
    `weight_decay` times the parameters where that is not 0 (L2 regularisation; for decoupled decay, `gf.adamw`). Its
    `parts` are the chain's; its state is theirs.

    Args:
        lr: the learning rate >= 0, or a schedule: a function from the count of updates before this one.
        betas: as of `gf.scale_by_adam`.
        eps: likewise.
        weight_decay: >= 0, or a schedule.
        amsgrad: as of `gf.scale_by_adam`.

    Raises:
        TypeError, ValueError: an argument of another type or range; in an update with decay, no params.

    Example:
        >>> import torch, gradfunc as gf
        >>> step = gf.adam(0.1)
        >>> params = {"w": torch.zeros(2)}
        >>> step.update({"w": torch.tensor([3.0, -4.0])}, step.init(params), params)[0]
        {'w': tensor([-0.1000,  0.1000])}
        >>> step.parts
        (scale_by_adam(betas=(0.9, 0.999), eps=1e-08), descend(0.1))
    """
    return _adam("adam", lr, betas, eps, weight_decay, amsgrad, 0.0)


def adamw(
    lr: Number = 1e-3,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: Number = 1e-2,
    amsgrad: bool = False,
) -> Adam:
    """AdamW, as `torch.optim.AdamW`: a rule, from gradients to updates.

    As `gf.adam`, but the decay does not pass through the moments: the update is `-lr (direction + weight_decay p)`
    (Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", with the schedule in lr).

    Args:
        lr: the learning rate >= 0, or a schedule: a function from the count of updates before this one.
        betas: as of `gf.scale_by_adam`.
        eps: likewise.
        weight_decay: >= 0, or a schedule.
        amsgrad: as of `gf.scale_by_adam`.

    Raises:
        TypeError, ValueError: an argument of another type or range; in an update with decay, no params.

    Example:
        >>> import torch, gradfunc as gf
        >>> step = gf.adamw(0.1, weight_decay=0.5)
        >>> params = {"w": torch.ones(2)}
        >>> step.update({"w": torch.tensor([3.0, -4.0])}, step.init(params), params)[0]
        {'w': tensor([-0.1500,  0.0500])}
    """
    return _adam("adamw", lr, betas, eps, weight_decay, amsgrad, 1e-2)


def _adam(
    name: str,
    lr: Number,
    betas: tuple[float, float],
    eps: float,
    weight_decay: Number,
    amsgrad: bool,
    usual: float,
) -> Adam:
    call = f"gf.{name}(lr)"
    check_number(call, "lr", lr, NOT_NEGATIVE)
    check_number(call, "weight_decay", weight_decay, NOT_NEGATIVE)
    check_adam(call, betas, eps)
    check_flag(call, "amsgrad", amsgrad)
    given = {"betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
    defaults = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": usual, "amsgrad": False}
    moments, descent = ScaleByAdam((float(betas[0]), float(betas[1])), float(eps), amsgrad), Descend(fixed(lr))
    decay = None if weight_decay == 0 else AddDecayedWeights(fixed(weight_decay))
    decoupled = name == "adamw"
    order = [moments, decay, descent] if decoupled else [decay, moments, descent]
    parts = chain(*(part for part in order if part is not None))
    return Adam(name, spelt(name, lr, given, defaults), parts, moments, descent, decay, decoupled)
