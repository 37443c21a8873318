"""Mechanisms that lie in the forward pass: parts of a batch do not see what the whole sees."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from ..._problem import Problem
from ..._random import CannotReplay, Record, ReplayDraws
from .._case import Case
from ._base import Mechanism

_MOVES = ("re-fed", "yours")


class PartwiseBatchNorm(TorchFunctionMode):
    """Batch statistics of each part of the batch, written out: (x - mean) / sqrt(var + eps) * weight + bias."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace `F.batch_norm` where it would use the statistics of the whole batch."""
        if func is not F.batch_norm:
            return func(*args, **(kwargs or {}))
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        given: dict[str, Any] = {"weight": None, "bias": None, "training": False, "eps": 1e-5}
        given |= dict(zip(names, args, strict=False)) | (kwargs or {})
        if not given["training"]:
            return func(*args, **(kwargs or {}))
        x: Tensor = given["input"]
        if x.shape[0] % sum(self.sizes):
            raise CannotReplay(f"batch norm over {x.shape[0]} rows for {sum(self.sizes)} samples")
        each = x.shape[0] // sum(self.sizes)
        return torch.cat([self._normalised(part, given) for part in x.split([each * size for size in self.sizes])])

    @staticmethod
    def _normalised(x: Tensor, given: dict[str, Any]) -> Tensor:
        over = [dim for dim in range(x.dim()) if dim != 1]
        centred = x - x.mean(over, keepdim=True)
        out: Tensor = centred / (centred.square().mean(over, keepdim=True) + given["eps"]).sqrt()
        shape = (1, -1, *[1] * (x.dim() - 2))
        out = out if given["weight"] is None else out * given["weight"].reshape(shape)
        return out if given["bias"] is None else out + given["bias"].reshape(shape)


def layers_of(problem: Problem, acts: Callable[[nn.Module], bool]) -> list[str]:
    """Names of the layers that could act."""
    module = problem.model.module
    return [] if module is None else [name or "the model" for name, layer in module.named_modules() if acts(layer)]


def _normalises(layer: nn.Module) -> bool:
    return isinstance(layer, _BatchNorm)


def _drops(layer: nn.Module) -> bool:
    if isinstance(layer, _DropoutNd):
        return layer.p > 0
    return isinstance(layer, (nn.RNNBase, nn.MultiheadAttention)) and layer.dropout > 0


def _replay(sizes: list[int], records: list[Record] | None) -> AbstractContextManager[Any]:
    if records is None:
        raise CannotReplay("a draw inside a fused operator")
    return ReplayDraws(records)


def _has_draws(case: Case) -> bool:
    return case.draws is None or bool(case.draws.draws)


def _named(layers: list[str]) -> str | None:
    return ", ".join(layers[:3]) + (", ..." if len(layers) > 3 else "") if layers else None


FORWARD: tuple[Mechanism, ...] = (
    Mechanism(
        name="batch_statistics",
        kind="forward",
        moves=_MOVES,
        says="BatchNorm in train mode normalises by the statistics of whatever batch it is given",
        formula="gradient of the whole batch with each part normalised by its own mean and variance",
        remedy="model.eval(), or GroupNorm / LayerNorm",
        invited=lambda case: _named(layers_of(case.problem, _normalises)),
        applies=lambda case: bool(case.problem.model.batch_stat_layers()),
        intervene=lambda sizes, records: PartwiseBatchNorm(sizes),
        layers=_normalises,
    ),
    Mechanism(
        name="dropout",
        kind="forward",
        moves=_MOVES,
        says="each forward pass draws its own masks",
        formula="gradient of the whole batch under the masks that the parts drew",
        remedy="model.eval(), or one forward pass, or the same seed for the same samples",
        invited=lambda case: _named(layers_of(case.problem, _drops)) or ("random draws" if _has_draws(case) else None),
        applies=_has_draws,
        intervene=_replay,
        layers=_drops,
    ),
)
