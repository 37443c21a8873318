"""Generators of our own for a while: seeded inside, the global ones restored after."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def forked(seed: int, *streams: int, devices: Iterable[torch.device]) -> Iterator[None]:
    """Draw from generators seeded by (seed, *streams) inside; restore the global ones after.

    Only the generators of the CPU and of `devices` are touched. They belong to all threads, so one at a time has them.
    """
    value = mixed(seed, *streams)
    cuda = sorted({device.index or 0 for device in devices if device.type == "cuda"})
    with _ONE_AT_A_TIME, torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(value)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(value)
        yield


@contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Let what draws from the CPU's global generator draw from this one inside."""
    with _ONE_AT_A_TIME, torch.random.fork_rng(devices=()):
        torch.default_generator.set_state(generator.get_state())
        yield
        generator.set_state(torch.default_generator.get_state())


def mixed(seed: int, *streams: int) -> int:
    """A seed for `manual_seed` that differs with each of these."""
    # Odd multipliers keep neighbouring streams apart; 63 bits is what manual_seed takes.
    value = seed * 0x9E3779B97F4A7C15
    for stream in streams:
        value = (value ^ stream) * 0xBF58476D1CE4E5B9
    return value % 2**63


def generator_states() -> list[Tensor]:
    """Of the CPU, and of CUDA devices if they are in use."""
    cuda = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
    return [generator.get_state() for generator in (torch.default_generator, *cuda)]


def same_states(before: list[Tensor], after: list[Tensor]) -> bool:
    """Whether nothing was drawn in between; a device that came into use does not count."""
    return all(torch.equal(a, b) for a, b in zip(before, after, strict=False))
