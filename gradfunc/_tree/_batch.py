"""Batches: nests whose tensors carry the samples in dimension 0, taken apart and put together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .._errors import kind_of, message
from ._marks import Ragged, Static
from ._nests import map_nests


class Batch(NamedTuple):
    """The tensors of `(args, kwargs)` apart from everything static, and the way back."""

    tensors: list[Tensor]
    rebuild: Callable[[list[Any]], tuple[tuple[Any, ...], dict[str, Any]]]
    size: int | None
    kind: Any = None  # structure, and what is no tensor of a sample


class Group(NamedTuple):
    """Samples of the same shapes, and where they stand in the whole batch: `[b]`."""

    positions: Tensor
    batch: Batch


def read_batch(call: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, rows: bool) -> Batch:
    """Separate the tensors of a batch from its static leaves.

    With `rows`, every tensor must carry the samples in dimension 0; their number is `size`.

    Raises:
        TypeError: on a numpy array, a ragged argument, or tensors in a container that is no pytree.
        ValueError: with `rows`, when there is no tensor, a tensor has no dimension, or sizes disagree.
    """
    leaves, spec = pytree.tree_flatten((args, kwargs))
    for leaf in leaves:
        if isinstance(leaf, Ragged):
            do = "Pad its samples to one tensor and pass their lengths."
            raise TypeError(message(call, got="a ragged argument", expected="tensors that hold the batch", do=do))
        if isinstance(leaf, np.ndarray) or _hides_tensors(leaf):
            raise TypeError(
                message(
                    call,
                    got=f"{_called(leaf)} in the batch, which would be the same for every sample",
                    expected="tensors in tuples, lists, dicts or registered pytrees",
                    do="Convert arrays with torch.as_tensor, and other containers with dict(...) or vars(...); "
                    "gf.static(...) marks what is meant to be the same for every sample.",
                )
            )
    where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    tensors = [leaves[i] for i in where]
    plain = [leaf.value if isinstance(leaf, Static) else leaf for leaf in leaves]

    def rebuild(values: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        filled = list(plain)
        for i, value in zip(where, values, strict=True):
            filled[i] = value
        out: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_unflatten(filled, spec)
        return out

    size = _common_size(call, tensors, _paths(args, kwargs)) if rows else None
    kind = str(spec), tuple(_static_kind(leaf) for leaf in leaves if not isinstance(leaf, Tensor))
    return Batch(tensors, rebuild, size, kind)


def splatted(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a batch."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (tuple(batch), {}) if isinstance(batch, (tuple, list)) else ((batch,), {})


def read_groups(call: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Group]:
    """Read a batch of samples, some of whose arguments may be ragged, as groups of equal shapes.

    Raises:
        TypeError, ValueError: as `read_batch`; ragged arguments that disagree in B.
    """
    leaves, spec = pytree.tree_flatten((args, kwargs))
    where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Ragged)]
    if not where:
        batch = read_batch(call, args, kwargs, rows=True)
        return [Group(torch.arange(batch.size or 0), batch)]
    size = _ragged_size(call, leaves)
    kinds: dict[Any, list[int]] = {}
    for i in range(size):
        kinds.setdefault(tuple(_kind(call, leaves[k].samples[i]) for k in where), []).append(i)
    groups = []
    for positions in kinds.values() or [[]]:
        chosen = torch.tensor(positions, dtype=torch.int64)
        cut = [leaf[chosen] if isinstance(leaf, Tensor) and leaf.dim() else leaf for leaf in leaves]
        for k in where:
            cut[k] = map_nests(_stacked, [leaves[k].samples[i] for i in positions]) if positions else torch.zeros(0)
        group_args, group_kwargs = pytree.tree_unflatten(cut, spec)
        groups.append(Group(chosen, read_batch(call, group_args, group_kwargs, rows=True)))
    return groups


def _ragged_size(call: str, leaves: list[Any]) -> int:
    sizes = {
        len(leaf.samples) if isinstance(leaf, Ragged) else len(leaf)
        for leaf in leaves
        if isinstance(leaf, Ragged) or (isinstance(leaf, Tensor) and leaf.dim())
    }
    if len(sizes) > 1:
        raise ValueError(
            message(
                call,
                got=f"arguments of {sorted(sizes)} samples",
                expected="the same number of samples in every ragged argument and tensor",
                do="gf.static(...) marks what all samples share.",
            )
        )
    return sizes.pop()


def _kind(call: str, sample: Any) -> Any:
    """What samples must share to run together: structure, shapes, and whatever is no tensor."""
    leaves, spec = pytree.tree_flatten(sample)
    for leaf in leaves:
        if isinstance(leaf, (Ragged, np.ndarray)) or _hides_tensors(leaf):
            raise TypeError(
                message(call, got=f"{_called(leaf)} in a ragged sample", expected="tensors, or nests of them")
            )
    return str(spec), tuple(
        _shape(leaf) if isinstance(leaf, Tensor) else id(leaf) if isinstance(leaf, Static) else _static_kind(leaf)
        for leaf in leaves
    )


def _shape(tensor: Tensor) -> Any:
    return tuple(tensor.shape), tensor.dtype, tensor.device


def _static_kind(leaf: Any) -> Any:
    if isinstance(leaf, Static):
        inside, spec = pytree.tree_flatten(leaf.value)
        return str(spec), tuple(_shape(x) if isinstance(x, Tensor) else _static_kind(x) for x in inside)
    try:
        hash(leaf)
    except TypeError:
        return id(leaf)
    return (type(leaf), leaf)


def _stacked(leaves: list[Any]) -> Any:
    return torch.stack(leaves) if isinstance(leaves[0], Tensor) else leaves[0]


def _called(leaf: Any) -> str:
    return "a numpy array" if isinstance(leaf, np.ndarray) else kind_of(leaf)


def _hides_tensors(leaf: Any) -> bool:
    """A container that is no pytree, so that its tensors would not be seen."""
    if isinstance(leaf, Static):
        return False
    if isinstance(leaf, Mapping):
        return any(isinstance(value, Tensor) for value in leaf.values())
    if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
        return any(isinstance(getattr(leaf, f.name, None), Tensor) for f in dataclasses.fields(leaf))
    return False


def _common_size(call: str, tensors: list[Tensor], paths: list[str]) -> int:
    if not tensors:
        raise ValueError(
            message(
                call,
                got="a batch without a tensor",
                expected="at least one tensor with the samples in dimension 0",
                do="The number of samples is read from the batch.",
            )
        )
    for path, tensor in zip(paths, tensors, strict=True):
        if tensor.dim() == 0:
            raise ValueError(
                message(
                    call,
                    got=f"{path} without a dimension",
                    expected="every tensor of the batch to carry the samples in dimension 0",
                    do="Mark what all samples share with gf.static(...).",
                )
            )
    sizes = {tensor.shape[0] for tensor in tensors}
    if len(sizes) > 1:
        listed = ", ".join(f"{path} {tuple(t.shape)}" for path, t in zip(paths, tensors, strict=True))
        raise ValueError(
            message(
                call,
                got=f"tensors that disagree in the number of samples: {listed}",
                expected="the same size in dimension 0 of every tensor",
                do="Mark what all samples share with gf.static(...).",
            )
        )
    return sizes.pop()


def _paths(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    names = []
    for root, tree in (("args", args), ("kwargs", kwargs)):
        leaves, _ = pytree.tree_flatten_with_path(tree)
        names += [root + pytree.keystr(path) for path, leaf in leaves if isinstance(leaf, Tensor)]
    return names
