"""One weight at every time step; torch's recurrent layers are time-first inside, whatever `batch_first` says."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ._case import add, add_module, inputs, weights

X = inputs(("T", 3))
TIME_FIRST = {"in_dims": 1, "out_dims": 1}


class Outputs(nn.Module):
    """A recurrent layer without its last state."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


for name, make in [("LSTM", nn.LSTM), ("GRU", nn.GRU), ("RNN", nn.RNN)]:
    kinds = {"layer.weight_ih_l0": "outer", "layer.weight_hh_l0": "outer"}
    add_module(f"{name}, batch first", lambda make=make: Outputs(make(3, 4, batch_first=True)), X, kinds)
    add_module(f"{name}, time first", lambda make=make: Outputs(make(3, 4)), X, kinds, options=TIME_FIRST)
    add_module(
        f"{name}, two layers both ways",
        lambda make=make: Outputs(make(3, 2, num_layers=2, bidirectional=True, batch_first=True)),
        X,
    )
add_module("RNN of relus, no bias", lambda: Outputs(nn.RNN(3, 4, nonlinearity="relu", bias=False, batch_first=True)), X)
add_module("LSTM with projections", lambda: Outputs(nn.LSTM(3, 4, proj_size=2, batch_first=True)), X)


class Cells(nn.Module):
    """A cell in a Python loop, from a learned first state."""

    def __init__(self, cell):
        super().__init__()
        self.cell, self.first = cell(3, 4), nn.Parameter(torch.zeros(4))

    def forward(self, x):
        state = self.first.expand(len(x), 4)
        lstm = isinstance(self.cell, nn.LSTMCell)
        state = (state, state.tanh()) if lstm else state
        out = []
        for step in x.unbind(1):
            state = self.cell(step, state)
            out.append(state[0] if lstm else state)
        return torch.stack(out, 1)


for cell in (nn.GRUCell, nn.LSTMCell, nn.RNNCell):
    add_module(f"{cell.__name__} in a loop", lambda cell=cell: Cells(cell), X)


def recurrence(p, x):
    """The state's weight is used once a step, the input's once for all steps."""
    inside, states = x @ p["u"], []
    state = torch.zeros_like(inside[..., 0, :])
    for t in range(x.shape[-2]):
        state = torch.tanh(state @ p["w"] + inside[..., t, :])
        states.append(state)
    return torch.stack(states, -2)


def time_first(p, x):
    """States `[B, 4]` of all steps stacked as `[T, B, 4]`, then one product over all rows."""
    states = torch.stack([(step @ p["u"]).tanh() for step in x.unbind(1)])
    return (states.flatten(0, 1) @ p["w"]).view(x.shape[1], len(x), 4).transpose(0, 1)


def diagonal(p, x):
    """A diagonal state space, by powers of the decay."""
    decay = torch.exp(-p["a"].exp())
    lag = (torch.arange(x.shape[-2])[:, None] - torch.arange(x.shape[-2])).clamp_min(0)
    kernel = decay ** lag.unsqueeze(-1) * (torch.ones(x.shape[-2], x.shape[-2]).tril() > 0).unsqueeze(-1)
    return torch.einsum("tsd,...sd->...td", kernel, x * p["b"])


def fixed_point(p, x):
    z = torch.zeros_like(x)
    for _ in range(5):
        z = torch.tanh(F.linear(z, p["w"]) * 0.5 + x)
    return z


def differential(p, x):
    """Euler steps through a small network."""
    for _ in range(4):
        x = x + 0.25 * F.linear(F.linear(x, p["w"], p["b"]).tanh(), p["v"])
    return x


own = weights(u=(3, 4), w=(4, 4))
BOTH = {"u": "outer", "w": "outer"}
add("recurrence by hand", own, X, recurrence, "alike", BOTH)
add("rows of all steps, time first", own, X, time_first, "stacked", BOTH)
add("diagonal state space", weights(a=(3,), b=(3,)), X, diagonal, "alike")
add("fixed point", weights(w=(3, 3)), X, fixed_point, "alike", {"w": "outer"})
add("Euler steps", weights(w=(5, 3), b=(5,), v=(3, 5)), X, differential, "alike", {"w": "outer", "v": "outer"})


class Packed(nn.Module):
    """Sequences of several lengths; rows of a packed sequence belong to fewer and fewer samples."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out = pad_packed_sequence(self.layer(packed)[0], batch_first=True, total_length=x.shape[1])[0]
        return self.head(out.sum(1))


def lengths(draw, size, length):
    return draw(size, length, 3), draw.ints(length, size) + 1


def all_of_length_one(params, batch):
    return params, (batch[0], torch.ones_like(batch[1]))


for name, make in [("LSTM", nn.LSTM), ("GRU", nn.GRU)]:
    add_module(
        f"packed {name}",
        lambda make=make: Packed(make),
        lengths,
        native=True,
        degenerate=all_of_length_one,
    )
