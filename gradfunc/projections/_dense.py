"""Independent entries: normal numbers, or signs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._random import Draw
from ._entrywise import Entrywise
from ._keys import by_tails, by_variance, checked, key_of


@dataclass(frozen=True)
class _Dense(Entrywise):
    """A matrix of independent entries of variance 1 / size, drawn as they are needed.

    Column e of a parameter's part is the draw of `size` float32 numbers by sample e under the key (seed, name), so it
    depends on nothing else: neither the kind of a factor, nor its dtype, nor how many columns are drawn at a time.
    """

    def columns(self, name: str, entries: Tensor) -> Tensor:
        """`[n, size]`: the matrix for n entries of the parameter `name`, float32."""
        raise NotImplementedError

    def _held(self, samples: int) -> int:
        return max(self.size, samples)

    def _add(self, out: Tensor, name: str, entries: Tensor, rows: Tensor) -> None:
        out.addmm_(rows, self.columns(name, entries).to(rows.dtype))

    def error(self, failure: float = 0.01) -> float:
        """The eps such that |<Pu, Pv> - <u, v>| <= eps |u| |v| for given u, v, but with probability `failure`.

        The smaller of two bounds: `4 exp(-size/2 (eps^2/2 - eps^3/3)) = failure` (Achlioptas 2003, lemma 5), and
        Chebyshev's with the variance.
        """
        chebyshev = by_variance(f"{self.kind}(...).error(failure)", self.variance, failure)
        return min(chebyshev, by_tails(self.size, failure))


@dataclass(frozen=True)
class Gaussian(_Dense):
    """Independent normal entries of variance 1 / size. Made by `gf.projections.gaussian`."""

    kind: ClassVar[str] = "gaussian"

    def columns(self, name: str, entries: Tensor) -> Tensor:
        """`[n, size]`: the matrix for n entries of the parameter `name`, float32."""
        draws = Draw(key_of(self.seed, name), 0, entries).normal((self.size,), torch.float32, entries.device)
        return draws.div_(math.sqrt(self.size))


@dataclass(frozen=True)
class Rademacher(_Dense):
    """Independent signs over the root of size, 32 of a drawn word. Made by `gf.projections.rademacher`."""

    kind: ClassVar[str] = "rademacher"

    def columns(self, name: str, entries: Tensor) -> Tensor:
        """`[n, size]`: the matrix for n entries of the parameter `name`, float32."""
        words = Draw(key_of(self.seed, name), 0, entries).bits((-(-self.size // 32),), entries.device)
        places = torch.arange(32, device=entries.device)
        signs = (words[..., None] >> places & 1).flatten(-2)[..., : self.size]
        one = torch.tensor(1 / math.sqrt(self.size), dtype=torch.float32, device=entries.device)
        return torch.where(signs.bool(), one, -one)


def gaussian(size: int, seed: int = 0) -> Gaussian:
    """A matrix of independent N(0, 1 / size): <Pu, Pv> has mean <u, v> and variance (|u|^2 |v|^2 + <u, v>^2) / size.

    It draws `size` normal numbers for each entry of a row: the most expensive. Draws go through a float64 logarithm and
    may differ between devices in the last bit, about once in 2^29.

    Args:
        size: how many numbers a row becomes, at least 1.
        seed: another matrix for each, at least 0.

    Raises:
        TypeError, ValueError: something else.

    Example:
        >>> import gradfunc as gf
        >>> projection = gf.projections.gaussian(512, seed=1)
        >>> projection.columns("weight", torch.arange(3)).shape, round(projection.error(0.01), 2)
        (torch.Size([3, 512]), 0.24)
    """
    checked("gf.projections.gaussian(size, seed)", size, seed)
    return Gaussian(size, seed)


def rademacher(size: int, seed: int = 0) -> Rademacher:
    """A matrix of independent signs over sqrt(size) (Achlioptas 2003): a 32nd of the draws of `gaussian`.

    <Pu, Pv> has mean <u, v> and variance (|u|^2 |v|^2 + <u, v>^2 - 2 sum_e u_e^2 v_e^2) / size. The same bits on every
    device.

    Args:
        size: how many numbers a row becomes, at least 1.
        seed: another matrix for each, at least 0.

    Raises:
        TypeError, ValueError: something else.

    Example:
        >>> import gradfunc as gf
        >>> f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())
        >>> g = f({"w": torch.zeros(1000)}, torch.ones(3, 1000))
        >>> g.project(gf.projections.rademacher(64)).shape
        torch.Size([3, 64])
    """
    checked("gf.projections.rademacher(size, seed)", size, seed)
    return Rademacher(size, seed)
