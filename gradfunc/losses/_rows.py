"""From the losses of elements or positions to one numerator and one weight a sample; the checks of shapes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._errors import message, one_of
from .._tree import wide
from .._weights import Weighted


def rowwise(elements: Tensor, weights: Tensor, batched: bool) -> Weighted:
    """Sums of elements and of their weights: over everything, or `batched` over all but dimension 0."""
    if not batched:
        return Weighted(elements.sum(), weights.sum().detach())
    rows = (len(elements), math.prod(elements.shape[1:]))
    return Weighted(elements.reshape(rows).sum(1), weights.reshape(rows).sum(1).detach())


def counted(elements: Tensor, batched: bool) -> Weighted:
    """Each element counts 1: the weight is their number."""
    return rowwise(elements, torch.ones_like(elements, dtype=wide(elements.dtype)), batched)


def each_sample_one(elements: Tensor, batched: bool) -> Weighted:
    """Each sample counts 1, however many elements it has."""
    numerator = rowwise(elements, elements.detach(), batched).numerator
    return Weighted(numerator, torch.ones_like(numerator, dtype=wide(numerator.dtype)))


def per_element_or_sample(call: str, elements: Tensor, per: str, batched: bool) -> Weighted:
    """The two readings of a loss of elements, by name."""
    one_of(call, "per", per, ("element", "sample"))
    return counted(elements, batched) if per == "element" else each_sample_one(elements, batched)


def check_same(call: str, batched: bool, **tensors: Tensor) -> None:
    """Raise ValueError unless all have one shape, with a dimension of samples if `batched`."""
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        raise ValueError(
            message(
                call,
                got=" and ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items()),
                expected="the same shape",
                do="Broadcasting would compare every sample with every other: reshape one of them.",
            )
        )
    name, tensor = next(iter(tensors.items()))
    check_dims(call, batched, 0, **{name: tensor})


def check_dims(call: str, batched: bool, dims: int, **tensors: Tensor) -> None:
    """Raise ValueError unless a sample has at least `dims` dimensions, after that of the samples if `batched`."""
    for name, tensor in tensors.items():
        if tensor.dim() < dims + batched:
            shape = ", ".join((*(["B"] if batched else []), "...", *(["C"] * dims)))
            raise ValueError(message(call, got=f"{name} {tuple(tensor.shape)}", expected=f"shape [{shape}]"))


def check_labels(call: str, batched: bool, output: Tensor, target: Tensor, *, name: str = "output") -> None:
    """Raise ValueError unless `output` is `[..., C]` and `target` has its shape without the last dimension."""
    check_dims(call, batched, 1, **{name: output})
    if target.shape != output.shape[:-1]:
        raise ValueError(
            message(
                call,
                got=f"{name} {tuple(output.shape)} and target {tuple(target.shape)}",
                expected=f"the target to have the shape of {name} without its last dimension, "
                f"{tuple(output.shape[:-1])}",
            )
        )


def check_indices(call: str, name: str, indices: Tensor) -> None:
    """Raise TypeError unless `indices` are integers."""
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise TypeError(message(call, got=f"{name} of dtype {indices.dtype}", expected="integers, class indices"))


def check_factor(call: str, name: str, factor: Tensor | None, output: Tensor, batched: bool, *, rows: bool) -> None:
    """Raise ValueError unless `factor` broadcasts to one sample, or with `rows` has the shape of the whole output."""
    sample = output.shape[int(batched) :]
    if factor is None or (rows and factor.shape == output.shape) or _broadcasts(factor.shape, sample):
        return
    raise ValueError(
        message(
            call,
            got=f"{name} {tuple(factor.shape)} for output {tuple(output.shape)}",
            expected=f"a shape that broadcasts to one sample's, {tuple(sample)}"
            + (f", or one factor an element, {tuple(output.shape)}" if rows and batched else ""),
        )
    )


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    pairs = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(have in (1, want) for have, want in pairs)


def check_number(call: str, name: str, value: float, fits: bool, expected: str) -> None:
    """Raise ValueError unless an option `fits`."""
    if not fits:
        raise ValueError(message(call, got=f"{name}={value!r}", expected=f"{name} {expected}"))
