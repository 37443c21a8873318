"""The transforms of torch.func that are running, outermost first: a private list of torch's, asked for here alone."""

from __future__ import annotations

import torch
from torch import Tensor


def levels() -> list[str]:
    """For each transform "error", "same" or "different", the randomness of a vmap, or "" for any other.

    Empty where torch has no such list: nested vmaps then go unnoticed, and repeat draws over their lanes.
    """
    functorch = getattr(torch._C, "_functorch", None)
    stack = getattr(functorch, "get_interpreter_stack", None)
    pointer = getattr(functorch, "CVmapInterpreterPtr", None)
    kinds = getattr(functorch, "TransformType", None)
    if stack is None or pointer is None or kinds is None:
        return []
    return [pointer(i).randomness().name.lower() if i.key() == kinds.Vmap else "" for i in stack() or ()]


def transforms() -> str:
    """How messages name the transforms that are running, such as "vmap(grad(...))"; empty where none is."""
    functorch = getattr(torch._C, "_functorch", None)
    stack = getattr(functorch, "get_interpreter_stack", None)
    names = [interpreter.key().name.lower() for interpreter in (stack() if stack else None) or ()]
    return "(".join([*names, "..."]) + ")" * len(names) if names else ""


def is_transformed(tensor: Tensor) -> bool:
    """Whether a running transform follows this tensor; False where torch does not say."""
    functorch = getattr(torch._C, "_functorch", None)
    asked = getattr(functorch, "is_functorch_wrapped_tensor", None)
    return asked is not None and bool(asked(tensor))


def is_batched(tensor: Tensor) -> bool:
    """Whether a running vmap maps over this tensor; False where torch does not say."""
    functorch = getattr(torch._C, "_functorch", None)
    asked = getattr(functorch, "is_batchedtensor", None)
    return asked is not None and bool(asked(tensor))
