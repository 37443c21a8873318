"""What torch's functions are: activations, entrywise, in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS = [
    *("relu", "relu6", "leaky_relu", "rrelu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus"),
    *("softsign", "tanh", "tanhshrink", "sigmoid", "logsigmoid", "hardtanh", "hardsigmoid", "hardswish"),
    *("hardshrink", "softshrink", "threshold"),
]
KINDS = {
    getattr(place, name + end): kind
    for kind in ACTIVATIONS
    for name in (kind, {"sigmoid": "expit", "logsigmoid": "log_sigmoid"}.get(kind, kind))
    for end in ("", "_")
    for place in (torch, F, Tensor, torch.special, torch._C._nn)
    if hasattr(place, name + end)
}
ENTRYWISE = {"add", "sub", "mul", "div", "true_divide"}
SAME_ENTRIES = {
    *("dropout", "dropout_", "alpha_dropout", "view", "reshape", "flatten", "unflatten", "contiguous", "clone", "T"),
    *("transpose", "permute", "movedim", "squeeze", "unsqueeze", "to", "type", "float", "double", "half", "bfloat16"),
}

NORMS = {"batch_norm", "layer_norm", "rms_norm", "group_norm", "instance_norm", "normalize", "local_response_norm"}


def entrywise(function: str) -> bool:
    """Whether a function of this name adds or multiplies entry by entry."""
    return function.strip("_").removeprefix("i") in ENTRYWISE


def applied(func: Any, others: tuple[Any, ...], options: dict[str, Any], tensor: Tensor) -> Tensor:
    """The same call on another tensor, which it may not write to."""
    out: Tensor = func(tensor.clone(), *others, **options)
    return out


def name_of(func: Any) -> str:
    name = getattr(func, "__name__", type(func).__name__)
    if name in ("__get__", "__set__"):
        return str(getattr(getattr(func, "__self__", None), "__name__", name))
    return str(name)


def in_place(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    if name.startswith("__"):
        return name.startswith("__i") and name not in ("__index__", "__int__", "__invert__", "__iter__")
    return name.endswith("_")
