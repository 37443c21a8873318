"""torch's recurrent operators as scans of plain tensor operations, which vmap and the graph of autograd see through.

`lstm`, `gru`, `rnn_tanh`, `rnn_relu` take the arguments of the operators of these names in torch, padded
`(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first)` or packed
`(data, batch_sizes, hx, params, has_biases, num_layers, dropout, train, bidirectional)`; `lstm_cell`, `gru_cell`,
`rnn_tanh_cell`, `rnn_relu_cell` take `(input, hx, w_ih, w_hh, b_ih=None, b_hh=None)`. Formulas: `torch.nn.LSTM`, `GRU`,
`RNN`, with projections.

>>> net = torch.nn.GRU(2, 3, bidirectional=True)
>>> x, h = torch.ones(4, 1, 2), torch.zeros(2, 1, 3)
>>> y, _ = gru(x, h, net._flat_weights, True, 1, 0.0, True, True, False)
>>> torch.allclose(y, net(x)[0])
True
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Drop = Callable[[Tensor, float], Tensor]
State = tuple[Tensor, ...]  # (h,), or (h, c) for LSTM


class _Cell(NamedTuple):
    """One layer in one direction."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None
    w_hr: Tensor | None = None


# (what the input gives, state, cell) -> the next state
Step = Callable[[Tensor, State, _Cell], State]


def _lstm_step(gates: Tensor, state: State, cell: _Cell) -> State:
    h, c = state
    i, f, g, o = (gates + F.linear(h, cell.w_hh)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (h if cell.w_hr is None else F.linear(h, cell.w_hr)), c


def _gru_step(gates: Tensor, state: State, cell: _Cell) -> State:
    (h,) = state
    r, z, n = gates.chunk(3, -1)
    r_h, z_h, n_h = F.linear(h, cell.w_hh, cell.b_hh).chunk(3, -1)
    n = (n + (r + r_h).sigmoid() * n_h).tanh()
    return (n + (z + z_h).sigmoid() * (h - n),)


def _tanh_step(gates: Tensor, state: State, cell: _Cell) -> State:
    return ((gates + F.linear(state[0], cell.w_hh)).tanh(),)


def _relu_step(gates: Tensor, state: State, cell: _Cell) -> State:
    return ((gates + F.linear(state[0], cell.w_hh)).relu(),)


def _input_gates(x: Tensor, cell: _Cell, step: Step) -> Tensor:
    """What the input gives, at all times at once, with every bias that can be added here.

    The GRU's candidate multiplies its hidden bias by a gate, so its step adds the hidden biases itself.
    """
    if step is _gru_step or cell.b_ih is None or cell.b_hh is None:
        return F.linear(x, cell.w_ih, cell.b_ih)
    return F.linear(x, cell.w_ih, cell.b_ih + cell.b_hh)


def _beside(gates: Tensor, state: State) -> State:
    """The same state, batched under vmap where the input is: else the first product would be of parameters alone.

    And of the gates' type, the lower one under autocast, as in torch's own operators on CUDA.
    """
    zero = torch.zeros_like(gates[..., :1])
    return tuple(s.to(zero.dtype) + zero for s in state)


def _scan(
    steps: Sequence[Tensor], state: State, cell: _Cell, step: Step, *, reverse: bool
) -> tuple[list[Tensor], State]:
    """One layer in one direction over `steps`, each `[b_t, gates]` with b_t never growing in time.

    Returns the outputs in the order of time, as a list of steps, and the last state of every sequence.
    """
    start = _beside(steps[0], state)
    now = tuple(s[: len(steps[-1 if reverse else 0])] for s in start)
    outputs, ended = [], []
    for gates in reversed(steps) if reverse else steps:
        rows, size = len(now[0]), len(gates)
        if size > rows:  # backward in time sequences join at their ends
            now = tuple(torch.cat([n, s[rows:size]]) for n, s in zip(now, start, strict=True))
        elif size < rows:  # forward they leave there
            ended.append(tuple(n[size:] for n in now))
            now = tuple(n[:size] for n in now)
        now = step(gates, now, cell)
        outputs.append(now[0])
    last = tuple(torch.cat(parts) for parts in zip(now, *reversed(ended), strict=True)) if ended else now
    return outputs[::-1] if reverse else outputs, last


def _cells(params: Sequence[Tensor], has_biases: bool, count: int) -> list[_Cell]:
    each = len(params) // count
    cells = []
    for k in range(count):
        own = list(params[k * each : (k + 1) * each])
        b_ih, b_hh = own[2:4] if has_biases else (None, None)
        cells.append(_Cell(own[0], own[1], b_ih, b_hh, own[-1] if each > (4 if has_biases else 2) else None))
    return cells


class _Options(NamedTuple):
    """The operator's options after the tensors, in its order."""

    has_biases: bool
    num_layers: int
    dropout: float
    train: bool
    bidirectional: bool


class _Call(NamedTuple):
    """The arguments of one of the operators; `sizes` where it was packed."""

    x: Tensor
    sizes: list[int] | None
    state: State
    params: Sequence[Tensor]
    options: _Options
    batch_first: bool = False


def _padded(input: Tensor, hx: Any, params: Sequence[Tensor], *options: Any, **named: Any) -> _Call:
    batch_first = options[5] if len(options) == 6 else named.pop("batch_first")
    return _Call(input, None, _state(hx), params, _Options(*options[:5], **named), batch_first)


def _packed(data: Tensor, batch_sizes: Tensor, hx: Any, params: Sequence[Tensor], *options: Any, **named: Any) -> _Call:
    return _Call(data, batch_sizes.tolist(), _state(hx), params, _Options(*options, **named))


def _read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
    packed = "batch_sizes" in kwargs or (len(args) > 3 and isinstance(args[3], list | tuple))
    return _packed(*args, **kwargs) if packed else _padded(*args, **kwargs)


def _state(hx: Tensor | Sequence[Tensor]) -> State:
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


def draws(*args: Any, **kwargs: Any) -> bool:
    """Whether a call of one of the operators draws random numbers."""
    options = _read(args, kwargs).options
    return options.dropout > 0 and options.train and options.num_layers > 1


def _layers(call: _Call, step: Step, drop: Drop) -> tuple[Tensor, State]:
    """All layers: x is `[T, B, features]`, or `[sum of sizes, features]` with sizes; each of state `[layers, B, n]`."""
    x, sizes, state, params, options, _ = call
    directions = 2 if options.bidirectional else 1
    cells = _cells(params, options.has_biases, options.num_layers * directions)
    lasts = []
    for layer in range(options.num_layers):
        found = []
        for way in range(directions):
            k = layer * directions + way
            gates = _input_gates(x, cells[k], step)
            steps = gates.unbind(0) if sizes is None else gates.split(sizes)
            outputs, last = _scan(steps, tuple(s[k] for s in state), cells[k], step, reverse=way == 1)
            found.append(torch.stack(outputs) if sizes is None else torch.cat(outputs))
            lasts.append(last)
        x = torch.cat(found, -1) if directions == 2 else found[0]
        if options.dropout > 0 and options.train and layer < options.num_layers - 1:
            x = drop(x, options.dropout)
    return x, tuple(torch.stack(each) for each in zip(*lasts, strict=True))


def _dropout(x: Tensor, p: float) -> Tensor:
    return F.dropout(x, p, training=True)


def _run(step: Step, args: tuple[Any, ...], kwargs: dict[str, Any], drop: Drop) -> tuple[Tensor, ...]:
    call = _read(args, kwargs)
    if not call.batch_first:
        y, last = _layers(call, step, drop)
        return y, *last
    y, last = _layers(call._replace(x=call.x.transpose(0, 1)), step, drop)
    return y.transpose(0, 1), *last


def lstm(*args: Any, drop: Drop = _dropout, **kwargs: Any) -> tuple[Tensor, ...]:
    """`torch.lstm`: (output, h, c). `drop(x, p)` is the dropout between layers."""
    return _run(_lstm_step, args, kwargs, drop)


def gru(*args: Any, drop: Drop = _dropout, **kwargs: Any) -> tuple[Tensor, ...]:
    """`torch.gru`: (output, h)."""
    return _run(_gru_step, args, kwargs, drop)


def rnn_tanh(*args: Any, drop: Drop = _dropout, **kwargs: Any) -> tuple[Tensor, ...]:
    """`torch.rnn_tanh`: (output, h)."""
    return _run(_tanh_step, args, kwargs, drop)


def rnn_relu(*args: Any, drop: Drop = _dropout, **kwargs: Any) -> tuple[Tensor, ...]:
    """`torch.rnn_relu`: (output, h)."""
    return _run(_relu_step, args, kwargs, drop)


def _one_step(step: Step, input: Tensor, hx: Any, cell: _Cell) -> State:
    gates = _input_gates(input, cell, step)
    return step(gates, _beside(gates, _state(hx)), cell)


def lstm_cell(
    input: Tensor,
    hx: Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> State:
    """`torch.lstm_cell`: (h, c)."""
    return _one_step(_lstm_step, input, hx, _Cell(w_ih, w_hh, b_ih, b_hh))


def gru_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> Tensor:
    """`torch.gru_cell`: h."""
    return _one_step(_gru_step, input, hx, _Cell(w_ih, w_hh, b_ih, b_hh))[0]


def rnn_tanh_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> Tensor:
    """`torch.rnn_tanh_cell`: h."""
    return _one_step(_tanh_step, input, hx, _Cell(w_ih, w_hh, b_ih, b_hh))[0]


def rnn_relu_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> Tensor:
    """`torch.rnn_relu_cell`: h."""
    return _one_step(_relu_step, input, hx, _Cell(w_ih, w_hh, b_ih, b_hh))[0]
