"""A reservoir: a recurrence that is not trained."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .._errors import check_int, message
from .._tree import Tensors
from ._recurrent import Recurrent, leaky_rnn


def echo_state(
    inputs: int,
    hidden: int,
    *,
    spectral_radius: float = 0.9,
    input_scale: float = 1.0,
    leak: float = 1.0,
    activation: Callable[[Tensor], Tensor] = torch.tanh,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Recurrent:
    """An echo state network's reservoir: random weights, scaled, never trained (Jaeger 2001, GMD report 148).

    What is trained is a linear readout of its states; no gradient goes through time. `w_hh` is normal and then scaled
    to `spectral_radius`, below 1 for the echo of a start to die out; inputs are uniform; there is no bias. Leave its
    parameters out of what is updated. `gf.diagnose.memory_capacity` says how much of the past its states hold.

    Args:
        inputs: entries of x.
        hidden: entries of h.
        spectral_radius: of `w_hh`, above 0.
        input_scale: `w_ih` is uniform in [-input_scale, input_scale].
        leak: as in `gf.models.leaky_rnn`.
        activation: as in `gf.models.rnn`.
        seed: of the weights.
        dtype: of the weights.

    Raises:
        TypeError, ValueError: sizes below 1; a radius not above 0; a leak outside (0, 1].

    Example:
        >>> import torch, gradfunc as gf
        >>> w = gf.models.echo_state(1, 50, spectral_radius=0.8, dtype=torch.float64).init()["w_hh"]
        >>> round(float(torch.linalg.eigvals(w).abs().max()), 12)
        0.8
    """
    call = f"gf.models.echo_state({inputs}, {hidden}, ...)"
    if not isinstance(spectral_radius, (int, float)) or not 0 < spectral_radius < math.inf:
        raise ValueError(message(call, got=f"spectral_radius={spectral_radius!r}", expected="a number > 0"))
    check_int(call, "hidden", hidden, 1)
    drawn = torch.randn(hidden, hidden, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weight = drawn * (spectral_radius / torch.linalg.eigvals(drawn).abs().max())
    base = leaky_rnn(inputs, hidden, leak=leak, activation=activation, recurrent=weight, seed=seed + 1, dtype=dtype)

    def init() -> Tensors:
        params = base.init()
        params["w_ih"] *= input_scale * math.sqrt(hidden)
        params["b"].zero_()
        return params

    return Recurrent(init, base.start, base.step)
