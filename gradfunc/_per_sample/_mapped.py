"""Rows that are another source's, scaled, with every entry through a function."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .. import _factors
from .._engines import Block, Source
from .._factors import Entrywise
from .._tree import At
from ._live import LivePiece
from ._piece import Piece
from ._scales import Scales


@dataclass(frozen=True)
class MappedSource:
    """The parameters `names` through `fn`, the others scaled alone. `live` rows keep their graph."""

    source: Source
    scales: Scales
    names: tuple[str, ...]
    fn: Entrywise
    live: bool

    @property
    def size(self) -> int:
        """Number of samples."""
        return self.source.size

    def plan(self, chunk: int) -> list[At]:
        """That of the source."""
        return self.source.plan(chunk)

    def rows(self, at: At) -> Block:
        """Rows of the source, and what is to be done to them when they are asked."""
        block = self.source.rows(at)
        names = tuple(block.grads)
        piece = (LivePiece if self.live else Piece)(at, block.grads, self.scales, names)
        if self.live:
            dense = {name: self.fn(v) if name in self.names else v for name, v in piece.dense().items()}
            return block._replace(grads=_factors.from_rows(dense))
        chosen = {name: gradient for name, gradient in block.grads.items() if name in self.names}
        others = {name: gradient for name, gradient in block.grads.items() if name not in self.names}
        made = _factors.through(chosen, self.fn, piece.coefficient) | _factors.scaled(others, piece.coefficient)
        return block._replace(grads={name: made[name] for name in block.grads})

    def values(self, at: At) -> Block:
        """Those of the source."""
        return self.source.values(at)

    def unused(self, at: At) -> Tensor:
        """Those of the source."""
        return self.source.unused(at)
