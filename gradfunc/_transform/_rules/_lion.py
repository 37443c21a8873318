"""Lion: the sign of an average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..._tree import Tensors, zeros
from .._batch import AddDecayedWeights
from .._chain import BatchStage, chain
from .._foreach import lerp, lerp_
from .._numbers import NOT_NEGATIVE, Number, check_number, fixed
from .._protocol import Grads, State
from .._signs import signs
from .._stage import How, check_grads, picked
from ._descend import Descend
from ._named import Named, spelt
from ._scale_by_adam import check_betas
from ._slots import put, typed


@dataclass(frozen=True, repr=False)
class ScaleByLion(BatchStage):
    """Made by `gf.scale_by_lion`, which has the meanings."""

    betas: tuple[float, float]
    name = "scale_by_lion"

    def init(self, params: Tensors, /) -> State:
        """Zeros."""
        return {"exp_avg": zeros(params)}

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Grads, State]:
        """The direction first, from the average before this gradient."""
        values = check_grads(self, grads)
        if not values:
            return Grads({}), state
        kept = picked(self, state["exp_avg"], values)
        given = typed(values.values(), kept)
        out = [signs(value) for value in lerp(kept, given, 1 - self.betas[0])]
        moved = lerp_(how.own_state(kept), given, 1 - self.betas[1])
        state = {**state, "exp_avg": put(state["exp_avg"], values, moved)}
        return Grads(dict(zip(values, typed(out, values.values()), strict=True))), state

    def __repr__(self) -> str:
        return f"scale_by_lion({self.betas!r})"


def scale_by_lion(betas: tuple[float, float] = (0.9, 0.99)) -> ScaleByLion:
    """Lion's direction: a stage from gradients to signs.

    `sign(b1 m + (1 - b1) g)`, and then `m = b2 m + (1 - b2) g` (Chen et al. 2023, "Symbolic Discovery of Optimization
    Algorithms", algorithm 2). An average of 0 has direction 0, of NaN NaN.

    Args:
        betas: b1 and b2, in [0, 1).

    Raises:
        TypeError, ValueError: something else.

    Example:
        >>> import torch, gradfunc as gf
        >>> stage, g = gf.scale_by_lion(), {"w": torch.tensor([0.5, -4.0, 0.0])}
        >>> stage.update(g, stage.init(g))[0]
        {'w': tensor([ 1., -1.,  0.])}
    """
    check_betas("gf.scale_by_lion(betas)", betas)
    return ScaleByLion((float(betas[0]), float(betas[1])))


def lion(lr: Number = 1e-4, *, betas: tuple[float, float] = (0.9, 0.99), weight_decay: Number = 0.0) -> Named:
    """Lion: a rule, from gradients to updates.

    The chain `gf.scale_by_lion(betas) >> gf.descend(lr)` as one stage, with decoupled decay: the update is
    `-lr (sign + weight_decay p)` (Chen et al. 2023, algorithm 2).

    Args:
        lr: the learning rate >= 0, or a schedule: a function from the count of updates before this one.
        betas: as of `gf.scale_by_lion`.
        weight_decay: >= 0, or a schedule.

    Raises:
        TypeError, ValueError: an argument of another type or range; in an update with decay, no params.

    Example:
        >>> import torch, gradfunc as gf
        >>> step, params = gf.lion(0.1), {"w": torch.zeros(2)}
        >>> step.update({"w": torch.tensor([0.5, -4.0])}, step.init(params), params)[0]
        {'w': tensor([-0.1000,  0.1000])}
    """
    call = "gf.lion(lr)"
    check_number(call, "lr", lr, NOT_NEGATIVE)
    check_number(call, "weight_decay", weight_decay, NOT_NEGATIVE)
    check_betas(call, betas)
    given = {"betas": tuple(betas), "weight_decay": weight_decay}
    parts = chain(
        ScaleByLion((float(betas[0]), float(betas[1]))),
        *([] if weight_decay == 0 else [AddDecayedWeights(fixed(weight_decay))]),
        Descend(fixed(lr)),
    )
    return Named("lion", spelt("lion", lr, given, {"betas": (0.9, 0.99), "weight_decay": 0.0}), parts)
