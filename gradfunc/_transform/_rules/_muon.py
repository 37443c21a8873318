"""Orthogonalised updates of matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..._errors import check_int, message, one_of
from ..._tree import Tensors
from .._batch import AddDecayedWeights
from .._chain import BatchStage, chain
from .._numbers import NOT_NEGATIVE, SHARE, Number, check_flag, check_number, fixed
from .._protocol import Grads, State
from .._stage import How, check_grads
from ._descend import Descend
from ._momentum import Averaged
from ._named import Named, spelt

# K. Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks": steep at 0, so that few steps do.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
SMALLEST = 1e-7
PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, repr=False)
class Orthogonalize(BatchStage):
    """Made by `gf.orthogonalize`, which has the meanings."""

    ns_steps: int
    precision: str
    name = "orthogonalize"

    def init(self, params: Tensors, /) -> State:
        """Nothing; it is told early of what it cannot take."""
        self._check(params, "init(params)")
        return ()

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Grads, State]:
        """Each matrix alone."""
        values = check_grads(self, grads)
        self._check(values, "update(grads, state)")
        return Grads({name: self._of(value) for name, value in values.items()}), state

    def _of(self, value: Tensor) -> Tensor:
        matrix = value.flatten(1)
        scale = math.sqrt(max(1.0, matrix.shape[0] / max(1, matrix.shape[1])))
        out = polar(matrix.to(PRECISIONS[self.precision]), self.ns_steps)
        return out.to(value.dtype).mul(scale).reshape(value.shape)

    def _check(self, values: Tensors, query: str) -> None:
        if flat := [name for name, value in values.items() if value.dim() < 2]:
            do = "Give them another rule: gf.partition({'muon': gf.muon(0.02), 'others': gf.adamw()}, labels)."
            raise ValueError(message(f"{self!r}.{query}", got=f"no matrix in {flat}", expected="matrices", do=do))

    def __repr__(self) -> str:
        return f"orthogonalize({self.ns_steps}, precision={self.precision!r})"


def orthogonalize(ns_steps: int = 5, *, precision: str = "bfloat16") -> Orthogonalize:
    """Every matrix with its singular values brought near 1: a stage from gradients to directions.

    Divided by its Frobenius norm (at least 1e-7), X goes through `a X + b (X X^T) X + c (X X^T)^2 X` with a = 3.4445,
    b = -4.7750, c = 2.0315, `ns_steps` times (K. Jordan et al. 2024, "Muon"), and then times `sqrt(max(1, rows /
    columns))`. With these coefficients five steps bring singular values above about 1e-2 of that norm into roughly
    [0.7, 1.2] and no closer to 1. Convolutions are matrices of out channels by all else.

    | matrix                   | direction                                         |
    |--------------------------|---------------------------------------------------|
    | 0                        | 0                                                 |
    | times a factor > 0       | the same, unless its norm is below 1e-7           |
    | fewer than 2 dimensions  | ValueError, in `init` already                     |

    Args:
        ns_steps: >= 1.
        precision: "bfloat16" as in `torch.optim.Muon`, "float32" or "float64": of the products.

    Raises:
        TypeError, ValueError: an argument of another type or range; in `init` and `update`, a vector or number.

    Example:
        >>> import torch, gradfunc as gf
        >>> stage = gf.orthogonalize(12, precision="float32")
        >>> out, _ = stage.update({"w": torch.tensor([[3.0, 1.0], [0.0, 2.0]])}, ())
        >>> bool(((torch.linalg.svdvals(out["w"]) - 1).abs() < 0.4).all())
        True
    """
    _check("gf.orthogonalize(ns_steps)", ns_steps, precision)
    return Orthogonalize(ns_steps, precision)


def muon(
    lr: Number = 1e-3,
    *,
    weight_decay: Number = 0.1,
    momentum: float = 0.95,
    nesterov: bool = True,
    ns_steps: int = 5,
    precision: str = "bfloat16",
) -> Named:
    """Muon, as `torch.optim.Muon`: a rule for matrices, from gradients to updates.

    With b the running average of gradients, `b = mu b + (1 - mu) g`, the direction is `gf.orthogonalize` of b, or with
    `nesterov` of `(1 - mu) g + mu b`; the update is `-lr (direction + weight_decay p)`. Convolutions are taken as
    matrices, which torch's refuses.

    Args:
        lr: the learning rate >= 0, or a schedule: a function from the count of updates before this one.
        weight_decay: >= 0, or a schedule.
        momentum: mu in [0, 1).
        nesterov: look ahead.
        ns_steps: as of `gf.orthogonalize`.
        precision: likewise.

    Raises:
        TypeError, ValueError: an argument of another type or range; in `init` and `update`, a vector or number: other
            parameters take another rule, by `gf.partition`; in an update with decay, no params.

    Example:
        >>> import torch, gradfunc as gf
        >>> step = gf.partition({"muon": gf.muon(0.02), "others": gf.adamw()}, {r".*weight": "muon", r".*": "others"})
        >>> params = {"weight": torch.eye(2), "bias": torch.zeros(2)}
        >>> updates, state = step.update(params, step.init(params), params)
        >>> list(updates)
        ['weight', 'bias']
    """
    call = "gf.muon(lr)"
    check_number(call, "lr", lr, NOT_NEGATIVE)
    check_number(call, "weight_decay", weight_decay, NOT_NEGATIVE)
    check_number(call, "momentum", momentum, SHARE, schedule=False)
    check_flag(call, "nesterov", nesterov)
    _check(call, ns_steps, precision)
    given: dict[str, object] = {"weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov}
    given |= {"ns_steps": ns_steps, "precision": precision}
    defaults = {"weight_decay": 0.1, "momentum": 0.95, "nesterov": True, "ns_steps": 5, "precision": "bfloat16"}
    parts = chain(
        Averaged(float(momentum), nesterov),
        Orthogonalize(ns_steps, precision),
        *([] if weight_decay == 0 else [AddDecayedWeights(fixed(weight_decay))]),
        Descend(fixed(lr)),
    )
    return Named("muon", spelt("muon", lr, given, defaults), parts)


def polar(matrix: Tensor, steps: int) -> Tensor:
    """Newton-Schulz, on the side where the Gram matrix is small."""
    a, b, c = COEFFICIENTS
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / x.norm().clamp(min=SMALLEST)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.T


def _check(call: str, ns_steps: object, precision: object) -> None:
    check_int(call, "ns_steps", ns_steps, 1)
    one_of(call, "precision", precision, PRECISIONS)
