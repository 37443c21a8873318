"""One layer in one direction, and what its cell does in one step and in all of them, in plain tensor operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

State = tuple[Tensor, ...]  # (h,), or (h, c) for LSTM


class Cell(NamedTuple):
    """The parameters of one layer in one direction."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None
    w_hr: Tensor | None = None


# (what the input gives, what the state gives, state) -> the next state, before a projection
Step = Callable[[Tensor, Tensor, State], State]


def lstm_step(gates: Tensor, hidden: Tensor, state: State) -> State:
    """`torch.nn.LSTM`."""
    i, f, g, o = (gates + hidden).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_step(gates: Tensor, hidden: Tensor, state: State) -> State:
    """`torch.nn.GRU`."""
    (h,) = state
    r, z, n = gates.chunk(3, -1)
    r_h, z_h, n_h = hidden.chunk(3, -1)
    n = (n + (r + r_h).sigmoid() * n_h).tanh()
    return (n + (z + z_h).sigmoid() * (h - n),)


def tanh_step(gates: Tensor, hidden: Tensor, state: State) -> State:
    """`torch.nn.RNN`."""
    return ((gates + hidden).tanh(),)


def relu_step(gates: Tensor, hidden: Tensor, state: State) -> State:
    """`torch.nn.RNN` with relus."""
    return ((gates + hidden).relu(),)


def input_gates(x: Tensor, cell: Cell, step: Step) -> Tensor:
    """What the input gives, at all times at once, with every bias that can be added here."""
    if hidden_bias(cell, step) is not None or cell.b_ih is None or cell.b_hh is None:
        return F.linear(x, cell.w_ih, cell.b_ih)
    return F.linear(x, cell.w_ih, cell.b_ih + cell.b_hh)


def hidden_bias(cell: Cell, step: Step) -> Tensor | None:
    """What each step adds to its product: those of a GRU, whose candidate multiplies its own by a gate."""
    return cell.b_hh if step is gru_step else None


def advance(gates: Tensor, state: State, cell: Cell, step: Step) -> State:
    """One step."""
    h, *rest = step(gates, F.linear(state[0], cell.w_hh, hidden_bias(cell, step)), state)
    return (h if cell.w_hr is None else F.linear(h, cell.w_hr)), *rest


def beside(gates: Tensor, state: State) -> State:
    """The same state, batched under vmap where the input is: else the first product would be of parameters alone.

    And of the gates' type, the lower one under autocast, as in torch's own operators on CUDA.
    """
    zero = torch.zeros_like(gates[..., :1])
    return tuple(s.to(zero.dtype) + zero for s in state)


def scan(steps: Sequence[Tensor], state: State, cell: Cell, step: Step, *, reverse: bool) -> tuple[list[Tensor], State]:
    """One layer in one direction over `steps`, each `[b_t, gates]` with b_t never growing in time.

    Returns the outputs in the order of time, as a list of steps, and the last state of every sequence.
    """
    start = beside(steps[0], state)
    now = tuple(s[: len(steps[-1 if reverse else 0])] for s in start)
    outputs, ended = [], []
    for gates in reversed(steps) if reverse else steps:
        rows, size = len(now[0]), len(gates)
        if size > rows:  # backward in time sequences join at their ends
            now = tuple(torch.cat([n, s[rows:size]]) for n, s in zip(now, start, strict=True))
        elif size < rows:  # forward they leave there
            ended.append(tuple(n[size:] for n in now))
            now = tuple(n[:size] for n in now)
        now = advance(gates, now, cell, step)
        outputs.append(now[0])
    last = tuple(torch.cat(parts) for parts in zip(now, *reversed(ended), strict=True)) if ended else now
    return outputs[::-1] if reverse else outputs, last


def plain(
    x: Tensor, sizes: Sequence[int] | None, state: State, cell: Cell, step: Step, *, reverse: bool
) -> tuple[Tensor, State]:
    """One layer in one direction: x is `[T, B, features]`, or `[sum of sizes, features]` with sizes."""
    gates = input_gates(x, cell, step)
    steps: Any = gates.unbind(0) if sizes is None else gates.split(list(sizes))
    outputs, last = scan(steps, state, cell, step, reverse=reverse)
    return (torch.stack(outputs) if sizes is None else torch.cat(outputs)), last
