"""torch's Python functions that hide a draw from a function mode, as copies that do not.

A backward pass is one of them: it may run forward again, or a backward written in Python.

Such a function hands itself to the mode whole, and what it calls is then out of the mode's sight. A copy of it whose
globals say that no mode is there goes on to its body, whose calls the mode sees. Nothing of torch's is changed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch.nn import functional as F

# What a mode is handed -> the function whose body is meant.
COMPOSITES: dict[Any, Any] = {
    function: function
    for function in (
        F.dropout,
        F.alpha_dropout,
        F.dropout1d,
        F.dropout2d,
        F.dropout3d,
        F.feature_alpha_dropout,
        F.rrelu,
        F.gumbel_softmax,
        F.multi_head_attention_forward,
        F.fractional_max_pool2d_with_indices,
        F.fractional_max_pool3d_with_indices,
        torch.autograd.grad,
        torch.autograd.backward,
        torch.Tensor.backward,
    )
} | {getattr(F, name): getattr(F, f"_{name}") for name in ("fractional_max_pool2d", "fractional_max_pool3d")}


@cache
def transparent(function: Any) -> Callable[..., Any]:
    """A copy of a Python function that takes no notice of modes."""
    silent = {name: _no for name in function.__globals__ if name.startswith("has_torch_function")}
    copy = FunctionType(
        function.__code__,
        {**function.__globals__, **silent},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _no(*_: Any) -> bool:
    return False
