"""Gradients of convolutions: windows of one side times the other side, unfolded as they are needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import grad as conv_grad

from .._tree import At, wide
from ._blocks import fitting, slack, spans
from ._factor import Method, Terms
from ._products import BALANCE, gram_by_pieces, of_grams
from ._windows import Steps, Windows

# Entries of windows at once: so few that they are in the cache still when they are multiplied.
_IN_CACHE = 2**20
# An entry of a row costs torch's grouped convolution about as much as so many entries of windows cost to unfold.
_GROUPED = 8
_WEIGHTS: dict[int, Callable[..., Tensor]] = {
    1: conv_grad.conv1d_weight,
    2: conv_grad.conv2d_weight,
    3: conv_grad.conv3d_weight,
}


@dataclass(frozen=True, eq=False)
class Unfolded:
    """`x: [B, T, C, ...]`, `g: [B, T, O, ...]`: inputs and cotangents of a convolution, its weight viewed as `shape`.

    T counts the images of a sample. A row is the product, over all positions, of one side, which is still, and the
    windows of the other, which moves beneath the kernel.
    """

    x: Tensor
    g: Tensor
    shape: tuple[int, ...]
    steps: Steps
    kind: ClassVar[str] = "unfolded"

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.x)

    @property
    def features(self) -> tuple[object, ...]:
        """Sizes of both sides, and how windows are laid."""
        return (tuple(self.x.shape[2:]), tuple(self.g.shape[2:]), self.steps)

    @property
    def dtype(self) -> torch.dtype:
        """That of a product of both, float32 for the half types."""
        return wide(torch.promote_types(self.x.dtype, self.g.dtype))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Both sides."""
        return (self.x, self.g)

    @property
    def reads(self) -> int:
        """Windows and what they are multiplied by."""
        return self._positions * (self.steps.weight[0] + self._columns)

    def select(self, at: At) -> Unfolded:
        """Some of the samples."""
        at = at if isinstance(at, slice) else at.to(self.x.device)
        return replace(self, x=self.x[at], g=self.g[at])

    def mapped(self, fn: Callable[[Tensor], Tensor]) -> Unfolded:
        """The same with other tensors."""
        return replace(self, x=fn(self.x), g=fn(self.g))

    def dense(self) -> Tensor:
        """One product a sample and group, or one grouped convolution for all."""
        if self._is_grouped:
            return self._by_groups()
        out = torch.empty(self.size, *self._matrices, dtype=self.dtype, device=self.x.device)
        for at, still, windows in self.blocks(_IN_CACHE):
            torch.matmul(still, windows.mT, out=out[at])
        return out.view(self.size, *self.shape)

    def pieces(self, width: int) -> Iterator[tuple[slice, Tensor]]:
        """Some channels of the still side at a time, all entries of each where they fit."""
        groups, channels, entries = self._matrices
        for k in range(groups):
            for o in spans(channels, width // max(1, entries)):
                blocks = self.blocks(width * self.size)
                none = self.x.new_zeros(0, o.stop - o.start, entries, dtype=self.dtype)
                rows = torch.cat([none, *(still[:, k, o] @ windows[:, k].mT for _, still, windows in blocks)]).flatten(
                    1
                )
                start = (k * channels + o.start) * entries
                for i in spans(rows.shape[1], max(1, width)):
                    yield slice(start + i.start, start + i.stop), rows[:, i]

    def method(self, scratch: int) -> Method:
        """The cheaper of products of positions, as sums of products of pixels, and products of windows."""
        t, rows, each = self._positions, math.prod(self.shape), self.dtype.itemsize
        kernel, (still, moving) = math.prod(self.steps.weight[2:]), self._sides
        pixels = self._windows.pixels
        gram = 2 * (pixels**2 * moving.shape[2] + t**2 * (still.shape[2] + kernel)), each * (2 * pixels**2 + 6 * t**2)
        direct = 2 * t * rows, each * 2 * (t * self._columns + rows)
        by_gram = self.steps.groups == 1 and gram[0] + BALANCE * gram[1] <= direct[0] + BALANCE * direct[1]
        flops, moved = gram if by_gram else direct
        why = f"{gram[0]:.3g} flops a sample by gram of the pixels, {direct[0]:.3g} directly"
        if self.steps.groups > 1:
            why = f"{self.steps.groups} groups, each with rows of its own"
        return Method("gram" if by_gram else "direct", self.size * flops, self.size * moved, why)

    def squares(self, scratch: int) -> Terms:
        """Squared norms by that method, some samples at a time."""
        value = self.x.new_zeros(self.size, dtype=self.dtype)
        magnitude = torch.full_like(value, slack(self.dtype, math.prod(self.shape)))
        if self.method(scratch).name == "direct":
            for at, still, windows in self.blocks(scratch, math.prod(self.shape)):
                value[at] = torch.linalg.vector_norm(still @ windows.mT, dim=(1, 2, 3)).square()
            return Terms(value, magnitude)
        step = fitting(scratch, 2 * self._windows.pixels**2)
        for at, products in self._windows.grams(step, self.dtype):
            still = self._still(at)
            value[at], magnitude[at] = of_grams(products, still.mT @ still, self._columns, self.steps.weight[0])
        return Terms(value, magnitude)

    def gram(self, other: Unfolded, scratch: int, *, by_rows: bool = False) -> Terms:
        """Products of rows, some entries at a time."""
        return gram_by_pieces(self, other, scratch)

    def dots(self, directions: Tensor, scratch: int) -> Tensor:
        """The rows of a few samples times every direction."""
        v = directions.reshape(len(directions), math.prod(self.shape)).to(self.dtype)
        blocks = self.blocks(scratch, math.prod(self.shape))
        parts = [(still @ windows.mT).flatten(1) @ v.T for _, still, windows in blocks]
        return torch.cat(parts) if parts else v.new_zeros(0, len(v))

    def weighted_sum(self, c: Tensor | None, scratch: int) -> Tensor:
        """torch's own gradient of the weight, the smaller side scaled."""
        out = torch.zeros(self.steps.weight, dtype=self.dtype, device=self.x.device)
        for at in spans(self.size, fitting(scratch, self.x[:1].numel() + self.g[:1].numel())):
            still, moving = (side[at].to(self.dtype) for side in self._sides)
            if c is not None:
                scale = c[at].to(self.dtype).reshape(-1, *[1] * (still.dim() - 1))
                still, moving = (still * scale, moving) if still.numel() < moving.numel() else (still, moving * scale)
            out += self._weight(moving.flatten(0, 1), still.flatten(0, 1), self.steps.weight, self.steps.groups)
        return out.view(self.shape)

    @property
    def _sides(self) -> tuple[Tensor, Tensor]:
        """The one that is still, and the one that moves beneath the kernel."""
        return (self.x, self.g) if self.steps.transposed else (self.g, self.x)

    @property
    def _windows(self) -> Windows:
        still, moving = self._sides
        return Windows(moving, tuple(still.shape[3:]), self.steps)

    @property
    def _positions(self) -> int:
        still, _ = self._sides
        return int(still.shape[1]) * math.prod(still.shape[3:])

    @property
    def _columns(self) -> int:
        """Entries of a window, of all groups."""
        return math.prod(self.steps.weight[1:]) * self.steps.groups

    @property
    def _matrices(self) -> tuple[int, int, int]:
        """A row as matrices: groups, channels of a group on the still side, entries of its windows."""
        return self.steps.groups, self.steps.weight[0] // self.steps.groups, math.prod(self.steps.weight[1:])

    def _still(self, at: slice) -> Tensor:
        """`[b, channels, T]`."""
        return self._sides[0][at].to(self.dtype).movedim(2, 1).flatten(2)

    def blocks(self, scratch: int, beside: int = 0) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Some samples at a time: the still side `[b, groups, channels, T]`, the windows `[b, groups, entries, T]`."""
        step = fitting(min(scratch, _IN_CACHE), self._positions * self._columns + beside)
        for at, windows in self._windows.blocks(step, self.dtype):
            still = self._still(at).unflatten(1, self._matrices[:2])
            yield at, still, windows.unflatten(1, (self.steps.groups, -1))

    @property
    def _is_grouped(self) -> bool:
        """Whether one convolution with a group for each sample is quicker: where positions are many, and rows small."""
        fast = self.dtype == torch.float32 and self.x.device.type == "cpu" and torch.backends.mkldnn.is_available()
        channels = self._sides[1].shape[2] // self.steps.groups
        return fast and self.size > 0 and self._positions > _GROUPED * self.steps.weight[0] and channels >= _GROUPED

    def _by_groups(self) -> Tensor:
        still, moving = (side.to(self.dtype).movedim(1, 0).flatten(1, 2) for side in self._sides)
        shape = (self.size * self.steps.weight[0], *self.steps.weight[1:])
        return self._weight(moving, still, shape, self.size * self.steps.groups).reshape(self.size, *self.shape)

    def _weight(self, moving: Tensor, still: Tensor, shape: tuple[int, ...], groups: int) -> Tensor:
        _, stride, padding, dilation, *_ = self.steps
        windows = Windows(moving[:, None], tuple(still.shape[2:]), self.steps)
        if not windows.is_forward:  # a transposed convolution may leave out more of its output than a stride
            moving, padding = windows.padded()[:, 0], (0,) * len(stride)
        return _WEIGHTS[len(stride)](moving, shape, still, stride, padding, dilation, groups)
