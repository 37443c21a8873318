"""The Jacobians of a trajectory's steps, as matrices or as products with vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

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
        """`J^T u`, `[n]`."""

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


class OfTape:
    """Those of one sample's trajectory, by torch.func."""

    def __init__(self, tape: Tape) -> None:
        """The tape of a batch of one."""
        self._states = [state[0].detach() for state in tape.states]
        self._steps: Sequence[Callable[[Tensor], Tensor]] = tape.steps
        self.size, self.steps, self.like = self._states[0].shape[0], len(tape.steps), self._states[0]

    def _step(self, t: int) -> Callable[[Tensor], Tensor]:
        return lambda z: self._steps[t](z[None])[0]

    def push(self, t: int, v: Tensor) -> Tensor:
        """Forward-mode derivatives, all columns at once."""
        at, step = self._states[t], self._step(t)

        def along(v: Tensor) -> Tensor:
            out: Tensor = torch.func.jvp(step, (at,), (v,))[1]
            return out

        out: Tensor = along(v) if v.dim() == 1 else torch.func.vmap(along, in_dims=1, out_dims=1)(v)
        return out

    def pull(self, t: int, u: Tensor) -> Tensor:
        """One backward pass of one step."""
        (out,) = torch.func.vjp(self._step(t), self._states[t])[1](u)
        found: Tensor = out
        return found

    def dense(self, t: int) -> Tensor:
        """One backward pass of one step an entry of the state, batched."""
        out: Tensor = torch.func.jacrev(self._step(t))(self._states[t]).detach().double()
        if not out.isfinite().all():
            got = f"a Jacobian of step {t + 1} that is not finite"
            raise ValueError(message("gf.diagnose.recurrence(system, ...)", got=got, expected="a differentiable step"))
        return out
