"""How much of the past the states of a reservoir hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..._errors import check_int, kind_of, message
from ...models import Recurrent


@dataclass(frozen=True, eq=False)
class MemoryCapacity:
    """What `gf.diagnose.memory_capacity` measured.

    Attributes:
        total: the sum over delays.
        by_delay: `[delays]`, the squared correlation for k = 1, 2, ...
        hidden: n, which `total` cannot exceed.
    """

    total: float
    by_delay: Tensor
    hidden: int


def memory_capacity(
    model: Recurrent,
    *,
    delays: int | None = None,
    length: int = 4000,
    washout: int = 500,
    ridge: float = 1e-9,
    seed: int = 0,
) -> MemoryCapacity:
    """The short-term memory capacity `sum_k r^2(u_{t-k}, y_k)` of a recurrent model (Jaeger 2001, GMD report 152).

    The model is driven by u, independent and uniform in [-0.5, 0.5]; for every delay k a linear readout y_k of its
    states is fitted to `u_{t-k}` by ridge regression on the first half of the steps, and correlated with it on the
    second. For independent inputs the sum over all delays is at most n, the size of the state (Jaeger's proposition 2);
    on the second half it may exceed the truth by chance, about 1 / steps a delay, as any squared correlation does.

    Args:
        model: such as `gf.models.echo_state(1, n)`, with one input; its state as a whole is read.
        delays: the longest k; 2 n for None.
        length: steps that are fitted and tested.
        washout: steps before, in which the start is forgotten.
        ridge: the penalty, times the number of steps.
        seed: of u.

    Raises:
        TypeError, ValueError: no recurrent model; counts below 1; a negative penalty.

    Example:
        >>> import gradfunc as gf
        >>> model = gf.models.echo_state(1, 20, spectral_radius=0.9, input_scale=0.1)
        >>> 5 < gf.diagnose.memory_capacity(model, length=2000).total < 20
        True
    """
    from sklearn.linear_model import Ridge

    call = "gf.diagnose.memory_capacity(model, ...)"
    if not isinstance(model, Recurrent):
        raise TypeError(message(call, got=kind_of(model), expected="a recurrent model of gf.models"))
    for name, value, least in (("length", length, 4), ("washout", washout, 0), ("seed", seed, 0)):
        check_int(call, name, value, least)
    if not isinstance(ridge, (int, float)) or not ridge >= 0:
        raise ValueError(message(call, got=f"ridge={ridge!r}", expected="a number >= 0"))
    params = model.init()
    h = model.start(params)
    hidden = sum(part.numel() for part in ((h,) if isinstance(h, Tensor) else h))
    count = 2 * hidden if delays is None else delays
    check_int(call, "delays", count, 1)
    like = next(iter(params.values()))
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(count + washout + length, generator=generator, dtype=torch.float64) - 0.5
    states = []
    with torch.no_grad():
        for x in u.to(like).unbind():
            h = model.step(params, h, x[None])
            states.append(torch.cat([part.flatten() for part in ((h,) if isinstance(h, Tensor) else h)]))
    first = count + washout
    seen = torch.stack(states[first:]).double().cpu().numpy()
    y = torch.stack([u[first - k : first - k + length] for k in range(1, count + 1)], 1).numpy()
    half = length // 2
    scale = np.maximum(seen[:half].std(0), np.finfo(np.float64).tiny)  # the penalty is then of standardised states
    fitted = Ridge(alpha=ridge * half).fit(seen[:half] / scale, y[:half])
    predicted = fitted.predict(seen[half:] / scale)
    return _capacity(predicted, y[half:], hidden)


def _capacity(predicted: np.ndarray, target: np.ndarray, hidden: int) -> MemoryCapacity:
    a, b = predicted - predicted.mean(0), target - target.mean(0)
    spread = (a**2).sum(0) * (b**2).sum(0)
    squared = np.divide((a * b).sum(0) ** 2, spread, out=np.zeros_like(spread), where=spread > 0)
    return MemoryCapacity(float(squared.sum()), torch.as_tensor(squared), hidden)
