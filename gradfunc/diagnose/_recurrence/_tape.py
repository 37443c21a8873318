"""One forward pass of a recurrence, in which its states are seen: flat, `[B, n]`, all parts side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

State = tuple[Tensor, ...]  # each [B, ...]
Step = Callable[[State], State]
Tap = Callable[[Tensor], Tensor]


class Tape:
    """Runs a recurrence step by step.

    Attributes:
        states: h_0 to h_T, `[B, n]` each; in the graph where the pass has one.
        steps: h_{t-1} -> h_t for t = 1 to T, as functions of the flat state alone.
    """

    def __init__(self, tap: Tap | None = None) -> None:
        """`tap` is what every state passes through, such as a clip of its cotangent."""
        self.states: list[Tensor] = []
        self.steps: list[Callable[[Tensor], Tensor]] = []
        self._tap = tap

    def run(self, start: State, steps: Sequence[Step]) -> list[State]:
        """All states, h_0 first."""
        shapes = [part.shape[1:] for part in start]
        sizes = [shape.numel() for shape in shapes]

        def parts(z: Tensor) -> State:
            each = zip(z.split(sizes, -1), shapes, strict=True)
            return tuple(part.reshape(len(part), *shape) for part, shape in each)

        def flat_step(step: Step) -> Callable[[Tensor], Tensor]:
            return lambda z: flat(step(parts(z)))

        self.steps = [flat_step(step) for step in steps]
        z = self._seen(flat(start))
        self.states = [z]
        for step in self.steps:
            z = self._seen(step(z))
            self.states.append(z)
        return [parts(z) for z in self.states]

    def _seen(self, z: Tensor) -> Tensor:
        return z if self._tap is None else self._tap(z)


def flat(state: State) -> Tensor:
    """The parts of a state side by side, `[B, n]`."""
    return torch.cat([part.flatten(1) if part.dim() > 1 else part[:, None] for part in state], 1)
