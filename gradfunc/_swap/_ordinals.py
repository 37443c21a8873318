"""Which draw of which forward pass is the next one.

The ordinal lives in the forked CPU generator: its seed is `base + ordinal`, set anew after each draw. Activation
checkpointing restores that generator before it runs a part of the forward pass again, in the backward pass or in a
gradient taken inside the loss, and so restores the ordinal with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from .._errors import message
from .._random import derived_key, forked


@dataclass
class Forward:
    """A forward pass that began at seed `base` and made `count` draws."""

    sample: int | Tensor
    base: int
    count: int = 0


class Ordinals:
    """The forward passes of one mode."""

    def __init__(self, call: str) -> None:
        self.call = call
        self._forwards: list[Forward] = []
        self._extra: int | None = None  # draws of the backward pass itself, while it runs

    def begin(self, sample: int | Tensor) -> None:
        """A forward pass begins."""
        # A seed that no one else is likely to set, derived from the fork's: seeds near 0 are popular.
        high, low = derived_key(torch.default_generator.initial_seed(), 0)
        base = (high << 32 | low) >> 2
        while any(_told_apart(f.sample, sample) and f.base <= base < f.base + f.count for f in self._forwards):
            base = (base + 2**32) % 2**62
        torch.default_generator.manual_seed(base)
        self._forwards.append(Forward(sample, base))

    def next(self) -> tuple[int | Tensor, int]:
        """Sample and ordinal of the draw that is to be made now."""
        return self._next_forward() if self._extra is None else self._next_backward(self._extra)

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Inside, draws are those of forward passes run again, or of the backward pass itself."""
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        outer = self._extra
        # This seed is no forward pass's, but for a chance of about 2^-63 a draw.
        with forked(self._now.base, 1, devices=[torch.device("cuda", i) for i in devices]):
            self._extra = 0
            try:
                yield
            finally:
                self._extra = outer

    @property
    def _now(self) -> Forward:
        if not self._forwards:
            raise RuntimeError("a draw before begin(sample)")
        return self._forwards[-1]

    def _next_forward(self) -> tuple[int | Tensor, int]:
        now = self._now
        use = torch.default_generator.initial_seed() - now.base
        if not 0 <= use <= now.count:  # the loss seeded the generator itself
            use = now.count
        now.count = max(now.count, use + 1)
        torch.default_generator.manual_seed(now.base + use + 1)
        return now.sample, use

    def _next_backward(self, extra: int) -> tuple[int | Tensor, int]:
        seed = torch.default_generator.initial_seed()
        for again in reversed(self._forwards):
            if again.base <= seed < again.base + again.count:
                torch.default_generator.manual_seed(seed + 1)
                return again.sample, seed - again.base
        if torch.is_grad_enabled():
            raise RuntimeError(
                message(
                    self.call,
                    got="a forward pass run again in the backward pass that draws what it did not draw before",
                    expected="the draws of the first run",
                    do="Use torch.utils.checkpoint.checkpoint with preserve_rng_state=True, its default, not False.",
                )
            )
        self._extra = extra + 1
        return self._now.sample, self._now.count + extra


def _told_apart(a: int | Tensor, b: int | Tensor) -> bool:
    """Whether two passes are of different samples. Passes under vmap are not run again, so need no seeds apart."""
    return isinstance(a, int) and isinstance(b, int) and a != b
