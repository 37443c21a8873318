"""The Jacobians of a trajectory's steps, as matrices or as products with vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..._errors import message
from ._tape import Tape


class Jacobians(Protocol):
    """J_1 to J_T of `[n, n]`, `J_t = dh_t / dh_{t-1}`; t counts from 0 here."""

    @property
    def size(self) -> int:
        """The state's n."""

    @property
    def steps(self) -> int:
        """T."""

    @property
    def like(self) -> Tensor:
        """A tensor whose type and device vectors have."""

    def push(self, t: int, v: Tensor) -> Tensor:
        """`J v`, `[n]` or columns `[n, k]`."""

    def pull(self, t: int, u: Tensor) -> Tensor:
        """`J^T u`, likewise."""

    def dense(self, t: int) -> Tensor:
        """`[n, n]` in float64."""


@dataclass(frozen=True, eq=False)
class Constant:
    """The same matrix at every step."""

    matrix: Tensor
    steps: int

    @property
    def size(self) -> int:
        """The state's n."""
        return len(self.matrix)

    @property
    def like(self) -> Tensor:
        """The matrix."""
        return self.matrix

    def push(self, t: int, v: Tensor) -> Tensor:
        """`M v`."""
        return self.matrix @ v

    def pull(self, t: int, u: Tensor) -> Tensor:
        """`M^T u`."""
        return self.matrix.T @ u

    def dense(self, t: int) -> Tensor:
        """M."""
        return self.matrix


class _Linear(NamedTuple):
    """One step, linearised: two graphs that backward passes go through again and again."""

    at: Tensor
    out: Tensor
    cotangent: Tensor
    pulled: Tensor  # J^T cotangent, in the graph of the cotangent


class OfTape:
    """Those of one sample's trajectory, by autograd.

    `J v` is the derivative of `u -> J^T u`, a backward pass through a backward pass: forward-mode derivatives would do
    with one, but not every operation has them. Graphs are kept: some vectors of n a step.
    """

    def __init__(self, tape: Tape) -> None:
        """The tape of a batch of one."""
        self._states = [state[0].detach() for state in tape.states]
        self._steps = tape.steps
        self.size, self.steps, self.like = self._states[0].shape[0], len(tape.steps), self._states[0]
        self._kept: dict[int, _Linear] = {}

    def push(self, t: int, v: Tensor) -> Tensor:
        """All columns at once."""
        step = self._linear(t)
        return _product(step.pulled, step.cotangent, v)

    def pull(self, t: int, u: Tensor) -> Tensor:
        """One backward pass of one step."""
        step = self._linear(t)
        return _product(step.out, step.at, u)

    def dense(self, t: int) -> Tensor:
        """One backward pass of one step an entry of the state, batched."""
        at, out = self._forward(t)
        found = _product(out, at, torch.eye(self.size, dtype=at.dtype, device=at.device)).T.double()
        if not found.isfinite().all():
            got = f"a Jacobian of step {t + 1} that is not finite"
            raise ValueError(message("gf.diagnose.recurrence(system, ...)", got=got, expected="a differentiable step"))
        return found

    def _forward(self, t: int) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            at = self._states[t].clone().requires_grad_()
            out: Tensor = self._steps[t](at[None])[0]
        return at, out

    def _linear(self, t: int) -> _Linear:
        if t not in self._kept:
            at, out = self._forward(t)
            with torch.enable_grad():
                cotangent = torch.zeros_like(out, requires_grad=True)
                pulled = torch.zeros_like(at)
                if out.requires_grad:
                    (pulled,) = torch.autograd.grad(
                        out, at, cotangent, create_graph=True, allow_unused=True, materialize_grads=True
                    )
            self._kept[t] = _Linear(at, out, cotangent, pulled)
        return self._kept[t]


def _product(out: Tensor, at: Tensor, v: Tensor) -> Tensor:
    """`(d out / d at)^T v`, of a vector or of columns; 0 where out depends on nothing."""
    if not out.requires_grad:
        return torch.zeros_like(v)
    batched = v.dim() == 2
    (found,) = torch.autograd.grad(
        out, at, v.T if batched else v, retain_graph=True, is_grads_batched=batched, allow_unused=True,
        materialize_grads=True,
    )  # fmt: skip
    return found.T if batched else found
