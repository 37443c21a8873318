"""One layer in one direction by hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._cell import Cell, State, Step, gru_step, input_gates, lstm_step, plain, relu_step, tanh_step
from ._kernels import GRU, LSTM, RNN, Kind, Weights
from ._layer import Layer
from ._nodes import RecurrentProduct, RecurrentScan

_KINDS: dict[Step, Kind] = {lstm_step: LSTM(), gru_step: GRU(), tanh_step: RNN(relu=False), relu_step: RNN(relu=True)}


def fast(
    x: Tensor, sizes: Sequence[int] | None, state: State, cell: Cell, step: Step, *, reverse: bool
) -> tuple[Tensor, State]:
    """As `plain`, for tensors that no transform of torch.func follows; packed sequences by `plain` itself."""
    if sizes is not None:
        return plain(x, sizes, state, cell, step, reverse=reverse)
    flat, sizes = input_gates(x.flatten(0, 1), cell, step), x.shape[:2]
    state = tuple(s.to(flat.dtype) for s in state)
    layer = Layer.of(x, state, cell, step, flat.dtype, reverse)
    w_hh, b_hh, w_hr = layer.weights
    weights = Weights(w_hh.detach(), *(t if t is None else t.detach() for t in (b_hh, w_hr)))
    kind = _KINDS[step]
    with torch.no_grad(), torch._C.DisableTorchFunction():  # a mode would be asked about every kernel of every step
        # in the storage of the gates, which nothing else holds, or reads in the graph
        run = kind.run(flat.detach().unflatten(0, sizes), state, weights, reverse)
    if not torch.is_grad_enabled() or not any(t is not None and t.requires_grad for t in (x, *state, *cell)):
        return run.after, run.last
    # torch's stubs leave `apply` untyped
    hidden = RecurrentProduct.apply(layer, False, w_hh, b_hh, run.before)  # type: ignore[no-untyped-call]
    projected = None
    if w_hr is not None:
        projected = RecurrentProduct.apply(layer, True, w_hr, None, run.inside)  # type: ignore[no-untyped-call]
    given = (flat.unflatten(0, sizes), hidden, projected, *state)
    h, *rest = RecurrentScan.apply(layer, kind, run, weights, *given)  # type: ignore[no-untyped-call]
    return h, (h[0 if reverse else -1], *rest)
