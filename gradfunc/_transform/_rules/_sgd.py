"""Gradient descent, with or without momentum."""

from __future__ import annotations

from .._batch import AddDecayedWeights
from .._chain import chain
from .._numbers import FINITE, NOT_NEGATIVE, Number, check_flag, check_number, fixed
from .._same import Scale
from ._descend import Descend
from ._momentum import Momentum, check_nesterov
from ._named import Named, spelt


def sgd(
    lr: Number = 1e-3,
    *,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: Number = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> Named:
    """Gradient descent, as `torch.optim.SGD`: a rule, from gradients to updates.

    The chain `gf.momentum(momentum, ...) >> gf.descend(lr)` as one stage, without the first where `momentum` is 0; the
    gradient comes with the other sign where `maximize`, then plus `weight_decay` times the parameters.

    Args:
        lr: the learning rate >= 0, or a schedule: a function from the count of updates before this one.
        momentum: as of `gf.momentum`.
        dampening: likewise.
        weight_decay: >= 0, or a schedule.
        nesterov: as of `gf.momentum`.
        maximize: go up instead of down.

    Raises:
        TypeError, ValueError: an argument of another type or range; in an update with decay, no params.

    Example:
        >>> import torch, gradfunc as gf
        >>> step = gf.mean() >> gf.sgd(0.1, momentum=0.9)
        >>> step.stages[1].parts
        (momentum(0.9), descend(0.1))
        >>> step.init({"w": torch.zeros(2)})
        {'mean': (), 'sgd': {'momentum': {'momentum_buffer': {'w': tensor([0., 0.])}, 'count': 0}, 'descend': ()}}
    """
    call = "gf.sgd(lr)"
    check_number(call, "lr", lr, NOT_NEGATIVE)
    check_number(call, "momentum", momentum, NOT_NEGATIVE, schedule=False)
    check_number(call, "dampening", dampening, FINITE, schedule=False)
    check_number(call, "weight_decay", weight_decay, NOT_NEGATIVE)
    check_flag(call, "nesterov", nesterov)
    check_flag(call, "maximize", maximize)
    check_nesterov(call, momentum, dampening, nesterov)
    given = {"momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
    flags = {"nesterov": nesterov, "maximize": maximize}
    parts = chain(
        *([Scale(-1.0)] if maximize else []),
        *([] if weight_decay == 0 else [AddDecayedWeights(fixed(weight_decay))]),
        *([Momentum(float(momentum), float(dampening), nesterov)] if momentum else []),
        Descend(fixed(lr)),
    )
    spelling = spelt("sgd", lr, {**given, **flags}, {**dict.fromkeys(given, 0.0), **dict.fromkeys(flags, False)})
    return Named("sgd", spelling, parts)
