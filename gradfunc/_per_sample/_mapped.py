"""Rows that are another source's, scaled, with every entry through a function."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .. import _factors
from .._engines import Block, Source
from .._factors import Entrywise, Gradients
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
            dense = {name: self._fn(name)(value) for name, value in piece.dense().items()}
            return block._replace(grads=_factors.from_rows(dense))
        grads: Gradients = {}
        for name, gradient in block.grads.items():
            if name in self.names or piece.coefficient(name) is not None:
                grads |= _factors.through({name: gradient}, self._fn(name), piece.coefficient)
            else:
                grads[name] = gradient
        return block._replace(grads=grads)

    def values(self, at: At) -> Block:
        """Those of the source."""
        return self.source.values(at)

    def unused(self, at: At) -> Tensor:
        """Those of the source."""
        return self.source.unused(at)

    def _fn(self, name: str) -> Entrywise:
        return self.fn if name in self.names else as_it_is


def as_it_is(values: Tensor) -> Tensor:
    """Of what is scaled alone."""
    return values
