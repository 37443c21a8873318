"""torch's recurrent operators, one layer in one direction after the other.

`lstm`, `gru`, `rnn_tanh`, `rnn_relu` take the arguments of the operators of these names in torch, padded
`(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first)` or packed
`(data, batch_sizes, hx, params, has_biases, num_layers, dropout, train, bidirectional)`; `lstm_cell`, `gru_cell`,
`rnn_tanh_cell`, `rnn_relu_cell` take `(input, hx, w_ih, w_hh, b_ih=None, b_hh=None)`. Formulas: `torch.nn.LSTM`, `GRU`,
`RNN`, with projections.

A layer in one direction is a scan: `plain` in tensor operations, which vmap and the graph of autograd see through;
`fast` by hand, two nodes of the graph, at whose product the gradient of the recurrent weight is read.

>>> net = torch.nn.GRU(2, 3, bidirectional=True)
>>> x, h = torch.ones(4, 1, 2), torch.zeros(2, 1, 3)
>>> y, _ = gru(x, h, net._flat_weights, True, 1, 0.0, True, True, False)
>>> torch.allclose(y, net(x)[0])
True
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._errors import message
from ._call import Call, read
from ._call import state as _state
from ._cell import Cell as Cell
from ._cell import State as State
from ._cell import Step as Step
from ._cell import advance, beside, input_gates
from ._cell import gru_step as gru_step
from ._cell import lstm_step as lstm_step
from ._cell import plain as plain
from ._cell import relu_step as relu_step
from ._cell import tanh_step as tanh_step
from ._fast import fast as fast
from ._nodes import is_product as is_product
from ._nodes import is_scan as is_scan

Drop = Callable[[Tensor, float], Tensor]
# (x, sizes, state, cell, step, reverse=) -> outputs and last state of one layer in one direction
Scan = Callable[..., tuple[Tensor, State]]


def _layers(call: Call, step: Step, drop: Drop, scan: Scan) -> tuple[Tensor, State]:
    """All layers: x is `[T, B, features]`, or `[sum of sizes, features]` with sizes; each of state `[layers, B, n]`."""
    x, sizes, state, _, options, _ = call
    if not (len(x) if sizes is None else sizes):  # torch's own words differ by operator
        raise RuntimeError(message("a recurrent layer", got="a sequence of length 0", expected="at least one step"))
    directions, cells = 2 if options.bidirectional else 1, call.cells
    lasts = []
    for layer in range(options.num_layers):
        found = []
        for way in range(directions):
            k = layer * directions + way
            outputs, last = scan(x, sizes, tuple(s[k] for s in state), cells[k], step, reverse=way == 1)
            found.append(outputs)
            lasts.append(last)
        x = torch.cat(found, -1) if directions == 2 else found[0]
        if options.drops and layer < options.num_layers - 1:
            x = drop(x, options.dropout)
    return x, tuple(torch.stack(each) for each in zip(*lasts, strict=True))


def draws(*args: Any, **kwargs: Any) -> bool:
    """Whether a call of one of the operators draws random numbers."""
    return read(args, kwargs).options.drops


def _dropout(x: Tensor, p: float) -> Tensor:
    return F.dropout(x, p, training=True)


def _run(step: Step, args: tuple[Any, ...], kwargs: dict[str, Any], drop: Drop, scan: Scan) -> tuple[Tensor, ...]:
    call = read(args, kwargs)
    if not call.batch_first:
        y, last = _layers(call, step, drop, scan)
        return y, *last
    y, last = _layers(call._replace(x=call.x.transpose(0, 1)), step, drop, scan)
    return y.transpose(0, 1), *last


def lstm(*args: Any, drop: Drop = _dropout, scan: Scan = plain, **kwargs: Any) -> tuple[Tensor, ...]:
    """`torch.lstm`: (output, h, c). `drop(x, p)` is the dropout between layers, `scan` one layer in one direction."""
    return _run(lstm_step, args, kwargs, drop, scan)


def gru(*args: Any, drop: Drop = _dropout, scan: Scan = plain, **kwargs: Any) -> tuple[Tensor, ...]:
    """`torch.gru`: (output, h)."""
    return _run(gru_step, args, kwargs, drop, scan)


def rnn_tanh(*args: Any, drop: Drop = _dropout, scan: Scan = plain, **kwargs: Any) -> tuple[Tensor, ...]:
    """`torch.rnn_tanh`: (output, h)."""
    return _run(tanh_step, args, kwargs, drop, scan)


def rnn_relu(*args: Any, drop: Drop = _dropout, scan: Scan = plain, **kwargs: Any) -> tuple[Tensor, ...]:
    """`torch.rnn_relu`: (output, h)."""
    return _run(relu_step, args, kwargs, drop, scan)


def _one_step(step: Step, input: Tensor, hx: Any, cell: Cell) -> State:
    gates = input_gates(input, cell, step)
    return advance(gates, beside(gates, _state(hx)), cell, step)


def lstm_cell(
    input: Tensor,
    hx: Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> State:
    """`torch.lstm_cell`: (h, c)."""
    return _one_step(lstm_step, input, hx, Cell(w_ih, w_hh, b_ih, b_hh))


def gru_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> Tensor:
    """`torch.gru_cell`: h."""
    return _one_step(gru_step, input, hx, Cell(w_ih, w_hh, b_ih, b_hh))[0]


def rnn_tanh_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> Tensor:
    """`torch.rnn_tanh_cell`: h."""
    return _one_step(tanh_step, input, hx, Cell(w_ih, w_hh, b_ih, b_hh))[0]


def rnn_relu_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> Tensor:
    """`torch.rnn_relu_cell`: h."""
    return _one_step(relu_step, input, hx, Cell(w_ih, w_hh, b_ih, b_hh))[0]
