"""Gaussian noise as a pure function of a key."""

from __future__ import annotations

import torch
from torch import Tensor

from .._errors import message
from .._random import named_generator
from .._tree import wide


def gaussian(like: Tensor, *key: object) -> Tensor:
    """Standard normal numbers of the shape of `like`, in its accumulation dtype, on its device.

    The key, such as (stage, seed, count of updates, parameter), is hashed, which is the same in every process; what
    other keys draw changes nothing. A device draws by its own generator: the same numbers on the same kind of device.
    Global generators stay as they are.
    """
    generator = named_generator(*key, device=like.device)
    return torch.randn(like.shape, generator=generator, dtype=wide(like.dtype), device=like.device)


def check_seed(call: str, seed: object) -> None:
    """Raise TypeError unless `seed` is an int."""
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(message(call, got=f"seed={seed!r}", expected="an int"))
