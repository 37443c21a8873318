"""One weight at every time step; torch's recurrent layers are time first inside, whatever batch_first says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ._model import B, Net, add, floats

X = floats((3, 8), (3, 12))
FUSED = "all steps are one operation, which hooks do not see into"
SCANNED: dict[str, Any] = {"vmap": False, "scanned": True}


def _layer(make: Callable[[], nn.RNNBase]) -> Callable[[], nn.Module]:
    """A recurrent layer without its last state."""
    return lambda: Net(lambda m, x: m.layer(x)[0], layer=make())


def _kinds(make: Callable[[], nn.RNNBase]) -> dict[str, str]:
    return {f"layer.{name}": "dense" if "bias" in name else "outer" for name, _ in make().named_parameters()}


def _add(name: str, hazard: str, make: Callable[[], nn.RNNBase], batch: Callable[[], tuple[Tensor, ...]]) -> None:
    add(name, f"{hazard}; vmap has no rule for it", _layer(make), batch, _kinds(make), **SCANNED)


_add("LSTM", FUSED, lambda: nn.LSTM(8, 12, batch_first=True), X)
_add(
    "LSTM, two layers, bidirectional",
    "one direction reads the sequence backwards, the next layer reads both",
    lambda: nn.LSTM(8, 6, num_layers=2, bidirectional=True, batch_first=True),
    floats((2, 8), (2, 12)),
)
_add(
    "LSTM, projection",
    "the state that is fed back is a product of the one inside",
    lambda: nn.LSTM(8, 12, proj_size=10, batch_first=True),
    floats((2, 8), (2, 10)),
)
_add("GRU", FUSED, lambda: nn.GRU(8, 12, batch_first=True), X)
_add("RNN, relu, no bias", FUSED, lambda: nn.RNN(10, 12, nonlinearity="relu", bias=False, batch_first=True),
     floats((3, 10), (3, 12)))  # fmt: skip


def _time_first(cell: type[nn.LSTM] | type[nn.GRU] | type[nn.RNN]) -> None:
    """Reads `[T, B, 12]`; the states of all steps count."""
    add(
        f"{cell.__name__}, time first, T = B",
        "the dimension of time has the size of the batch, and comes first; vmap has no rule for the layer",
        lambda: Net(lambda m, x: m.layer(x)[0].tanh().sum(0), layer=cell(12, 16)),
        lambda: (torch.randn(B, B, 12), torch.randn(B, 16)),
        _kinds(lambda: cell(12, 16)),
        in_dims=1,
        **SCANNED,
    )


def _in_a_loop(cell: type[nn.RNNCell] | type[nn.GRUCell] | type[nn.LSTMCell]) -> None:
    """A cell a step."""
    add(
        f"{cell.__name__} in a loop, learned first state",
        "a layer that runs once a step, and a state that no sample has touched; vmap has no rule for the cell",
        lambda: Net(_looped, cell=cell(8, 12), first=nn.Parameter(torch.randn(12))),
        X,
        {
            "cell.weight_ih": "outer",
            "cell.weight_hh": "outer",
            "cell.bias_ih": "dense",
            "cell.bias_hh": "dense",
            "first": "dense",
        },
        **SCANNED,
    )


for layer in (nn.LSTM, nn.GRU, nn.RNN):
    _time_first(layer)
for cell in (nn.RNNCell, nn.GRUCell, nn.LSTMCell):
    _in_a_loop(cell)
add(
    "recurrence of linear layers",
    "the same layer at every step: the last call overwrites what the first has saved",
    lambda: Net(_recurrence, inputs=nn.Linear(8, 12), state=nn.Linear(12, 12, bias=False)),
    X,
    {"inputs.weight": "outer", "inputs.bias": "dense", "state.weight": "outer"},
)
add(
    "diagonal state space",
    "powers of a parameter make the kernel, before any data is seen",
    lambda: Net(_state_space, decay=(6,), scale=(6,)),
    floats((4, 6), (4, 6)),
    {"decay": "dense", "scale": "dense"},
)
add(
    "LSTM, packed sequence",
    "rows of fewer and fewer samples a step; lengths are read by Python, which vmap cannot",
    lambda: Net(_packed, layer=nn.LSTM(8, 12, batch_first=True), head=nn.Linear(12, 5)),
    lambda: (torch.randn(5, 3, 8), torch.tensor([2, 3, 1, 3, 2]), torch.randn(5, 5)),
    {**_kinds(lambda: nn.LSTM(8, 12)), "head.weight": "outer", "head.bias": "dense"},
    vmap=False,
)


def _looped(m: Any, x: Tensor) -> Any:
    state: Any = m.first.expand(len(x), -1)
    lstm = isinstance(m.cell, nn.LSTMCell)
    if lstm:
        state = (state, state.tanh())
    outputs = []
    for step in x.unbind(1):
        state = m.cell(step, state)
        outputs.append(state[0] if lstm else state)
    return torch.stack(outputs, 1)


def _recurrence(m: Any, x: Tensor) -> Any:
    state, states = m.inputs(x[:, 0]).tanh(), []
    for step in x.unbind(1):
        state = (m.state(state) + m.inputs(step)).tanh()
        states.append(state)
    return torch.stack(states, 1)


def _state_space(m: Any, x: Tensor) -> Any:
    length = x.shape[1]
    lag = torch.arange(length, device=x.device)[:, None] - torch.arange(length, device=x.device)
    kernel = (-m.decay.exp()).exp() ** lag.clamp_min(0)[..., None] * (lag >= 0)[..., None]
    return torch.einsum("tsd,bsd->btd", kernel, x * m.scale)


def _packed(m: Any, x: Tensor, lengths: Tensor) -> Any:
    packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
    out = pad_packed_sequence(m.layer(packed)[0], batch_first=True, total_length=x.shape[1])[0]
    return m.head(out.sum(1))
