"""What every peer starts from: a copy of the case's module, a loss of each sample, and what it leaves on parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..._tree import Tensors
from ...audit._case import forward_of
from .._contender import Refused
from .._workload import Case


@dataclass(frozen=True)
class Copy:
    """A module that a peer may hook and write to, with its trainable parameters by name."""

    case: Case
    module: nn.Module
    params: dict[str, nn.Parameter]

    @classmethod
    def of(cls, case: Case) -> Copy:
        """A deep copy; the case's own module is not touched."""
        module = copy.deepcopy(case.module)
        return cls(case, module, {name: p for name, p in module.named_parameters() if p.requires_grad})

    @property
    def batch_first(self) -> bool:
        """As some peers are told where the samples sit: in dimension 0, else 1.

        Raises:
            Refused: the inputs have them elsewhere.
        """
        first = self._samples_in(0)
        if not first and not self._samples_in(1):
            raise Refused(f"samples in dimensions {self.case.model.in_dims} of the inputs")
        return first

    def has_samples_first(self) -> None:
        """For peers that cannot be told otherwise.

        Raises:
            Refused: the inputs have samples elsewhere.
        """
        if not self._samples_in(0):
            raise Refused(f"samples in dimensions {self.case.model.in_dims} of the inputs; expected 0")

    def _samples_in(self, dim: int) -> bool:
        dims = self.case.model.in_dims
        return {dim} == (set(dims) if isinstance(dims, (tuple, list)) else {dims})

    def losses(self, model: Callable[..., Any]) -> Tensor:
        """`[B]`: the numerators, of which rows are the gradients.

        Raises:
            Refused: a criterion that gives one scalar for the whole batch.
        """
        elements = forward_of(self.case.problem, model).elements
        if elements is None:
            raise Refused("one scalar for the whole batch: a sample has no loss of its own")
        return elements.flatten(1).sum(1) if elements.dim() > 1 else elements

    def rows(self, attribute: str) -> Tensors:
        """What a peer has left on the parameters: `{name: [B, ...]}`; taken off, and gradients with it.

        A parameter without it that has no gradient either is unused, and counts as zeros.

        Raises:
            Refused: there is none beside a gradient, or one of another number of rows.
        """
        out = {}
        for name, param in self.params.items():
            found, grad = getattr(param, attribute, None), param.grad
            if found is None:
                if grad is not None:
                    raise Refused(f"no {attribute} for {name}, which has a gradient")
                found = param.detach().new_zeros(self.case.size, *param.shape)
            found = torch.cat(found) if isinstance(found, list) else found
            out[name] = self.one_each(f"{attribute} of {name}", found.detach())
        self.clear(attribute)
        return out

    def one_each(self, what: str, rows: Tensor) -> Tensor:
        """The rows, if there is one a sample.

        Raises:
            Refused: there is another number.
        """
        if len(rows) != self.case.size:
            raise Refused(f"{what}: {len(rows)} rows for {self.case.size} samples")
        return rows

    def grads(self) -> Tensors:
        """The gradients of an ordinary backward pass, zeros where there are none; taken off."""
        out = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in self.params.items()}
        self.clear()
        return out

    def clear(self, *attributes: str) -> None:
        """No gradient, and none of these attributes."""
        for param in self.params.values():
            param.grad = None
            for attribute in attributes:
                if hasattr(param, attribute):
                    setattr(param, attribute, None)


def has(*types: type[nn.Module]) -> Callable[[nn.Module], bool]:
    """Whether a module is, or holds, a layer of these types."""
    return lambda module: any(isinstance(layer, types) for layer in module.modules())


def has_time_first(module: nn.Module) -> bool:
    """Whether it holds a layer that takes sequences with the samples in dimension 1."""
    return any(getattr(layer, "batch_first", True) is False for layer in module.modules())


def has_buffers(module: nn.Module) -> bool:
    """Whether there is any."""
    return next(module.buffers(), None) is not None


def shares(module: nn.Module) -> bool:
    """Whether a parameter, or a layer that holds one, has two places in the module."""

    def places(shared: bool) -> int:
        return sum(1 for _ in module.named_parameters(remove_duplicate=shared))

    return places(False) > places(True)


def of_its_own(module: nn.Module) -> bool:
    """Whether something that is no layer of torch's holds a parameter itself."""
    layers = [layer for layer in module.modules() if not type(layer).__module__.startswith("torch.nn.")]
    return any(next(layer.parameters(recurse=False), None) is not None for layer in layers)
