"""Batches in an order that is a function of (seed, epoch): from tensors, arrays, or a loader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._errors import check_int, kind_of, message
from .._random import drawing_from, mixed
from .._tree import Ragged, Static, map_all, rows_of, splatted


class Batch(NamedTuple):
    """One batch: arguments for the loss, and which samples of the data these are (None where nobody knows)."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    ids: Tensor | None


class Data(ABC):
    """Batches, as often as asked."""

    batches: int | None  # in one epoch, None for unknown

    @abstractmethod
    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of this epoch, the first `skip` left out."""

    def in_order(self) -> Iterator[Batch]:
        """The batches once, as the data stand."""
        return self.epoch(0)

    def identity(self) -> dict[str, Any]:
        """What two runs must have in common for the one to go on where the other stopped."""
        return {}

    def generators(self) -> list[torch.Generator]:
        """Generators of the user's own that an epoch draws from."""
        return []


@dataclass(frozen=True, eq=False)
class InMemory(Data):
    """Tensors with the samples in dimension 0."""

    data: Any
    size: int
    batch_size: int
    shuffle: bool
    drop_last: bool
    seed: int
    like: Tensor

    @property
    def batches(self) -> int:  # type: ignore[override]
        """Whole ones, and a shorter last one unless it is dropped."""
        return self.size // self.batch_size if self.drop_last else -(-self.size // self.batch_size)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """Cut from a permutation of the samples."""
        generator = torch.Generator().manual_seed(mixed(self.seed, epoch))
        order = torch.randperm(self.size, generator=generator) if self.shuffle else torch.arange(self.size)
        return self._cut(order, range(skip, self.batches))

    def in_order(self) -> Iterator[Batch]:
        """The same without a permutation, nothing dropped."""
        return self._cut(torch.arange(self.size), range(-(-self.size // self.batch_size)))

    def _cut(self, order: Tensor, numbers: range) -> Iterator[Batch]:
        for k in numbers:
            index = order[k * self.batch_size : (k + 1) * self.batch_size]
            yield Batch(*splatted(moved(rows_of(self.data, index), self.like)), index)

    def identity(self) -> dict[str, Any]:
        """Sizes and order."""
        return {
            "samples": self.size,
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
        }


@dataclass(frozen=True, eq=False)
class Loader(Data):
    """A `DataLoader`, or anything else that can be iterated again and again."""

    loader: Iterable[Any]
    seed: int
    like: Tensor

    @property
    def batches(self) -> int | None:  # type: ignore[override]
        """As the loader says."""
        try:
            return len(self.loader) if isinstance(self.loader, Sized) else None
        except TypeError:  # a loader of a data set without length
            return None

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """What the loader gives; draws from torch's global generator are from one of this epoch instead."""
        generator = torch.Generator().manual_seed(mixed(self.seed, epoch))
        with drawing_from(generator):
            batches = iter(self.loader)
        while True:
            with drawing_from(generator):
                batch = next(batches, _END)
            if batch is _END:
                return
            if skip:
                skip -= 1
                continue
            yield Batch(*splatted(moved(batch, self.like)), None)

    def identity(self) -> dict[str, Any]:
        """Its length."""
        return {"batches": self.batches}

    def generators(self) -> list[torch.Generator]:
        """Of the loader and its samplers."""
        holders = [self.loader, getattr(self.loader, "sampler", None), getattr(self.loader, "batch_sampler", None)]
        holders.append(getattr(holders[-1], "sampler", None))
        found = [getattr(holder, "generator", None) for holder in holders]
        return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


_END = object()


class Order(NamedTuple):
    """How data in memory become batches; None where nothing was said. `either`: for a loader it is not meant."""

    batch_size: int | None = None
    shuffle: bool | None = None
    drop_last: bool | None = None
    seed: int = 0
    either: bool = False


def read_data(call: str, name: str, data: Any, like: Tensor, order: Order) -> Data:
    """Tensors or arrays, alone, in a tuple or in a mapping, each of which may be a nest of them; else a loader.

    Raises:
        TypeError: neither.
        ValueError: no samples; tensors of other lengths; options that a loader has itself; an iterator.
    """
    data, (batch_size, shuffle, drop_last, seed, either) = map_arrays(data, like), order
    if batch_size is not None:
        check_int(call, "batch_size", batch_size, 1)
    if _in_memory(data):
        size, length = _size(call, name, data), batch_size or 32
        if drop_last and size < length:
            got = f"{size} samples, batch_size={length} and drop_last=True"
            raise ValueError(message(call, got=got, expected="at least one whole batch"))
        return InMemory(data, size, length, shuffle is not False, bool(drop_last), seed, like)
    if not isinstance(data, Iterable):
        expected = "tensors or arrays with the samples in dimension 0, or a loader of batches"
        do = "Wrap a data set in torch.utils.data.DataLoader." if hasattr(data, "__getitem__") else ""
        raise TypeError(message(call, got=f"{kind_of(data)} as {name}", expected=expected, do=do))
    if isinstance(data, Iterator):
        do = "Pass the loader itself, or a list of batches."
        raise ValueError(message(call, got=f"an iterator as {name}", expected="what can be iterated again", do=do))
    for option, value in {"batch_size": batch_size, "shuffle": shuffle, "drop_last": drop_last}.items():
        if value is not None and not either:
            do = "A loader has its own batches and order; leave it out."
            raise ValueError(message(call, got=f"{option}={value!r} beside a loader", expected=f"no {option}", do=do))
    return Loader(data, seed, like)


def map_arrays(batch: Any, like: Tensor) -> Any:
    """numpy arrays as tensors: floating ones in the parameters' dtype, whole numbers as int64."""
    if isinstance(batch, np.ndarray):
        tensor = torch.from_numpy(np.ascontiguousarray(batch))
        if tensor.is_floating_point():
            return tensor.to(like.dtype)
        return tensor if tensor.dtype == torch.bool or tensor.is_complex() else tensor.long()
    if isinstance(batch, Mapping):
        return {key: map_arrays(value, like) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        values = [map_arrays(value, like) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    return batch


def moved(batch: Any, like: Tensor) -> Any:
    """A batch where the parameters are."""
    return map_all(lambda tensor: tensor.to(like.device), map_arrays(batch, like))


def _in_memory(data: Any) -> bool:
    columns = list(_columns(data))
    if not columns or not all(isinstance(column, (Tensor, Ragged, Static)) for column in columns):
        return False
    # a sequence of nothing but nests is one of batches
    return not isinstance(data, (tuple, list)) or any(isinstance(item, (Tensor, Ragged)) for item in data)


def _columns(data: Any) -> Iterator[Any]:
    if isinstance(data, (tuple, list, Mapping)):
        for item in data.values() if isinstance(data, Mapping) else data:
            yield from _columns(item)
    else:
        yield data


def _size(call: str, name: str, data: Any) -> int:
    sizes = {_length(column) for column in _columns(data) if not isinstance(column, Static)}
    if len(sizes) != 1 or None in sizes:
        got = f"{name} with {sorted(str(size) for size in sizes)} samples"
        raise ValueError(message(call, got=got, expected="tensors with the same number of samples in dimension 0"))
    size = sizes.pop()
    if not size:
        raise ValueError(message(call, got=f"{name} of 0 samples", expected="at least one"))
    return size


def _length(column: Tensor | Ragged) -> int | None:
    if isinstance(column, Ragged):
        return len(column.samples)
    return column.shape[0] if column.dim() else None
