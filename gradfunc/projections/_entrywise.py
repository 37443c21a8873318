"""What projections have in common that take the entries of a row one by one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._factors import Factor, fitting


@dataclass(frozen=True)
class Entrywise:
    """A matrix whose column of an entry depends on seed, parameter and entry, and is drawn when it is needed.

    Attributes:
        size: how many numbers a row becomes.
        seed: another matrix for each.
        drawn: about how many entries are held at a time; no part of what the projection is.
    """

    size: int
    seed: int = 0
    drawn: int = field(default=2**20, compare=False, repr=False)
    kind: ClassVar[str]

    def apply(self, name: str, factor: Factor) -> Tensor:
        """Some entries of the rows at a time, through their columns: `[B, size]`."""
        some = factor.tensors[-1]
        out = some.new_zeros(factor.size, self.size, dtype=factor.dtype)
        if not self.size or not factor.size:
            return out
        for at, rows in factor.pieces(fitting(self.drawn, self._held(factor.size))):
            entries = torch.arange(at.start, at.stop, device=some.device) if isinstance(at, slice) else at
            self._add(out, name, entries, rows)
        return out

    def _held(self, samples: int) -> int:
        """How many numbers are held for each entry."""
        raise NotImplementedError

    def _add(self, out: Tensor, name: str, entries: Tensor, rows: Tensor) -> None:
        """Add what these entries of the rows, `[B, n]`, contribute to `out`."""
        raise NotImplementedError

    @property
    def variance(self) -> float:
        """Of <Pu, Pv> for unit vectors, at most: 2 / size."""
        return 2 / self.size

    def to_dict(self) -> dict[str, Any]:
        """What names the projection, JSON-ready; `gf.projections.from_dict` reads it."""
        return {"kind": self.kind, "size": self.size, "seed": self.seed}
