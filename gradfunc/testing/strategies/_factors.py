"""Random factors and, by plain loops in float64, their rows. A new kind joins by one maker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..._factors import Dense, Factor, Gradient, Gradients, Grouped, Outer, Rows, Steps, Unfolded


@dataclass(frozen=True)
class Geometry:
    """B samples, T positions, a matrix of O x I entries viewed as `shape`, and how memory is laid out."""

    size: int
    t: int
    inputs: int
    outputs: int
    layout: str = "plain"
    device: str = "cpu"
    dtype: torch.dtype = torch.float64
    seed: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.outputs, self.inputs)


@dataclass(frozen=True)
class Made:
    """A factor and its rows `[B, *shape]`, in float64 on the CPU."""

    factor: Factor
    rows: Tensor


def _random(geometry: Geometry, generator: torch.Generator, *shape: int) -> Tensor:
    """Numbers `[B, ...]` in the layout that is asked for."""
    drawn = torch.randn(*shape, generator=generator, dtype=torch.float64).to(geometry.dtype).to(geometry.device)
    if geometry.layout == "time first" and len(shape) == 3:
        return drawn.transpose(0, 1).contiguous().transpose(0, 1)
    if geometry.layout == "strided":
        return torch.stack([drawn, drawn + 1], -1)[..., 0]
    return drawn


def products(x: Tensor, g: Tensor) -> Tensor:
    """`sum_t g_bt x_bt^T`, entry by entry."""
    x, g = x.double().cpu(), g.double().cpu()
    rows = torch.zeros(len(x), g.shape[2], x.shape[2], dtype=torch.float64)
    for t in range(x.shape[1]):
        rows += g[:, t, :, None] * x[:, t, None, :]
    return rows


def outer(geometry: Geometry, generator: torch.Generator) -> Made:
    size, t, inputs, outputs = geometry.size, geometry.t, geometry.inputs, geometry.outputs
    x, g = _random(geometry, generator, size, t, inputs), _random(geometry, generator, size, t, outputs)
    return Made(Outer(x, g, geometry.shape), products(x, g).reshape(size, *geometry.shape))


def turned(geometry: Geometry, generator: torch.Generator) -> Made:
    """The same entries as a product of other features: `[I, O]` in memory, viewed as `[O, I]`."""
    size, t, inputs, outputs = geometry.size, geometry.t, geometry.inputs, geometry.outputs
    x, g = _random(geometry, generator, size, t, outputs), _random(geometry, generator, size, t, inputs)
    return Made(Outer(x, g, geometry.shape), products(x, g).reshape(size, *geometry.shape))


def unfolded(geometry: Geometry, generator: torch.Generator) -> Made:
    """A convolution along one dimension: T images of a sample, windows of two pixels where there are two."""
    size, t, entries, channels = geometry.size, geometry.t, geometry.inputs, geometry.outputs
    kernel = 2 if entries and entries % 2 == 0 else 1
    x = _random(geometry, generator, size, t, entries // kernel, 4)
    g = _random(geometry, generator, size, t, channels, 5 - kernel)
    dense = torch.zeros(size, channels, entries // kernel, kernel, dtype=torch.float64)
    for k in range(kernel):
        for place in range(5 - kernel):
            dense[..., k] += products(x[..., place + k], g[..., place])
    steps = Steps((channels, entries // kernel, kernel), (1,), (0,), (1,))
    return Made(Unfolded(x, g, geometry.shape, steps), dense.reshape(size, *geometry.shape))


def grouped(geometry: Geometry, generator: torch.Generator) -> Made:
    """Two matrices where the outputs are even in number, and positions that meet one or the other."""
    size, t, inputs, outputs = geometry.size, geometry.t, geometry.inputs, geometry.outputs
    count = 2 if outputs and outputs % 2 == 0 else 1
    each = outputs // count
    index = torch.randint(count, (size, t), generator=generator)
    x, g = _random(geometry, generator, size, t, inputs), _random(geometry, generator, size, t, each)
    dense = torch.zeros(size, count, each, inputs, dtype=torch.float64)
    for b in range(size):
        for s in range(t):
            dense[b, index[b, s]] += g[b, s].double().cpu()[:, None] * x[b, s].double().cpu()
    return Made(Grouped(index.to(geometry.device), x, g, geometry.shape), dense.reshape(size, *geometry.shape))


def rows(geometry: Geometry, generator: torch.Generator) -> Made:
    size, t, d, count = geometry.size, geometry.t + 1, geometry.inputs, geometry.outputs
    t = t if count else 0
    index = torch.randint(max(1, count), (size, t), generator=generator)
    g = _random(geometry, generator, size, t, d)
    dense = torch.zeros(size, count, d, dtype=torch.float64)
    for b in range(size):
        for s in range(t):
            dense[b, index[b, s]] += g[b, s].double().cpu()
    return Made(Rows(index.to(geometry.device), g, geometry.shape), dense.reshape(size, *geometry.shape))


def dense(geometry: Geometry, generator: torch.Generator) -> Made:
    values = _random(geometry, generator, geometry.size, *geometry.shape)
    return Made(Dense(values), values.double().cpu())


MAKERS: dict[str, Callable[[Geometry, torch.Generator], Made]] = {
    "outer": outer,
    "turned": turned,
    "unfolded": unfolded,
    "grouped": grouped,
    "rows": rows,
    "dense": dense,
}


@dataclass(frozen=True)
class Gathered:
    """Gradients and, beside them, their rows."""

    gradients: Gradients
    rows: dict[str, Tensor]
    geometry: Geometry

    @property
    def size(self) -> int:
        return self.geometry.size


def gathered(geometry: Geometry, uses: Sequence[Sequence[str]]) -> Gathered:
    """One parameter for each of `uses`."""
    generator = torch.Generator().manual_seed(geometry.seed)
    gradients, dense_rows = {}, {}
    for k, kinds in enumerate(uses):
        made = [MAKERS[kind](geometry, generator) for kind in kinds]
        like = torch.empty((), dtype=geometry.dtype, device=geometry.device).expand(geometry.shape)
        name = f"{k}: {' + '.join(kinds) or 'nothing'}"
        gradients[name] = Gradient.of(like, geometry.size, [one.factor for one in made])
        dense_rows[name] = sum(
            (one.rows for one in made), torch.zeros(geometry.size, *geometry.shape, dtype=torch.float64)
        )
    return Gathered(gradients, dense_rows, geometry)
