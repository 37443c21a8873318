"""Rows that come from elsewhere, such as a file, as a value; and the factors of a value, to be kept elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from .._engines import Source
from .._factors import Gradients, scaled
from .._tree import At, Tensors
from ._chunks import Chunks
from ._scales import Scales
from ._value import PerSampleGrads


def from_source(source: Source, shapes: Tensors, losses: Tensor, weights: Tensor, name: str) -> PerSampleGrads:
    """A value whose rows `source` reads, a chunk at a time.

    Args:
        source: of the rows.
        shapes: what the parameters look like; their values are not read.
        losses: numerators, `[B]`.
        weights: `[B]`.
        name: of the engine, and why there is no other.
    """
    return PerSampleGrads(
        names=tuple(shapes),
        batch_size=source.size,
        engine=name,
        _losses=losses,
        _weights=weights,
        _aux=None,
        _source=source,
        _shapes=shapes,
        _scales=Scales(),
        _chunks=Chunks.choose("auto", shapes, source.size, whole=True),
        _reason="rows are read, not computed",
        _uses={},
        _slow=set(),
        _watched=(),
    )


def factors_of(g: PerSampleGrads, query: str) -> Iterator[tuple[At, Gradients]]:
    """The rows of a value, as factors where it has them, times their coefficients; some samples at a time."""
    for piece in g._pieces(query):
        rows = {name: piece.rows[name] for name in piece.names}
        yield piece.at, scaled(rows, piece.coefficient)
