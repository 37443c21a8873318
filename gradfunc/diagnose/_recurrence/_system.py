"""A recurrence as it is measured: parameters, and a forward pass on a tape that gives one loss a sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ... import _recurrent
from ..._errors import kind_of, message
from ..._problem import Problem, read
from ..._random import forked
from ..._stateless import Stateless, stateless
from ..._tree import Tensors
from ..._weights import Weighted
from ...audit._case import devices_of
from ...audit._losses import Losses
from ...models import Pure
from ._operators import OnTape
from ._tape import State, Tape

CALL = "gf.diagnose.recurrence(system, ...)"
CELLS = {nn.RNNCell: "rnn_tanh_cell", nn.GRUCell: "gru_cell", nn.LSTMCell: "lstm_cell"}


@dataclass(frozen=True)
class System:
    """A recurrence on a batch.

    Attributes:
        params: what clipping compares gradients of.
        size: B.
        run: `(params, tape) -> Weighted` of `[B]`, None where no criterion was given.
        rows: the same on samples start to stop.
    """

    params: Tensors
    size: int
    run: Callable[[Tensors, Tape], Weighted | None]
    rows: Callable[[int, int], System]


def of_model(model: Any, criterion: Any, batch: Any) -> System:
    """A module, or model, that calls one recurrent layer of torch."""
    problem = _problem(model, criterion, batch)
    if layers := problem.model.batch_stat_layers():
        got = f"layer {layers[0]}, which normalises by the statistics of the batch"
        raise ValueError(message(CALL, got=got, expected="samples that do not meet", do="Call model.eval() first."))
    return _of_problem(problem, criterion is not None)


def _of_problem(problem: Problem, judged: bool) -> System:
    def run(params: Tensors, tape: Tape) -> Weighted | None:
        watch = OnTape(CALL, tape)
        with watch:
            out = _forward(problem, params, judged)
        if not watch.seen:
            do = "Give a step function step(params, h, x), or a square matrix."
            expected = "a model that calls nn.RNN, nn.GRU or nn.LSTM"
            raise ValueError(message(CALL, got="a model without a recurrent layer", expected=expected, do=do))
        if tape.states[0].shape[0] != problem.size:
            got = f"a recurrent layer that runs {tape.states[0].shape[0]} sequences for {problem.size} samples"
            do = "Say where the batch sits with gf.stateless(model, in_dims=...)."
            raise ValueError(message(CALL, got=got, expected="one sequence a sample", do=do))
        return out

    return System(dict(problem.model.params), problem.size, run, lambda a, b: _of_problem(problem.rows(a, b), judged))


def of_step(step: Callable[..., Any], params: Mapping[str, Tensor], state: Any, criterion: Any, batch: Any) -> System:
    """`step(params, h, x) -> h` of one sample; h a tensor or a tuple of them."""
    alone = isinstance(state, Tensor)
    start: State = (state,) if alone else tuple(state)

    def one(params: Tensors, parts: State, x: Any) -> State:
        out = step(params, parts[0] if alone else parts, x)
        found = (out,) if isinstance(out, Tensor) else tuple(out)
        if [part.shape for part in found] != [part.shape for part in parts]:
            got = f"a step from {[tuple(p.shape) for p in parts]} to {[tuple(p.shape) for p in found]}"
            raise ValueError(message(CALL, got=got, expected="the next state, of the same shapes"))
        return found

    every = torch.func.vmap(one, in_dims=(None, 0, 0))
    tapes: list[Tape] = []

    def apply(params: Mapping[str, Tensor], xs: Tensor) -> Tensor:
        if not isinstance(xs, Tensor) or xs.dim() < 2 or not xs.shape[1]:
            got = f"inputs {tuple(xs.shape)}" if isinstance(xs, Tensor) else kind_of(xs)
            raise ValueError(message(CALL, got=got, expected="inputs [B, T, ...] with T >= 1"))
        given = dict(params)
        begin = tuple(part.detach().expand(xs.shape[0], *part.shape) for part in start)
        # bound at once: a step is called again when its Jacobian is asked
        steps = [lambda parts, x=x: every(given, parts, x) for x in xs.unbind(1)]
        states = tapes[-1].run(begin, steps)
        return torch.stack([parts[0] for parts in states[1:]], 1)

    model = stateless(Pure(lambda: {name: value.detach() for name, value in params.items()}, apply))

    def made(problem: Problem) -> System:
        def run(params: Tensors, tape: Tape) -> Weighted | None:
            tapes.append(tape)
            try:
                return _forward(problem, params, criterion is not None)
            finally:
                tapes.pop()

        return System(dict(problem.model.params), problem.size, run, lambda a, b: made(problem.rows(a, b)))

    return made(_problem(model, criterion, batch))


def cell_step(cell: nn.RNNCellBase) -> tuple[Callable[..., Any], Tensors, Any]:
    """The step function, parameters and zero state of a cell of torch."""
    name = CELLS[type(cell)]
    name = "rnn_relu_cell" if isinstance(cell, nn.RNNCell) and cell.nonlinearity == "relu" else name
    operator = getattr(_recurrent, name)
    model: Stateless = stateless(cell)

    def step(params: Tensors, h: Any, x: Tensor) -> Any:
        weights = {**model.frozen, **params}
        biases = [weights.get("bias_ih"), weights.get("bias_hh")]
        return operator(x, h, weights["weight_ih"], weights["weight_hh"], *biases)

    zero = cell.weight_hh.detach().new_zeros(cell.hidden_size)
    return step, model.params, (zero, zero.clone()) if isinstance(cell, nn.LSTMCell) else zero


def _forward(problem: Problem, params: Tensors, judged: bool) -> Weighted | None:
    """One loss a sample, if there is a criterion; what is drawn is the same in every pass of as many samples."""
    with forked(0, devices=devices_of(problem)):
        if judged:
            losses = Losses(problem)
            return losses.rows(params, *losses.tensors)
        problem.output(lambda *args, **kwargs: problem.model(params, *args, **kwargs))
        return None


def _problem(model: Any, criterion: Any, batch: Any) -> Problem:
    """As `gf._problem.read`; without a criterion the batch is inputs alone."""
    if criterion is not None:
        return read(CALL, model, criterion, batch)
    inputs = (batch,) if isinstance(batch, Tensor) else batch
    if not isinstance(inputs, (tuple, list)) or not inputs:
        expected = "inputs, or a tuple of them"
        raise TypeError(message(CALL, got=f"{kind_of(batch)} as batch", expected=expected))
    known = stateless(model)
    dim = known.in_dims if isinstance(known.in_dims, int) else known.in_dims[0]
    size = inputs[0].shape[dim]
    # what is never called: the inputs are all that counts
    return read(CALL, model, lambda output, target: output, (*inputs, torch.zeros(size)))
