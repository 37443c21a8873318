"""Torch's generators by name."""

from __future__ import annotations

import hashlib

import torch


def named_generator(*key: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded by a hash of the key, such as (seed, parameter), that is the same in every process.

    What other keys draw changes nothing. The same numbers on the same kind of device.
    """
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)  # 63 bits is what it takes
