"""Arithmetic on `dict[str, Tensor]`, and batches as nested pytrees: the only import of a pytree library.

Two shapes of data run through gradfunc. *Tensors* are flat dictionaries: parameters, gradients,
directions. *Rows* are such dictionaries with a leading dimension of samples, one row a sample.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ._errors import kind_of, message

Tensors = dict[str, Tensor]


# --- flat dictionaries -------------------------------------------------------------------------


def add(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensors:
    """Entrywise sum of two dictionaries with the same keys."""
    return {name: a[name] + b[name] for name in a}


def subtract(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensors:
    """Entrywise difference of two dictionaries with the same keys."""
    return {name: a[name] - b[name] for name in a}


def scale(a: Mapping[str, Tensor], factor: float | Tensor) -> Tensors:
    """Every tensor times `factor`, dtypes kept."""
    return {name: value * factor for name, value in a.items()}


def dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Inner product over all entries, products in their own precision, summed in float64."""
    return sum((float((a[name] * b[name]).sum(dtype=torch.float64)) for name in a), 0.0)


def norm(a: Mapping[str, Tensor]) -> float:
    """Euclidean norm over all entries, in float64."""
    return math.hypot(*(float(torch.linalg.vector_norm(value, dtype=torch.float64)) for value in a.values()))


def cast(tree: Any, dtype: torch.dtype | None, device: torch.device | str | None = None) -> Any:
    """Move every tensor to `device`, and the floating ones to `dtype`; anything else passes through."""

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.to(device=device, dtype=dtype if leaf.is_floating_point() else None)

    return pytree.tree_map(move, tree)


# --- rows: one leading dimension of samples ------------------------------------------------------


def row_norms(rows: Mapping[str, Tensor]) -> Tensor:
    """Euclidean norm of each row over all tensors: `[B]`, safe from overflow and underflow.

    Every row is divided by its largest entry before squaring, so a finite gradient has a finite norm
    wherever that norm is representable; inf gives inf and NaN gives NaN. Half types accumulate in float32.
    """
    flat = [_flat(value) for value in rows.values() if math.prod(value.shape[1:])]
    if not flat:
        some = next(iter(rows.values()))
        return some.new_zeros(len(some), dtype=wide(some.dtype))
    largest = torch.stack([torch.linalg.vector_norm(value, torch.inf, dim=1) for value in flat]).amax(0)
    unit = torch.where((largest > 0) & largest.isfinite(), largest, torch.ones_like(largest))
    parts = torch.stack([torch.linalg.vector_norm(value / unit[:, None], dim=1) for value in flat])
    norms: Tensor = unit * torch.linalg.vector_norm(parts, dim=0)
    return norms


def row_dots(rows: Mapping[str, Tensor], direction: Mapping[str, Tensor]) -> Tensor:
    """Inner product of each row with `direction`: `[B]`."""
    parts = []
    for name, value in rows.items():
        flat = _flat(value)
        parts.append(flat @ direction[name].reshape(-1).to(flat.dtype))
    return torch.stack(parts).sum(0)


def row_sum(rows: Mapping[str, Tensor], c: Tensor | None = None) -> Tensors:
    """Sum of the rows, or of `c[i]` times row i, in the accumulation dtype.

    A coefficient 0 leaves its row out, even one that holds inf or NaN (0 * NaN is NaN).
    """
    if c is None:
        return {name: value.to(wide(value.dtype)).sum(0) for name, value in rows.items()}
    kept = (c != 0).nonzero()[:, 0]
    out = {}
    for name, value in rows.items():
        chosen = value if len(kept) == len(c) else value[kept]
        flat = _flat(chosen)
        out[name] = (c[kept].to(flat.dtype) @ flat).reshape(value.shape[1:])
    return out


def _flat(value: Tensor) -> Tensor:
    """`[B, *shape]` as `[B, entries]` in the accumulation dtype."""
    return value.reshape(len(value), math.prod(value.shape[1:])).to(wide(value.dtype))


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums are held: float32 for the half types, else the dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


# --- batches: nested pytrees whose tensors carry the samples in dimension 0 ----------------------


class Batch(NamedTuple):
    """The tensors of `(args, kwargs)` apart from everything static, and the way back."""

    tensors: list[Tensor]
    rebuild: Callable[[list[Any]], tuple[tuple[Any, ...], dict[str, Any]]]
    size: int | None


def read_batch(call: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, rows: bool) -> Batch:
    """Separate the tensors of a batch from its static leaves.

    With `rows`, every tensor must carry the samples in dimension 0; their number is `size`.

    Raises:
        TypeError: on a numpy array, or tensors in a container that is no pytree.
        ValueError: with `rows`, when there is no tensor, a tensor has no dimension, or sizes disagree.
    """
    leaves, spec = pytree.tree_flatten((args, kwargs))
    for leaf in leaves:
        if isinstance(leaf, np.ndarray) or _hides_tensors(leaf):
            raise TypeError(
                message(
                    call,
                    got=f"{_called(leaf)} in the batch, which would be the same for every sample",
                    expected="tensors in tuples, lists, dicts or registered pytrees",
                    do="Convert arrays with torch.as_tensor, and other containers with dict(...) or vars(...).",
                )
            )
    where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    tensors = [leaves[i] for i in where]

    def rebuild(values: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        filled = list(leaves)
        for i, value in zip(where, values, strict=True):
            filled[i] = value
        out: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_unflatten(filled, spec)
        return out

    size = _common_size(call, tensors, _paths(args, kwargs)) if rows else None
    return Batch(tensors, rebuild, size)


def _called(leaf: Any) -> str:
    return "a numpy array" if isinstance(leaf, np.ndarray) else kind_of(leaf)


def _hides_tensors(leaf: Any) -> bool:
    """A container that is no pytree, so that its tensors would not be seen."""
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
                    do="Pass what all samples share through the closure of the loss.",
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
                do="Pass what all samples share through the closure of the loss.",
            )
        )
    return sizes.pop()


def _paths(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    names = []
    for root, tree in (("args", args), ("kwargs", kwargs)):
        leaves, _ = pytree.tree_flatten_with_path(tree)
        names += [root + pytree.keystr(path) for path, leaf in leaves if isinstance(leaf, Tensor)]
    return names


def map_tensors(fn: Callable[[Tensor], Any], tree: Any) -> Any:
    """`tree` with `fn` applied to its tensors; other leaves pass through."""
    return pytree.tree_map(lambda leaf: fn(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def copy_of(tensor: Tensor) -> Tensor:
    """A copy that shares neither storage nor graph, but requires gradients where the original does."""
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensor leaves of `tree`, in order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def map_with_dims(call: str, fn: Callable[[Tensor, int], Tensor], tree: Any, dims: Any) -> Any:
    """Apply `fn(tensor, dim)` where `dims` is an int, None (leave alone) or a prefix of `tree`, as in vmap."""
    leaves, spec = pytree.tree_flatten(tree)
    flat = pytree._broadcast_to_and_flatten(dims, spec)
    if flat is None:
        raise ValueError(
            message(
                call,
                got=f"dims {dims!r} for a value of structure {spec}",
                expected="an int, None, or a nest of them that is a prefix of the value, as in torch.vmap",
            )
        )
    pairs = zip(leaves, flat, strict=True)
    out = [leaf if dim is None or not isinstance(leaf, Tensor) else fn(_tensor(call, leaf), dim) for leaf, dim in pairs]
    return pytree.tree_unflatten(out, spec)


def _tensor(call: str, leaf: Any) -> Tensor:
    if not isinstance(leaf, Tensor):
        raise TypeError(message(call, got=kind_of(leaf), expected="a tensor"))
    return leaf
