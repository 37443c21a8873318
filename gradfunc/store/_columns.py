"""Columns of rows: one entry a row, or as many as the row says; cut, taken and joined."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._tree import Tensors

LENGTHS = "lengths"


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of several entries each, one after the other.

    Attributes:
        lengths: how many entries each row has, `[n]`, int32.
        tensors: `{name: [sum of lengths, ...]}`.
    """

    lengths: Tensor
    tensors: Tensors

    @property
    def ends(self) -> Tensor:
        """Where each row ends, `[n]`."""
        return self.lengths.cumsum(0, dtype=torch.int64)

    def cut(self, start: int, stop: int) -> Ragged:
        """Some rows: views."""
        first, last = (int(self.lengths[:k].sum()) for k in (start, stop))
        return Ragged(self.lengths[start:stop], {name: value[first:last] for name, value in self.tensors.items()})

    def take(self, at: Tensor) -> Ragged:
        """Copies of the rows at positions `[m]`, in this order."""
        lengths = self.lengths[at]
        starts = (self.ends - self.lengths)[at]
        before = lengths.cumsum(0, dtype=torch.int64) - lengths
        entries = torch.arange(int(lengths.sum())) + (starts - before).repeat_interleave(lengths.long())
        return Ragged(lengths, {name: value[entries] for name, value in self.tensors.items()})


@dataclass(frozen=True, eq=False)
class Part:
    """Rows that belong together, as a shard holds them.

    Attributes:
        count: how many.
        plain: `{name: [count, ...]}`.
        ragged: what has several entries a row, by name.
    """

    count: int
    plain: Tensors
    ragged: Mapping[str, Ragged] = field(default_factory=dict)

    @functools.cached_property
    def sizes(self) -> Tensor:
        """Bytes of the ragged columns of each row, `[n]`; 1 at least, so that rows of nothing come to an end."""
        total = torch.ones(self.count, dtype=torch.int64)
        for ragged in self.ragged.values():
            total += ragged.lengths * sum(t[:1].numel() * t.element_size() for t in ragged.tensors.values())
        return total

    def cut(self, start: int, stop: int | None = None) -> Part:
        """Some rows: views."""
        stop = self.count if stop is None else min(stop, self.count)
        plain = {name: value[start:stop] for name, value in self.plain.items()}
        return Part(stop - start, plain, {name: group.cut(start, stop) for name, group in self.ragged.items()})

    def take(self, at: Tensor) -> Part:
        """Copies of the rows at positions `[m]`, in this order."""
        plain = {name: value[at] for name, value in self.plain.items()}
        return Part(len(at), plain, {name: group.take(at) for name, group in self.ragged.items()})

    def chosen(self, names: Iterable[str]) -> Part:
        """With these columns alone, those of them that there are."""
        kept = set(names)
        plain = {name: value for name, value in self.plain.items() if name in kept}
        return Part(self.count, plain, {name: group for name, group in self.ragged.items() if name in kept})


def columns(parts: Sequence[Part]) -> dict[str, list[Tensor]]:
    """What the parts hold, by the names that a shard has for it; a group that no row has is left out."""
    found = {name: [part.plain[name] for part in parts] for name in parts[0].plain}
    for group, held in _groups(parts).items():
        found[f"{group}/{LENGTHS}"] = [ragged.lengths for ragged in held]
        for name in next(ragged for ragged in held if ragged.tensors).tensors:
            found[f"{group}/{name}"] = [ragged.tensors[name] for ragged in held if ragged.tensors]
    return found


def joined(parts: Sequence[Part]) -> Part:
    """All rows as one part: copies, unless there is one part."""
    if len(parts) == 1:
        return parts[0]
    ragged = {}
    for group, held in _groups(parts).items():
        names = next(one for one in held if one.tensors).tensors
        tensors = {name: torch.cat([one.tensors[name] for one in held if one.tensors]) for name in names}
        ragged[group] = Ragged(torch.cat([one.lengths for one in held]), tensors)
    plain = {name: torch.cat([part.plain[name] for part in parts]) for name in parts[0].plain}
    return Part(sum(part.count for part in parts), plain, ragged)


def parted(parts: Sequence[Part], count: int) -> tuple[list[Part], list[Part]]:
    """The first `count` rows, and the rest: views."""
    first: list[Part] = []
    for k, part in enumerate(parts):
        if part.count >= count:
            rest = [part.cut(count)] if part.count > count else []
            return [*first, part.cut(0, count)], [*rest, *parts[k + 1 :]]
        first.append(part)
        count -= part.count
    return first, []


def _groups(parts: Sequence[Part]) -> dict[str, list[Ragged]]:
    """Of each group that some row has, what every part holds of it: nothing but zero lengths where it lacks it."""
    names = dict.fromkeys(itertools.chain.from_iterable(part.ragged for part in parts))
    found = {}
    for name in names:
        held = [part.ragged.get(name) or Ragged(torch.zeros(part.count, dtype=torch.int32), {}) for part in parts]
        if any(bool(ragged.lengths.any()) for ragged in held):
            found[name] = held
    return found
