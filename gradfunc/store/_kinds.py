"""Factors on disk: which kind is kept as which tensors, and how a row is made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .._factors import Dense, Factor, Gradient, Grouped, Outer, Rows, Steps, Unfolded
from ._columns import Ragged

FACTORS = "factors"
# The names of what `factor.tensors` holds, in its order.
_TENSORS: dict[str, tuple[str, ...]] = {
    "outer": ("x", "g"),
    "rows": ("index", "g"),
    "grouped": ("index", "x", "g"),
    "unfolded": ("x", "g"),
    "dense": ("values",),
}
# How to read a store without gradfunc: written into its manifest.
READING = {
    "file": "safetensors. A column NAME has one entry a row. A column that is ragged is NAME/lengths, how many entries "
    "each row has (0 where it has none), and NAME/..., the entries of all rows one after the other.",
    "ids": "int64; or ragged, ids/utf8: the bytes of each id.",
    "rows": "[n, size], what `projection` says.",
    "factors/PARAMETER/FACTOR": "ragged, of factored gradients: a row of the parameter's gradient is the sum of what "
    "its factors give, each summed over the row's entries t, in the parameter's shape; 0 where there are none.",
    "dense": "values[t]",
    "outer": "g[t] x[t]^T, a matrix [len(g[t]), len(x[t])]",
    "rows of a table": "kind 'rows': a table [entries of the parameter / len(g[t]), len(g[t])] whose row index[t] is "
    "g[t] and whose others are 0",
    "grouped": "a stack of matrices [number, len(g[t]), len(x[t])], of which matrix index[t] is g[t] x[t]^T and the "
    "others are 0",
    "unfolded": "the gradient with respect to a weight of shape steps.weight of a convolution of image x[t] with this "
    "stride, padding, dilation and groups (a transposed one if so), whose output has the gradient g[t]",
    "losses, weights": "of each row, float64: the mean gradient is the sum of rows over the sum of weights",
}


def key_of(factor: Factor) -> str:
    """What a shard calls a factor: equal for those that can be joined, and the same in every store."""
    sizes = ["x".join(map(str, shape)) for _, shape in _shapes(factor).values() if shape and factor.kind != "dense"]
    steps = _steps(factor)
    laid = [] if steps is None else ["x".join(map(str, value)) for value in steps[:4]]
    extra = [] if steps is None else [str(steps.groups), *["transposed"] * steps.transposed]
    return "-".join([factor.kind, *sizes, *laid, *extra])


def described(factor: Factor, dtype: str) -> dict[str, Any]:
    """`{"kind", "tensors": {name: [dtype, shape of an entry]}}`, and of a convolution its "steps"."""
    tensors = {name: [dtype if floats else "int64", shape] for name, (floats, shape) in _shapes(factor).items()}
    steps = _steps(factor)
    laid = {} if steps is None else {name: _plain(value) for name, value in steps._asdict().items()}
    return {"kind": factor.kind, "tensors": tensors, **({"steps": laid} if laid else {})}


def held(factor: Factor) -> dict[str, Tensor]:
    """`{name: [B, T, ...]}`: entries of each row; a dense one is the only entry of its row."""
    if isinstance(factor, Dense):
        return {"values": factor.values[:, None]}
    return dict(zip(_TENSORS[factor.kind], factor.tensors, strict=True))


def bytes_of(gradient: Gradient, itemsize: int) -> int:
    """Of its factors on disk."""
    tensors = [tensor for factor in gradient.factors for tensor in factor.tensors]
    return sum(tensor.numel() * (itemsize if tensor.is_floating_point() else 8) for tensor in tensors)


def factor_of(facts: Mapping[str, Any], ragged: Ragged, shape: tuple[int, ...]) -> Factor:
    """The factor of some rows, entries padded with zeros to as many as the longest row has."""
    length = int(ragged.lengths.max()) if len(ragged.lengths) else 0
    tensors = [_padded(ragged.tensors[name], ragged.lengths, length) for name in _TENSORS[facts["kind"]]]
    kind = facts["kind"]
    if kind == "dense":
        return Dense(tensors[0].sum(1) if length > 1 else tensors[0].reshape(len(ragged.lengths), *shape))
    if kind == "unfolded":
        laid: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in facts["steps"].items()}
        return Unfolded(tensors[0], tensors[1], shape, Steps(**laid))
    make: Any = {"outer": Outer, "rows": Rows, "grouped": Grouped}[kind]
    factor: Factor = make(*tensors, shape)
    return factor


def _padded(values: Tensor, lengths: Tensor, length: int) -> Tensor:
    """`[sum of lengths, ...]` as `[n, length, ...]`."""
    shape = (len(lengths), length, *values.shape[1:])
    if math.prod(shape[:2]) == len(values):
        return values.reshape(shape)
    out = values.new_zeros(shape)
    out[torch.arange(length) < lengths[:, None]] = values
    return out


def _shapes(factor: Factor) -> dict[str, tuple[bool, list[int]]]:
    """Of each tensor whether it holds floats, and the shape of an entry."""
    return {name: (value.is_floating_point(), list(value.shape[2:])) for name, value in held(factor).items()}


def _steps(factor: Factor) -> Steps | None:
    return factor.steps if isinstance(factor, Unfolded) else None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
