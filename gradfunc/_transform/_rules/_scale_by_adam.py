"""Adam's direction: the running mean of gradients over the root of that of their squares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam as torch_adam

from ..._errors import message
from ..._swap import levels
from ..._tree import Tensors, zeros
from .._chain import BatchStage
from .._numbers import NOT_NEGATIVE, SHARE, check_flag, check_number, count_of
from .._protocol import Grads, State
from .._stage import How, check_grads, picked
from ._slots import dense, put, typed

# Where torch has Adam in one pass over memory.
FUSED_DEVICES = ("cpu", "cuda")
FUSED_DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True, repr=False)
class ScaleByAdam(BatchStage):
    """Made by `gf.scale_by_adam`, which has the meanings."""

    betas: tuple[float, float]
    eps: float
    amsgrad: bool
    name = "scale_by_adam"

    def init(self, params: Tensors, /) -> State:
        """Zeros."""
        state: dict[str, Any] = {"count": 0, "exp_avg": zeros(params), "exp_avg_sq": zeros(params)}
        return {**state, "max_exp_avg_sq": zeros(params)} if self.amsgrad else state

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Grads, State]:
        """The direction."""
        return self.scaled(grads, state, how, 1.0)

    def scaled(
        self, grads: Any, state: State, how: How, factor: float, start: list[Tensor] | None = None
    ) -> tuple[Grads, State]:
        """The direction times a factor, which costs nothing more; with `start`, its own to overwrite, added to that."""
        values, count = check_grads(self, grads), count_of(state) + 1
        keys = [key for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if key in state]
        kept = [picked(self, state[key], values) for key in keys]
        given = typed(values.values(), kept[0])
        if quick([*given, *(moment for one in kept for moment in one)]):
            moved = [dense(how.own_state(one)) for one in kept]
            out = self._fused(dense(given), moved, count, factor, start)
        else:
            out, moved = self._plain(given, kept, count, factor)
        out = typed(out, values.values())
        state = {**state, **{key: put(state[key], values, one) for key, one in zip(keys, moved, strict=True)}}
        return Grads(dict(zip(values, out, strict=True))), {**state, "count": count}

    def _fused(
        self,
        given: list[Tensor],
        moved: list[list[Tensor]],
        count: int,
        factor: float,
        start: list[Tensor] | None,
    ) -> list[Tensor]:
        """torch's own kernel, on parameters that are 0, or `start`; it moves the moments in place."""
        out = [torch.zeros_like(g) for g in given] if start is None else start
        torch_adam(
            out,
            given,
            moved[0],
            moved[1],
            moved[2] if self.amsgrad else [],
            # float32 is what the kernel reads, whatever the default is; filled there, for which no device waits
            [torch.full((), float(count - 1), dtype=torch.float32, device=g.device) for g in given],
            fused=True,
            amsgrad=self.amsgrad,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=-factor,
            weight_decay=0.0,
            eps=self.eps,
            maximize=False,
        )
        return out

    def _plain(
        self, given: list[Tensor], kept: list[list[Tensor]], count: int, factor: float
    ) -> tuple[list[Tensor], list[list[Tensor]]]:
        """The same of plain operations, through which autograd and torch.func go."""
        squares = [g * g for g in given]
        first, second = (averages(old, new, b) for old, new, b in zip(kept, (given, squares), self.betas, strict=False))
        moved = [first, second]
        if self.amsgrad:
            moved.append([torch.maximum(old, new) for old, new in zip(kept[2], second, strict=True)])
        return direction(first, moved[-1], self.betas, self.eps, count, factor), moved

    def __repr__(self) -> str:
        return f"scale_by_adam(betas={self.betas!r}, eps={self.eps!r}{', amsgrad=True' if self.amsgrad else ''})"


def scale_by_adam(
    betas: tuple[float, float] = (0.9, 0.999), *, eps: float = 1e-8, amsgrad: bool = False
) -> ScaleByAdam:
    """Adam's direction `m / (sqrt(v) + eps)`: a stage from gradients to directions.

    m and v are running means of the gradients and of their squares, each over 1 - beta^t for the zeros it started from
    (Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization", algorithm 1); with `amsgrad`, v is the largest so
    far before that division (Reddi et al. 2018, as torch has it). The count t is one for all parameters. Moments of
    half types are kept in float32; the output has the gradient's dtype.

    Where torch has a fused kernel (float32 and float64 on CPU and CUDA) the stage is one pass over memory; elsewhere,
    and where gradients carry a graph, it is plain operations.

    | gradient so far       | direction                                        |
    |-----------------------|--------------------------------------------------|
    | 0, eps > 0            | 0                                                |
    | 0, eps = 0            | NaN                                              |
    | constant              | its sign, up to eps                              |
    | NaN or inf            | NaN from then on: `gf.skip_nonfinite` before it  |
    | times a factor, eps 0 | the same                                         |

    Args:
        betas: how much of each running mean stays, in [0, 1).
        eps: added to the root, >= 0.
        amsgrad: divide by the largest v so far.

    Raises:
        TypeError, ValueError: an argument of another type or range.

    Example:
        >>> import torch, gradfunc as gf
        >>> stage, g = gf.scale_by_adam(), {"w": torch.tensor([0.001, -1000.0])}
        >>> stage.update(g, stage.init(g))[0]
        {'w': tensor([ 1.0000, -1.0000])}
    """
    check_adam("gf.scale_by_adam(betas, eps=...)", betas, eps)
    check_flag("gf.scale_by_adam(amsgrad=...)", "amsgrad", amsgrad)
    return ScaleByAdam((float(betas[0]), float(betas[1])), float(eps), amsgrad)


def check_betas(call: str, betas: object) -> None:
    """Raise unless these are two numbers in [0, 1)."""
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise TypeError(message(call, got=f"betas={betas!r}", expected="two numbers in [0, 1)"))
    for k, beta in enumerate(betas):
        check_number(call, f"betas[{k}]", beta, SHARE, schedule=False)


def check_adam(call: str, betas: object, eps: object) -> None:
    """Raise unless these are Adam's."""
    check_betas(call, betas)
    check_number(call, "eps", eps, NOT_NEGATIVE, schedule=False)


def quick(values: Sequence[Tensor]) -> bool:
    """Whether torch's fused kernel takes these."""
    return not levels() and all(
        v.device.type in FUSED_DEVICES and v.dtype in FUSED_DTYPES and v.layout == torch.strided and not v.requires_grad
        for v in values
    )


def averages(old: list[Tensor], new: list[Tensor], beta: float) -> list[Tensor]:
    """Running means moved on."""
    return [beta * a + (1 - beta) * b for a, b in zip(old, new, strict=True)]


def direction(
    first: list[Tensor], second: list[Tensor], betas: tuple[float, float], eps: float, count: int, factor: float
) -> list[Tensor]:
    """Adam's, times a factor, at update `count` from 1."""
    scale, root = factor / (1 - betas[0] ** count), math.sqrt(1 - betas[1] ** count)
    return [scale * m / (v.sqrt() / root + eps) for m, v in zip(first, second, strict=True)]
