"""What a criterion is called, what made an output, and which values it can have."""

from __future__ import annotations

import functools
import math
from typing import Any

from torch import Tensor, nn

from ..._problem import Criterion

_NAMES = {
    "CrossEntropyLoss": "cross_entropy",
    "NLLLoss": "nll_loss",
    "MSELoss": "mse_loss",
    "L1Loss": "l1_loss",
    "SmoothL1Loss": "smooth_l1_loss",
    "HuberLoss": "huber_loss",
    "BCELoss": "binary_cross_entropy",
    "BCEWithLogitsLoss": "binary_cross_entropy_with_logits",
}
_FUNCTIONS = {*_NAMES.values(), "mse", "l1", "smooth_l1", "huber", "bce_with_logits"}
_SHORT = {"mse": "mse_loss", "l1": "l1_loss", "smooth_l1": "smooth_l1_loss", "huber": "huber_loss"}
_SHORT |= {"bce_with_logits": "binary_cross_entropy_with_logits"}
REGRESSION = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
CLASSES = ("cross_entropy", "nll_loss")
BINARY = ("binary_cross_entropy", "binary_cross_entropy_with_logits")

# Nodes that hand values on; what made the output lies before them.
_PASSING: tuple[str, ...] = (
    "View",
    "Squeeze",
    "Unsqueeze",
    "Alias",
    "Clone",
    "Reshape",
    "Transpose",
    "Permute",
    "Select",
    "Slice",
)
_PASSING += ("T", "ToCopy", "Unsafe", "Expand")
_ACTIVATIONS = {"Sigmoid": "sigmoid", "Softmax": "softmax", "LogSoftmax": "log_softmax", "Relu": "relu", "Tanh": "tanh"}
RANGES = {"sigmoid": (0.0, 1.0), "softmax": (0.0, 1.0), "tanh": (-1.0, 1.0), "relu": (0.0, math.inf)}
RANGES |= {"log_softmax": (-math.inf, 0.0)}


def kind_of_criterion(criterion: Criterion) -> str:
    """The name that torch's functional has, "" for another criterion."""
    given = criterion.given.func if isinstance(criterion.given, functools.partial) else criterion.given
    if isinstance(given, nn.Module):
        known = (_NAMES[base.__name__] for base in type(given).__mro__ if base.__name__ in _NAMES)
        return next(known, "")
    name = str(getattr(given, "__name__", ""))
    known_home = str(getattr(given, "__module__", "")).startswith(("torch", "gradfunc"))
    return _SHORT.get(name, name) if name in _FUNCTIONS and known_home else ""


def set_rate(value: float) -> str:
    """A line that sets the learning rate."""
    return f"for group in optimizer.param_groups: group['lr'] = {value:.1g}"


def last_activation(output: Any) -> str:
    """The activation that made a tensor: "sigmoid", "softmax", "log_softmax", "relu", "tanh", or ""."""
    return _made(output.grad_fn if isinstance(output, Tensor) else None)


def squashed_twice(loss: Tensor) -> str:
    """What made the logits of a cross entropy in a loss's graph, where they are none: "softmax", "sigmoid", or ""."""
    for node in _nodes(loss):
        if _name(node) in ("LogSoftmax", "BinaryCrossEntropyWithLogits") and node.next_functions:
            made = _made(node.next_functions[0][0])
            if made in ("softmax", "sigmoid"):
                return made
    return ""


def names_in(loss: Tensor) -> set[str]:
    """Of the operations of its graph, as autograd's nodes have them: "Round", "AddmmBackward0" as "Addmm"."""
    return {_name(node) for node in _nodes(loss)}


def _nodes(loss: Tensor) -> set[Any]:
    seen: set[Any] = set()
    stack = [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack += [parent for parent, _ in node.next_functions]
    return seen


def _name(node: Any) -> str:
    name: str = node.name().rpartition("::")[2].removesuffix("Backward0").removesuffix("Backward1")
    return name


def _made(node: Any) -> str:
    while node is not None:
        name = _name(node)
        if name in _ACTIVATIONS:
            return _ACTIVATIONS[name]
        if not name.startswith(_PASSING) or name.startswith("Tanh") or not node.next_functions:
            return ""
        node = node.next_functions[0][0]
    return ""
