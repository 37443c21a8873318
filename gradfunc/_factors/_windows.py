"""What the kernel of a convolution sees at every position: windows of one side, laid as the other side's pixels are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ._blocks import spans


class Steps(NamedTuple):
    """A convolution: the shape of its weight, and how windows are laid, a number for each dimension of the kernel.

    Attributes:
        weight: `[channels, channels / groups, *kernel]`, the channels of the side that is still first.
        groups: of channels, each with a part of the weight.
        transposed: whether windows are taken of the cotangents, as for a transposed convolution, not of the inputs.
    """

    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    transposed: bool = False


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of `moving: [B, images, C, ...]`, as many as `counts` in each dimension."""

    moving: Tensor
    counts: tuple[int, ...]
    steps: Steps

    @property
    def kernel(self) -> tuple[int, ...]:
        """Its size in each dimension."""
        return self.steps.weight[2:]

    @property
    def pixels(self) -> int:
        """Of all images of a sample, those that some window sees, with padding between."""
        return int(self.moving.shape[1]) * math.prod(self._reach)

    def blocks(self, step: int, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Those of some samples at a time, `[b, C * kernel, images * counts]`, each time in the same place."""
        padded = self.padded()
        first, image, channel, *inner = padded.stride()
        across = [a * stride for a, stride in zip(inner, self.steps.stride, strict=True)]
        within = [a * dilation for a, dilation in zip(inner, self.steps.dilation, strict=True)]
        size, images, channels = padded.shape[:3]
        sizes, strides = (channels, *self.kernel, images, *self.counts), (channel, *within, image, *across)
        room = torch.empty(min(step, size), *sizes, dtype=dtype, device=padded.device)
        rank = len(self.kernel)
        for at in spans(size, step):
            block = room[: at.stop - at.start]
            start = padded.storage_offset() + at.start * first
            block.copy_(padded.as_strided(block.shape, (first, *strides), start))
            yield at, block.flatten(2 + rank).flatten(1, 1 + rank)

    def grams(self, step: int, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Inner products of a sample's windows, `[b, T, T]` for T of all images, of some samples at a time.

        That of two windows is a sum, over the kernel, of products of pixels; so those of all pixels are formed first.
        """
        padded = self.padded()
        sizes = (padded.shape[1], *padded.shape[3:]) * 2
        t = padded.shape[1] * math.prod(self.counts)
        for at in spans(len(padded), step):
            seen = padded[at].to(dtype).movedim(2, 1).flatten(2)
            products = (seen.mT @ seen).view(len(seen), *sizes)
            total: Tensor | None = None
            for place in itertools.product(*map(range, self.kernel)):
                own = tuple(map(self._seen, place, self.counts, self.steps.stride, self.steps.dilation))
                part = products[(slice(None), slice(None), *own, slice(None), *own)]
                total = part.clone() if total is None else total.add_(part)
            assert total is not None
            yield at, total.reshape(len(seen), t, t)

    def _seen(self, place: int, count: int, stride: int, dilation: int) -> slice:
        """The pixels that one place of the kernel sees, along one dimension."""
        return slice(place * dilation, place * dilation + (count - 1) * stride + 1, stride)

    @property
    def is_forward(self) -> bool:
        """Whether a convolution of the moving side would give as many positions, as torch's gradients expect."""
        laid = zip(self.moving.shape[3:], self._reach, self.steps.padding, self.steps.stride, strict=True)
        return all(0 <= size + 2 * pad - reach < stride for size, reach, pad, stride in laid)

    def padded(self) -> Tensor:
        """All that windows see, and nothing else."""
        around: list[int] = []
        for reach, size, pad in zip(self._reach, self.moving.shape[3:], self.steps.padding, strict=True):
            around = [pad, reach - size - pad, *around]  # torch pads the last dimension first
        return F.pad(self.moving, around).contiguous()

    @property
    def _reach(self) -> list[int]:
        """Pixels from the first of the first window to the last of the last, in each dimension."""
        laid = zip(self.counts, self.kernel, self.steps.stride, self.steps.dilation, strict=True)
        return [(n - 1) * stride + dilation * (k - 1) + 1 for n, k, stride, dilation in laid]
