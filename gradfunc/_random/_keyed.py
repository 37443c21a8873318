"""Draws that are a pure function of (seed, step, sample, use): the same whatever else is drawn, when, in what batch.

Element e of a draw reads word e % 4 of block e // 4 (two words an element: words 2 (e % 2) and the next of block
e // 2; three: block e), where

    block n of use u of sample s  =  philox(counter=(n, u, s mod 2^32, s div 2^32), key=derived_key(seed, step))

Words, `keep`, `bernoulli`, `uniform`, `integers` and `permutation` come from integers by exact steps: the same bits on
every device. `normal` and `exponential` go through a logarithm or the inverse normal distribution in float64, where
devices may differ in the last bit of float64; rounded to a smaller type that shows about once in 2^29 (float32) draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._philox import MASK, philox4x32

# Blocks a pass: few enough for a core's cache, which halves the time, in torch as many for each thread as it takes to
# wake one. On other devices passes are limited by memory alone.
_LANES_NUMPY = 1 << 14
_LANES_THREAD = 1 << 15
_LANES_ELSEWHERE = 1 << 24
# Bits of a uniform number: what the mantissa holds below 1.
_UNIFORM_BITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


def derived_key(seed: int, step: int) -> tuple[int, int]:
    """The key of all draws of a step: two words of philox at `step`, keyed by `seed` (both modulo 2^64)."""
    counter = (step & MASK, step >> 32 & MASK, 0, 0)
    first, second, _, _ = philox4x32(counter, (seed & MASK, seed >> 32 & MASK))
    return first, second


@dataclass(frozen=True)
class Draw:
    """One draw of one sample.

    `sample` is an integer, or an int64 tensor: 0-dim under vmap (one id a lane), else `[*ids]`, and draws are then of
    shape `[*ids, *shape]`.
    """

    key: tuple[int, int]
    use: int
    sample: int | Tensor

    def bits(self, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """32-bit words, as int64."""
        return self._filled(shape, device, torch.int64, 1, lambda word: word)

    def keep(self, shape: Sequence[int], p: float, device: torch.device | str = "cpu") -> Tensor:
        """True with probability 1 - p to within 2^-33: where word < round((1 - p) 2^32). Exact for p = 0 and 1."""
        bound = round((1 - p) * 2**32)
        return self._filled(shape, device, torch.bool, 1, lambda word: word < bound)

    def bernoulli(self, p: Tensor) -> Tensor:
        """True with probability p, elementwise: where word < p 2^32, compared in float64, which holds both exactly.

        So the probability is p rounded up to a multiple of 2^-32: exact for 0, 1 and all p with so few bits.
        """
        return self.bits(p.shape, p.device) < p.detach().double() * 2.0**32

    def uniform(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """Multiples of 2^-b in [0, 1), equally likely; b = 53, 24, 11, 8 for float64, float32, float16, bfloat16."""
        if dtype.is_complex:
            return torch.view_as_complex(self.uniform((*shape, 2), dtype.to_real(), device))
        bits = _UNIFORM_BITS[dtype]
        if bits > 32:
            return self._filled(shape, device, dtype, 2, lambda v, w: _joined(v, w, bits).to(dtype) * 2.0**-bits)
        return self._filled(shape, device, dtype, 1, lambda word: (word >> (32 - bits)).to(dtype) * 2.0**-bits)

    def normal(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """Standard normal numbers: the inverse distribution function at an open uniform number, in float64, rounded.

        |x| stays below 8.3 for float64, 6.4 for the smaller types. Complex numbers have variance 1 in all.
        """
        if dtype.is_complex:
            return torch.view_as_complex(self.normal((*shape, 2), dtype.to_real(), device)) * math.sqrt(0.5)
        return self._open(shape, dtype, device, torch.special.ndtri)

    def exponential(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """Exponential numbers of rate 1, none below the type's smallest normal number: their logarithm is finite."""
        return self._open(shape, dtype, device, lambda u: -u.log()).clamp_min(torch.finfo(dtype).tiny)

    def integers(self, shape: Sequence[int], low: int, high: int, device: torch.device | str = "cpu") -> Tensor:
        """int64 in [low, high): a word of 63 bits (ranges to 2^32) or 95 bits, modulo the range.

        No value's probability is off by more than a factor 1 +- 2^-31.

        Raises:
            ValueError: on a range of 2^63 or more.
        """
        span = high - low
        if span <= 2**32:
            return self._filled(shape, device, torch.int64, 2, lambda v, w: _joined(v, w, 63) % span + low)
        if span < 2**63:
            return self._filled(shape, device, torch.int64, 3, lambda v, w, x: _long_modulo(v, w, x, span) + low)
        raise ValueError(f"a range of {span} integers")

    def permutation(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        """Of range(n), by sorting words of 63 bits; two are equal, and then in order, with probability < n^2 2^-64."""
        words = self._filled((n,), device, torch.int64, 2, lambda v, w: _joined(v, w, 63))
        return words.sort(dim=-1, stable=True).indices

    def _open(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device | str,
        finish: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """`finish` at a multiple of 2^-b in (0, 1), plus half a step; b = 52 for float64, else 32. All are exact."""
        if dtype == torch.float64:
            return self._filled(shape, device, dtype, 2, lambda v, w: finish((_joined(v, w, 52) + 0.5) * 2.0**-52))
        return self._filled(shape, device, dtype, 1, lambda word: finish((word.double() + 0.5) * 2.0**-32).to(dtype))

    def _filled(
        self,
        shape: Sequence[int],
        device: torch.device | str,
        dtype: torch.dtype,
        words: int,
        finish: Callable[..., Tensor],
    ) -> Tensor:
        size = math.prod(shape)
        plan = _Plan(self.key, self.use, size, torch.device(device), dtype, words, finish)
        if not isinstance(self.sample, Tensor):
            return plan.run(self.sample).reshape(tuple(shape))
        # torch's stubs leave `apply` untyped
        flat: Tensor = _Filled.apply(self.sample.to(plan.device), plan)  # type: ignore[no-untyped-call]
        return flat.reshape((*self.sample.shape, *shape))


def _joined(v: Tensor, w: Tensor, bits: int) -> Tensor:
    """The first `bits` (32 to 63) of two words as one integer."""
    joined = v << (bits - 32)
    joined |= w >> (64 - bits)
    return joined if bits > 53 else joined.double()


def _long_modulo(v: Tensor, w: Tensor, x: Tensor, span: int) -> Tensor:
    """The integer of 63 bits of (v, w) and the 32 of x, modulo a span < 2^63: bit by bit, 2 r + bit less the span."""
    rest = _joined(v, w, 63) % span
    for place in reversed(range(32)):
        room = span - rest  # 2 rest may not fit into int64, so compare first
        rest = torch.where(rest >= room, rest - room, rest * 2) + (x >> place & 1)
        rest = torch.where(rest == span, 0, rest)
    return rest


@dataclass(frozen=True)
class _Plan:
    """How to fill `size` elements: `finish` makes one of every `words` words."""

    key: tuple[int, int]
    use: int
    size: int
    device: torch.device
    dtype: torch.dtype
    words: int
    finish: Callable[..., Tensor]

    def run(self, sample: int | Tensor) -> Tensor:
        """`[*sample.shape, size]`, in passes over blocks."""
        batch, rows = (sample.shape, sample.numel()) if isinstance(sample, Tensor) else ((), 1)
        each = 4 // self.words  # elements a block
        blocks = -(-self.size // each)
        out = torch.empty((*batch, blocks, each), dtype=self.dtype, device=self.device)
        numpy = self._suits_numpy(rows * blocks)
        words, lanes = (self._by_numpy, _LANES_NUMPY) if numpy else (self._by_torch, self._lanes)
        step = max(1, lanes // max(1, rows))
        for start in range(0, blocks, step):
            drawn = words(sample, start, min(start + step, blocks))
            for k in range(each):
                out[..., start : start + step, k] = self.finish(*drawn[k * self.words : (k + 1) * self.words])
        return out.flatten(-2)[..., : self.size]

    @property
    def _lanes(self) -> int:
        return _LANES_THREAD * torch.get_num_threads() if self.device.type == "cpu" else _LANES_ELSEWHERE

    def _suits_numpy(self, blocks: int) -> bool:
        """Whether numpy is quicker: at these integers it is on one core what torch is on two, and calls cost less."""
        return self.device.type == "cpu" and min(torch.get_num_threads(), blocks // _LANES_THREAD) <= 2

    def _by_numpy(self, sample: int | Tensor, start: int, stop: int) -> list[Tensor]:
        ids = sample.numpy()[..., None] if isinstance(sample, Tensor) else sample
        counter = (np.arange(start, stop), self.use, ids & MASK, ids >> 32 & MASK)
        return [torch.from_numpy(word) for word in philox4x32(counter, self.key)]

    def _by_torch(self, sample: int | Tensor, start: int, stop: int) -> tuple[Tensor, ...]:
        ids = sample.unsqueeze(-1) if isinstance(sample, Tensor) else sample
        index = torch.arange(start, stop, device=self.device)
        return philox4x32((index, self.use, ids & MASK, ids >> 32 & MASK), self.key)


class _Filled(torch.autograd.Function):
    """`_Plan.run` on the ids of all samples at once under vmap: in passes, and writing to its own tensors."""

    @staticmethod
    def forward(sample: Tensor, plan: _Plan) -> Tensor:
        return plan.run(sample)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], sample: Tensor, plan: _Plan) -> tuple[Tensor, int]:
        # as above
        flat: Tensor = _Filled.apply(sample.movedim(in_dims[0], 0), plan)  # type: ignore[no-untyped-call]
        return flat, 0

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[None, None]:
        return None, None

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> None:
        return None
