"""Nests of tensors: tuples, lists, dicts and registered pytrees, as torch.func takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .._errors import kind_of, message
from ._marks import Ragged, Static


def cast(tree: Any, dtype: torch.dtype | None, device: torch.device | str | None = None) -> Any:
    """Move every tensor to `device`, and the floating ones to `dtype`, also inside marked arguments."""
    return map_all(lambda leaf: leaf.to(device=device, dtype=dtype if leaf.is_floating_point() else None), tree)


def map_floats(fn: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """`tree` with `fn` applied to its floating tensors, also inside marked arguments."""
    return map_all(lambda leaf: fn(leaf) if leaf.is_floating_point() else leaf, tree)


def map_all(fn: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """`tree` with `fn` applied to all its tensors, also inside marked arguments."""

    def each(leaf: Any) -> Any:
        if isinstance(leaf, Static):
            return Static(map_all(fn, leaf.value))
        if isinstance(leaf, Ragged):
            return Ragged(map_all(fn, leaf.samples))
        return fn(leaf) if isinstance(leaf, Tensor) else leaf

    return pytree.tree_map(each, tree)


def map_tensors(fn: Callable[[Tensor], Any], tree: Any) -> Any:
    """`tree` with `fn` applied to its tensors; other leaves pass through."""
    return pytree.tree_map(lambda leaf: fn(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def rows_of(tree: Any, index: Tensor) -> Any:
    """Some samples of a batch, `index` `[b]` on the CPU; what `gf.static` marks belongs to all."""

    def each(leaf: Any) -> Any:
        if isinstance(leaf, Ragged):
            return Ragged(tuple(leaf.samples[i] for i in index.tolist()))
        return leaf[index.to(leaf.device)] if isinstance(leaf, Tensor) else leaf

    return pytree.tree_map(each, tree)


def copy_of(tensor: Tensor) -> Tensor:
    """A copy that shares neither storage nor graph, but requires gradients where the original does."""
    copied = tensor.detach().clone()
    # torch.func refuses to be told that a tensor does not require gradients
    return copied.requires_grad_() if tensor.requires_grad else copied


def map_nests(fn: Callable[..., Any], nests: list[Any]) -> Any:
    """One nest whose leaf is `fn(list of that leaf in each)`; all must have the structure of the first."""
    return pytree.tree_map(lambda *leaves: fn(list(leaves)), *nests)


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensor leaves of `tree`, in order, also those inside marked arguments."""
    found: list[Tensor] = []
    for leaf in pytree.tree_leaves(tree):
        if isinstance(leaf, (Static, Ragged)):
            found += tensors_of(leaf.value if isinstance(leaf, Static) else leaf.samples)
        elif isinstance(leaf, Tensor):
            found.append(leaf)
    return found


def same_structure(a: Any, b: Any) -> bool:
    """Whether two nests have leaves in the same places."""
    return bool(pytree.tree_structure(a) == pytree.tree_structure(b))


def others_of(tree: Any) -> list[Any]:
    """The leaves of `tree` that are no tensors."""
    return [leaf for leaf in pytree.tree_leaves(tree) if not isinstance(leaf, Tensor)]


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
