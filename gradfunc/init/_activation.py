"""An activation as numbers in float64: its values, its derivative by autograd, and where these jump."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from .._errors import kind_of, message, one_of

Array = NDArray[np.float64]
NAMES = (
    *("identity", "linear", "relu", "leaky_relu", "relu6", "elu", "celu", "selu", "gelu", "silu", "mish"),
    *("tanh", "sigmoid", "softplus", "softsign", "logsigmoid", "hardtanh", "hardsigmoid", "hardswish"),
    *("softshrink", "hardshrink", "tanhshrink"),
)
FARTHEST = 1e6  # where jumps are still looked for
CELLS = 8192


class Activation:
    """An elementwise function that was seen to be one.

    Attributes:
        name: how messages call it.
        homogeneous: whether `phi(c x) = c phi(x)` for c > 0, as of relu, so that no factor depends on a variance.
    """

    def __init__(self, call: str, given: str | nn.Module | Callable[[Tensor], Tensor]) -> None:
        self.name, self._function = _resolved(call, given)
        _check_elementwise(call, self)
        x = np.concatenate([-np.geomspace(1e-3, 1e3, 25), np.geomspace(1e-3, 1e3, 25)])
        (y, d), (z, e) = self(x), self(2 * x)
        self.homogeneous = bool(np.allclose(z, 2 * y, 1e-13, 0) and np.allclose(d, e, 1e-13, 0))

    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Values and derivative at points `[n]`; where autograd sees no path the derivative is 0."""
        with torch.inference_mode(False), torch.enable_grad():
            points = torch.from_numpy(np.array(x, dtype=np.float64)).requires_grad_()
            y = self._function(points)
            if not y.requires_grad:
                return y.numpy(), np.zeros_like(x)
            (slope,) = torch.autograd.grad(y.sum(), points, allow_unused=True)
        return y.detach().numpy(), np.zeros_like(x) if slope is None else slope.numpy()

    @functools.cached_property
    def at_zero(self) -> tuple[float, float]:
        """The value at 0, and the mean of the squared slopes on its two sides."""
        _, slopes = self(np.array([-1e-30, 1e-30]))
        return float(self(np.zeros(1))[0][0]), float(np.square(slopes).mean())

    @functools.cached_property
    def jumps(self) -> Array:
        """Where value or derivative jump, in order: of each cell of a fine grid the half that changes more, again.

        Of several jumps in one cell (0.5% of its distance from 0, 1e-5 at least) one is found at first; so again in
        cells that halve towards those found.
        """
        end = math.asinh(FARTHEST / 1e-3)
        grid = 1e-3 * np.sinh(np.linspace(-end, end, CELLS))
        found = self._jumps_between(grid)
        near = np.abs(found) * 0.005 + 1e-5
        beside = np.multiply.outer(near, 0.5 ** np.arange(40.0))
        finer = np.unique(np.concatenate([grid, (found[:, None] + beside).ravel(), (found[:, None] - beside).ravel()]))
        return self._jumps_between(finer) if len(found) else found

    def _jumps_between(self, grid: Array) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            low, high = grid[:-1], grid[1:]
            left, right = np.stack(self(low)), np.stack(self(high))
            for _ in range(64):
                middle = (low + high) / 2
                between = np.stack(self(middle))
                first = np.abs(between - left).max(axis=0) > np.abs(right - between).max(axis=0)
                high, right = np.where(first, middle, high), np.where(first, between, right)
                low, left = np.where(first, low, middle), np.where(first, left, between)
            size = 1.0 + np.maximum(np.abs(left), np.abs(right))
            return np.unique(high[(np.abs(right - left) > 1e-9 * size).any(axis=0)])


def _resolved(call: str, given: Any) -> tuple[str, Callable[[Tensor], Tensor]]:
    if isinstance(given, str):
        one_of(call, "activation", given, NAMES, "Pass any other elementwise function as a callable.")
        return repr(given), (lambda x: x) if given in ("identity", "linear") else getattr(F, given)
    if isinstance(given, nn.Module):
        with torch.inference_mode(False):
            state = {
                name: value.detach().to("cpu", torch.float64 if value.is_floating_point() else value.dtype, copy=True)
                for name, value in [*given.named_parameters(), *given.named_buffers()]
            }
        return type(given).__name__, lambda x: torch.func.functional_call(given, state, (x,))
    if callable(given):
        return getattr(given, "__name__", type(given).__name__), given
    raise TypeError(message(call, got=f"activation={given!r}", expected="a name, a module or a function of a tensor"))


def _check_elementwise(call: str, phi: Activation) -> None:
    expected = "an elementwise function of a tensor: each entry of the result made from that entry, and nothing else"
    x = torch.linspace(-2.3, 2.9, 20, dtype=torch.float64, device="cpu").reshape(4, 5)
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
        y = phi._function(x.clone())
        if not isinstance(y, Tensor) or y.shape != x.shape or y.dtype != x.dtype:
            said = f"{list(y.shape)} {y.dtype}" if isinstance(y, Tensor) else kind_of(y)
            raise TypeError(message(call, got=f"{said} from {phi.name} of a [4, 5] torch.float64", expected=expected))
        same = functools.partial(torch.allclose, rtol=1e-12, atol=0, equal_nan=True)
        if not same(phi._function(x.clone()), y):
            raise ValueError(message(call, got=f"{phi.name}, twice not the same", expected=expected))
        moved = not same(phi._function(x.flip(0, 1)), y.flip(0, 1))
        for entry in range(x.numel()):
            other = x.clone()
            other.view(-1)[entry] += 1.7
            rest = torch.arange(x.numel()) != entry
            moved |= not same(phi._function(other).reshape(-1)[rest], y.reshape(-1)[rest])
    if moved:
        got = f"{phi.name}, which moves entries other than the one that changes"
        raise ValueError(message(call, got=got, expected=expected))
    if not bool(torch.isfinite(y).all()):
        raise ValueError(message(call, got=f"{phi.name}, not finite in [-2.3, 2.9]", expected="finite values"))
