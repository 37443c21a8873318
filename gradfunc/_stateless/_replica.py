"""A call of a module runs on a replica of its tree that holds the tensors of that call."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .._batch_stats import FrozenOnly, freeze
from .._errors import message


class Shell(nn.Module):
    """Runs a replica of the module, made while `functional_call` has its tensors swapped.

    The swap ends with the forward pass. What runs again later (a checkpointed block, in the backward pass) must still
    find the tensors of this call, and the replica keeps them. It also takes whatever the forward pass assigns.
    """

    def __init__(self, inner: nn.Module, *, frozen: bool) -> None:
        super().__init__()
        self.inner = inner
        self._frozen = frozen

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the replica."""
        return self._run(*args, **kwargs)[0]

    def _run(self, *args: Any, **kwargs: Any) -> tuple[Any, nn.Module]:
        """The output and the replica, its batch norms by running statistics if these are frozen."""
        if torch._C._are_functorch_transforms_active():
            _refuse_backward_hooks(self.inner)
        made = replica(self.inner, {})
        if not self._frozen:
            return made(*args, **kwargs), made
        freeze(made)
        with FrozenOnly():
            return made(*args, **kwargs), made


class BufferShell(Shell):
    """Gives the buffers of the replica once it has run, written to or assigned."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the replica."""
        _, made = self._run(*args, **kwargs)
        return {name: buffer.detach() for name, buffer in made.named_buffers()}


def replica(module: nn.Module, made: dict[int, nn.Module]) -> nn.Module:
    """A copy of the tree of modules that refers to the same tensors, hooks and everything else."""
    if id(module) in made:
        return made[id(module)]
    if module._is_full_backward_hook is False and module._backward_hooks:
        # such a hook would look for the replica in the backward pass, when that is gone
        got = f"a {type(module).__name__} with a hook of register_backward_hook, which torch deprecates"
        do = "Use register_full_backward_hook."
        raise RuntimeError(message("model(params, ...)", got=got, expected="no such hook", do=do))
    copy = made[id(module)] = module.__new__(type(module))
    copy.__dict__.update(module.__dict__)  # not assigned: a module's own __setattr__ would look at it first
    for held in ("_parameters", "_buffers"):
        copy.__dict__[held] = module.__dict__[held].copy()
    if isinstance(module, nn.RNNBase):  # keeps its tensors in a list as well, which the swap writes to
        copy.__dict__["_flat_weights"] = list(module._flat_weights)
    children = module.__dict__["_modules"]
    copy.__dict__["_modules"] = {name: None if m is None else replica(m, made) for name, m in children.items()}
    return copy


def _refuse_backward_hooks(module: nn.Module) -> None:
    """Under torch.func, where a tensor hides that it requires grad, torch would leave them out without a word."""
    of_all = nn.modules.module._global_backward_hooks or nn.modules.module._global_backward_pre_hooks
    for name, layer in module.named_modules():
        if of_all or layer._backward_hooks or layer._backward_pre_hooks:
            got = f"module '{name or type(layer).__name__}', which has a full backward hook, under torch.func"
            do = "Run the batch natively, or one sample after the other; or remove the hook."
            raise NotImplementedError(message("model(params, ...)", got=got, expected="no such hook there", do=do))
