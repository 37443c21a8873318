"""Rows in a few numbers each: what a projection is, and a random one."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .._random import Draw, derived_key
from ._blocks import fitting
from ._factor import Factor


class Projection(Protocol):
    """A linear map of a whole row to `size` numbers, parameter by parameter."""

    @property
    def size(self) -> int:
        """How many numbers."""

    def apply(self, name: str, factor: Factor) -> Tensor:
        """This factor's part of the parameter `name`'s part: `[B, size]`."""


@dataclass(frozen=True)
class Gaussian:
    """Independent normal entries of variance 1 / size, drawn as they are needed.

    Column e of a parameter's part is the draw of `size` float32 numbers by sample e under the key (seed, name), so it
    depends on nothing else: neither the kind of a factor, nor its dtype, nor how many columns are drawn at a time.

    Attributes:
        size: how many numbers a row becomes.
        seed: another matrix for each.
        drawn: about how many entries of the matrix are held at a time.
    """

    size: int
    seed: int = 0
    drawn: int = 2**20

    def columns(self, name: str, entries: Tensor) -> Tensor:
        """`[n, size]`: the matrix for n entries of the parameter `name`, float32."""
        digest = hashlib.sha256(name.encode()).digest()
        key = derived_key(self.seed, int.from_bytes(digest[:8], "little"))
        draws = Draw(key, 0, entries).normal((self.size,), torch.float32, entries.device)
        return draws.div_(math.sqrt(self.size))

    def apply(self, name: str, factor: Factor) -> Tensor:
        """Some entries of the rows at a time, times their columns."""
        some = factor.tensors[-1]
        out = some.new_zeros(factor.size, self.size, dtype=factor.dtype)
        if not self.size or not factor.size:
            return out
        for at, rows in factor.pieces(fitting(self.drawn, max(self.size, factor.size))):
            entries = torch.arange(at.start, at.stop, device=some.device) if isinstance(at, slice) else at
            out.addmm_(rows, self.columns(name, entries).to(rows.dtype))
        return out


def gaussian(size: int, seed: int = 0) -> Gaussian:
    """A dense Gaussian projection to `size` numbers, N(0, 1/size): it keeps squared norms in expectation.

    Example:
        >>> projection = gaussian(8, seed=1)
        >>> projection.columns("weight", torch.arange(3)).shape
        torch.Size([3, 8])
    """
    return Gaussian(size, seed)
