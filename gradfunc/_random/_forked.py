"""Generators of our own for a while: seeded inside, the global ones restored after."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def forked(seed: int, stream: int, devices: Iterable[torch.device]) -> Iterator[None]:
    """Draw from generators seeded by (seed, stream) inside; restore the global ones after.

    Only the generators of the CPU and of `devices` are touched.
    """
    # splitmix64's increment keeps neighbouring streams apart; 63 bits is what manual_seed takes.
    value = (seed * 0x9E3779B97F4A7C15 + stream * 0xBF58476D1CE4E5B9) % 2**63
    cuda = sorted({device.index or 0 for device in devices if device.type == "cuda"})
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(value)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(value)
        yield
