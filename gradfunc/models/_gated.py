"""Recurrent models with gates."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .._errors import check_int
from .._recurrent import gru_cell, lstm_cell
from .._tree import Tensors
from ._recurrent import Recurrent, State, checked


def lstm(
    inputs: int, hidden: int, *, forget_bias: float = 1.0, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Recurrent:
    """An LSTM (Hochreiter and Schmidhuber 1997) with torch's formulas; the state is `(h, c)`.

    Along c alone a gradient is multiplied by the forget gate, `dc_t / dc_{t-1} = f_t`: with `forget_bias=0`, as
    torch starts, f is about 1/2, and it vanishes like any other (Gers, Schmidhuber and Cummins 2000; Jozefowicz,
    Zaremba and Sutskever 2015, who recommend 1 or more).

    Args:
        inputs: entries of x.
        hidden: entries of h, and of c.
        forget_bias: what the biases of the forget gate add up to at first.
        seed: of the parameters, uniform within `1 / sqrt(hidden)`.
        dtype: of the parameters.

    Raises:
        TypeError, ValueError: sizes below 1.

    Example:
        >>> import gradfunc as gf
        >>> gf.models.lstm(3, 2, forget_bias=5.0).init()["b_ih"][2:4]
        tensor([5., 5.])
    """
    call = f"gf.models.lstm({inputs}, {hidden}, ...)"

    def init() -> Tensors:
        params = _gated_params(call, inputs, hidden, 4, seed, dtype)
        params["b_ih"][hidden : 2 * hidden] = forget_bias
        params["b_hh"][hidden : 2 * hidden] = 0
        return params

    def start(params: Mapping[str, Tensor]) -> State:
        return params["b_hh"].new_zeros(hidden), params["b_hh"].new_zeros(hidden)

    def step(params: Mapping[str, Tensor], state: State, x: Tensor) -> State:
        return lstm_cell(x, tuple(state), *(params[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh")))

    return checked(Recurrent(init, start, step))


def gru(inputs: int, hidden: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Recurrent:
    """A GRU (Cho et al. 2014, arXiv 1406.1078) with torch's formulas: `h_t = z h_{t-1} + (1 - z) n`.

    Args:
        inputs: entries of x.
        hidden: entries of h.
        seed: of the parameters, uniform within `1 / sqrt(hidden)`.
        dtype: of the parameters.

    Raises:
        TypeError, ValueError: sizes below 1.

    Example:
        >>> import torch, gradfunc as gf
        >>> model = gf.models.gru(3, 2)
        >>> model.apply(model.init(), torch.zeros(4, 5, 3)).shape
        torch.Size([4, 5, 2])
    """
    call = f"gf.models.gru({inputs}, {hidden})"

    def init() -> Tensors:
        return _gated_params(call, inputs, hidden, 3, seed, dtype)

    def start(params: Mapping[str, Tensor]) -> State:
        return params["b_hh"].new_zeros(hidden)

    def step(params: Mapping[str, Tensor], state: State, x: Tensor) -> State:
        assert isinstance(state, Tensor)
        return gru_cell(x, state, *(params[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh")))

    return checked(Recurrent(init, start, step))


def _gated_params(call: str, inputs: int, hidden: int, gates: int, seed: int, dtype: torch.dtype) -> Tensors:
    check_int(call, "inputs", inputs, 1)
    check_int(call, "hidden", hidden, 1)
    generator = torch.Generator().manual_seed(seed)
    bound = 1 / math.sqrt(hidden)
    shapes: dict[str, tuple[int, ...]] = {"w_ih": (gates * hidden, inputs), "w_hh": (gates * hidden, hidden)}
    shapes |= dict.fromkeys(("b_ih", "b_hh"), (gates * hidden,))
    return {
        name: torch.empty(shape, dtype=dtype).uniform_(-bound, bound, generator=generator)
        for name, shape in shapes.items()
    }
