"""Telling a limitation of torch.func, or of memory, from the user's own error."""

from __future__ import annotations

import re

import torch

# What torch.func says of itself when it cannot run a function that autograd can. Anything else is the user's
# own error and passes untouched. Collected from torch 2.13.
_LIMITATIONS = re.compile(
    r"data-dependent control flow"
    r"|vmap: It looks like you're"
    r"|vmap: inplace arithmetic"
    r"|vmap: We do not support batching"
    r"|inside of a function being transformed by a functorch|inside a functorch transform"
    r"|Batch norm got a batched tensor"
    r"|'Sparse\w+' backend"
    r"|Cannot access storage of"
    r"|vmap: aten::"
    r"|Batching rule not implemented"
    r"|could not generate (a )?fallback"
    r"|doesn't match the broadcast shape"
    r"|setup_context"
    r"|generate_vmap_rule"
    r"|saved tensor hooks"
    r"|torch\.func.* (don't|doesn't|do not|does not) yet support"
    r"|not (yet )?supported (under|in|inside|with) (vmap|functorch|torch\.func)"
    r"|Cannot access data pointer of Tensor|data_ptr"
    r"|does not support .*functorch|functorch.*does not support"
    r"|compiled backward function within vmap"
)


def limitation(error: Exception) -> str | None:
    """The first line of `error` if it is a limitation of torch.func, None if it is the user's own error."""
    text = str(error)
    known = isinstance(error, (RuntimeError, NotImplementedError)) and _LIMITATIONS.search(text)
    return text.strip().splitlines()[0][:200] if known else None


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: on a device, or on the CPU where the system refuses an allocation."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
