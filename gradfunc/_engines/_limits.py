"""Telling a limitation of torch.func, or of memory, from the user's own error; and where the loss met it."""

from __future__ import annotations

import functools
import re
import traceback
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from .._frames import in_torch, place_of


class _Wall(NamedTuple):
    """What torch says, what it means, and what to write instead."""

    says: str
    why: str
    instead: str = ""


# What torch.func says of itself when it cannot run a function that autograd can. Anything else is the user's own error
# and passes untouched. Collected from torch 2.11 to 2.15.
_WALLS = (
    _Wall(
        r"data-dependent control flow|vmap: It looks like you're",
        "what runs depends on a value (`if tensor:`, `.item()`, a loop until something holds), which differs by sample",
        "Write torch.where instead of the branch; a 2-D attention mask can be expanded outside (gf.hf.attention_mask).",
    ),
    _Wall(
        r"vmap: inplace arithmetic",
        "a tensor that all samples share is written in place with one sample's values",
        "Write y = y + x, or make y from the sample: x.new_zeros(...).",
    ),
    _Wall(
        r"aten::nonzero|aten::unique|dynamic shape|aten::masked_select",
        "a shape depends on values (a boolean index, nonzero, unique)",
        "Multiply by a mask or write torch.where instead.",
    ),
    _Wall(
        r"Batch norm got a batched tensor",
        "a norm in train mode writes to running statistics",
        "Use .eval() on it; for batch norms gf.stateless(module, batch_stats='frozen').",
    ),
    _Wall(
        r"'Sparse\w+' backend",
        "a gradient is sparse",
        "Build the embedding with sparse=False.",
    ),
    _Wall(
        r"setup_context|generate_vmap_rule",
        "a torch.autograd.Function is not written for torch.func",
        "Split its forward into forward(...) and setup_context(ctx, inputs, output), and set generate_vmap_rule=True.",
    ),
    _Wall(
        r"saved tensor hooks|escaped from inside a function being vmapped",
        "hooks on saved tensors (activation checkpointing, saving on the CPU) do not work in torch.func",
    ),
    _Wall(
        r"autocast under torch\.vmap",
        "autocast is on, under which torch.vmap by itself computes in other types than torch does",
    ),
    _Wall(
        r"full backward hook",
        "a module has full backward hooks, which torch drops or refuses under torch.func",
        "Remove the hook where it only watches.",
    ),
    _Wall(
        r"Cannot access storage of|Cannot access data pointer of Tensor|data_ptr",
        "an extension reads the memory of a tensor, which a tensor under vmap does not have",
    ),
    _Wall(r"compiled backward function within vmap", "a compiled function runs inside", "Pass it uncompiled."),
    _Wall(
        r"vmap: We do not support batching|vmap: aten::|Batching rule not implemented"
        r"|could not generate (a )?fallback|doesn't match the broadcast shape",
        "an operation has no batching rule",
    ),
    _Wall(
        r"inside of a function being transformed by a functorch|inside a functorch transform"
        r"|torch\.func.* (don't|doesn't|do not|does not) yet support"
        r"|not (yet )?supported (under|in|inside|with) (vmap|functorch|torch\.func)"
        r"|does not support .*functorch|functorch.*does not support",
        "torch.func does not support it",
    ),
)
# This one no engine takes: reentrant checkpointing runs a backward pass of its own, into .grad.
_REENTRANT = _Wall(
    r"Checkpointing is not compatible with \.grad\(\)|utils\.checkpoint is incompatible with \.grad\(\)",
    "reentrant activation checkpointing works with .backward() into .grad alone",
    "Pass use_reentrant=False to torch.utils.checkpoint.checkpoint (transformers: "
    "model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False})).",
)


@dataclass(frozen=True)
class Limit:
    """What an engine cannot run, and where the loss does it.

    Attributes:
        why: in words.
        instead: how to write it otherwise, "" where there is no such way.
        code: the line of code, "" if it is not known.
        where: its "file:line", and that of the user's own line that led there.
        module: the path of the module in whose forward pass it is (the class of the outermost), "" outside of any.
        anywhere: whether no engine can.
    """

    why: str
    instead: str = ""
    code: str = ""
    where: str = ""
    module: str = ""
    anywhere: bool = False

    def __str__(self) -> str:
        parts = [self.where and f"at {self.where}", self.module and f"in module '{self.module}'"]
        place = " ".join(part for part in parts if part)
        return self.why + (f", {place}" if place else "") + (f": `{self.code}`" if self.code else "")


def limitation(error: Exception) -> Limit | None:
    """What stopped torch.func, or None if `error` is the user's own."""
    if not isinstance(error, (RuntimeError, NotImplementedError)):
        return None
    text = str(error)
    wall = next((wall for wall in (_REENTRANT, *_WALLS) if re.search(wall.says, text)), None)
    if wall is None:
        return None
    if any(_reenters(frame) for frame, _ in traceback.walk_tb(error.__traceback__)):
        return replace(limit_of(error, _REENTRANT.why, _REENTRANT.instead), anywhere=True)
    found = limit_of(error, wall.why, wall.instead)
    return found if wall is not _REENTRANT else _reentrant(error, found)


def limit_of(error: Exception, why: str, instead: str = "") -> Limit:
    """With the place that the traceback names."""
    place = place_of(list(traceback.walk_tb(error.__traceback__)))
    return Limit(why, instead, place.code, place.where, place.module if place.where else "")


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: on a device, or on the CPU where the system refuses an allocation."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _reenters(frame: Any) -> bool:
    """Whether it is torch's checkpoint, in its reentrant form."""
    code, of = frame.f_code, frame.f_locals
    return code.co_name == "checkpoint" and in_torch(frame) and of.get("use_reentrant") is True


def _reentrant(error: Exception, found: Limit) -> Limit:
    """Its traceback is of the backward pass, where what was checkpointed is kept by torch."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        function = getattr(frame.f_locals.get("ctx"), "run_function", None)
        if function is not None:
            while isinstance(function, functools.partial):
                function = function.func
            owner = getattr(function, "__self__", function)
            name = getattr(function, "__qualname__", "...")
            name = type(owner).__name__ if isinstance(owner, nn.Module) else name
            code = f"checkpoint({name}, ...)"
            return Limit(found.why, found.instead, code, anywhere=True)
    return Limit(found.why, found.instead, anywhere=True)
