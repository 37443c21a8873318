"""The recurrent layer of a model, seen from inside: torch's operator runs step by step on a tape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..._errors import message
from ..._recurrent import Cell, gru_step, lstm_step, relu_step, tanh_step
from ..._recurrent import Step as CellStep
from ..._recurrent._call import Call, read
from ..._recurrent._cell import advance, input_gates
from ._tape import State, Step, Tape

_LAYERS: dict[Any, CellStep] = {
    torch.lstm: lstm_step,
    torch.gru: gru_step,
    torch.rnn_tanh: tanh_step,
    torch.rnn_relu: relu_step,
}
_CELLS = (torch.lstm_cell, torch.gru_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell)


class OnTape(TorchFunctionMode):
    """While it is entered, the one recurrent operator of a model runs on a tape."""

    def __init__(self, call: str, tape: Tape) -> None:
        super().__init__()
        self._call, self._tape = call, tape
        self.seen = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _CELLS:
            do = "Give the loop's step as a function step(params, h, x), or the cell itself."
            raise ValueError(message(self._call, got="a model that calls a cell", expected="a recurrent layer", do=do))
        kind = _LAYERS.get(func)
        if kind is None:
            return func(*args, **(kwargs or {}))
        if self.seen:
            do = "Give the layers one by one."
            raise ValueError(message(self._call, got="a model with two recurrent layers", expected="one", do=do))
        self.seen = True
        return self._run(read(args, kwargs or {}), kind)

    def _run(self, call: Call, kind: CellStep) -> tuple[Tensor, ...]:
        self._check(call)
        cells = call.cells
        x = call.x.transpose(0, 1) if call.batch_first else call.x
        gates = input_gates(x, cells[0], kind)
        start = tuple(s.transpose(0, 1) for s in call.state)  # [B, layers, n]
        states = self._tape.run(start, [_joint(g, cells, kind) for g in gates.unbind(0)])
        y = torch.stack([state[0][:, -1] for state in states[1:]])
        return (y.transpose(0, 1) if call.batch_first else y), *(s.transpose(0, 1) for s in states[-1])

    def _check(self, call: Call) -> None:
        if call.sizes is not None:
            do = "Give sequences of one length, or each with its own call."
            raise ValueError(message(self._call, got="a packed sequence", expected="a padded batch", do=do))
        if call.options.bidirectional:
            do = "Its two directions are two recurrences: give each as a layer of its own."
            raise ValueError(message(self._call, got="a bidirectional layer", expected="one direction", do=do))
        if call.options.drops:
            do = "Call model.eval() first."
            raise ValueError(message(self._call, got="dropout between layers", expected="none", do=do))


def _joint(gates: Tensor, cells: list[Cell], kind: CellStep) -> Step:
    """One step of all layers: the state of a layer is what the next one reads."""

    def step(state: State) -> State:
        found: list[State] = []
        given = gates
        for k, cell in enumerate(cells):
            given = given if k == 0 else input_gates(found[-1][0], cell, kind)
            found.append(advance(given, tuple(s[:, k] for s in state), cell, kind))
        return tuple(torch.stack(each, 1) for each in zip(*found, strict=True))

    return step
