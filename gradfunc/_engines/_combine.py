"""Sources made of sources: rows that are kept, a selection of samples, several batches in one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._factors import concatenated, select
from .._tree import At, at_positions, compact, map_nests, map_tensors, scattered
from ._source import Block, Source, spans


@dataclass(frozen=True)
class KeptSource:
    """Rows that were computed and are held. `origin` is asked what they do not tell, None where they tell all."""

    kept: Block
    origin: Source | None

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.kept.losses)

    def plan(self, chunk: int) -> list[At]:
        """All at once: they are there."""
        return spans(self.size, max(self.size, 1))

    def rows(self, at: At) -> Block:
        """The rows themselves for a stretch, copies for a selection."""
        return self.values(at)._replace(grads=select(self.kept.grads, at))

    def values(self, at: At) -> Block:
        """Losses, weights and auxiliary values."""
        unused = None if self.kept.unused is None else self.kept.unused[at]
        aux = map_tensors(lambda t: t[at], self.kept.aux)
        return Block({}, self.kept.losses[at], self.kept.weights[at], unused, aux)

    def unused(self, at: At) -> Tensor:
        """Known, or asked of the source that computed the rows."""
        if self.kept.unused is not None:
            return self.kept.unused[at]
        assert self.origin is not None
        return self.origin.unused(at)


@dataclass(frozen=True)
class SelectedSource:
    """Samples `index`, `[b]`, of another source."""

    source: Source
    index: Tensor

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.index)

    def plan(self, chunk: int) -> list[At]:
        """Stretches."""
        return spans(self.size, chunk)

    def rows(self, at: At) -> Block:
        """Computed for the selected samples only."""
        return self.source.rows(compact(self.index[at]))

    def values(self, at: At) -> Block:
        """Likewise."""
        return self.source.values(compact(self.index[at]))

    def unused(self, at: At) -> Tensor:
        """Likewise."""
        return self.source.unused(self.index[at])


@dataclass(frozen=True)
class JoinedSource:
    """Several sources; part k holds the samples `positions[k]` of the whole."""

    parts: Sequence[Source]
    positions: Sequence[Tensor]

    @property
    def size(self) -> int:
        """Number of samples."""
        return sum(len(positions) for positions in self.positions)

    def plan(self, chunk: int) -> list[At]:
        """Part by part, each as it is cheapest."""
        parts = zip(self.parts, self.positions, strict=True)
        return [positions[at] for source, positions in parts for at in source.plan(chunk)]

    def rows(self, at: At) -> Block:
        """Each part's own samples by that part, then in the order asked for."""
        return self._gathered(lambda source, own: source.rows(own), at)

    def values(self, at: At) -> Block:
        """Likewise."""
        return self._gathered(lambda source, own: source.values(own), at)

    def unused(self, at: At) -> Tensor:
        """Likewise."""
        return scattered([(where, source.unused(own)) for source, where, own in self._shares(at)])

    def _shares(self, at: At) -> list[tuple[Source, Tensor, At]]:
        """For each part that has some of the samples `at`: where in `at` they are, and its own positions of them."""
        part, local = self._places
        wanted = at_positions(at)
        order = part[wanted].argsort(stable=True)
        shares = []
        for where in order.split(part[wanted].unique(return_counts=True)[1].tolist()):
            first = wanted[where]
            shares.append((self.parts[int(part[first[0]])], where, compact(local[first])))
        return shares

    @functools.cached_property
    def _places(self) -> tuple[Tensor, Tensor]:
        """For each sample its part, and its position there."""
        part = torch.empty(self.size, dtype=torch.int64)
        local = torch.empty(self.size, dtype=torch.int64)
        for k, positions in enumerate(self.positions):
            part[positions] = k
            local[positions] = torch.arange(len(positions))
        return part, local

    def _gathered(self, compute: Callable[[Source, At], Block], at: At) -> Block:
        return gathered([(where, compute(source, own)) for source, where, own in self._shares(at)])


def gathered(parts: Sequence[tuple[At, Block]]) -> Block:
    """Blocks computed for some samples at a time, in the order of the samples."""
    each = [block for _, block in parts]

    def ordered(values: list[Tensor]) -> Tensor:
        return scattered([(where, value) for (where, _), value in zip(parts, values, strict=True)])

    told = [block.unused for block in each if block.unused is not None]
    return Block(
        concatenated([(where, block.grads) for where, block in parts]),
        ordered([block.losses for block in each]),
        ordered([block.weights for block in each]),
        ordered(told) if len(told) == len(each) else None,
        None if each[0].aux is None else map_nests(ordered, [block.aux for block in each]),
    )
