"""A use of a layer's parameters, from when it is met until its last tensor is noted."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ._kinds import entrywise


@dataclass(frozen=True, eq=False)
class Use:
    """One use of a layer's parameters.

    Attributes:
        layer: the module that holds them ("fc1" of "fc1.weight"), or the parameter where that is the model itself.
        names: every parameter that enters here, in the order of the model's.
        function: torch's name of what mixes them with data; a custom one's node in the graph.
        shape: of the output.
        direct: whether these parameters enter as they are, and not through functions of parameters.
        output: where it is in autograd's graph; None once `without_graph`.
        activation: the kind of the activation that follows, such as "relu"; None without.
        activated: where its output is, None without.
        phi: the activation as a function of one tensor; None without, or where it takes other tensors.
        value: what `note` gave for the output of the activation, or of the use where none follows.
        sources: indices of the uses whose outputs this one reads, through whatever has no parameters.
        straight: whether there is one, and nothing behind it but its activation, dropout, and changes of shape or type.
        number: which use of the layer it is, from 1.
        of: how many uses the layer has.
    """

    layer: str
    names: tuple[str, ...]
    function: str
    shape: torch.Size
    direct: bool
    output: GradientEdge | None
    activation: str | None
    activated: GradientEdge | None
    phi: Callable[[Tensor], Tensor] | None
    value: Any
    sources: tuple[int, ...]
    straight: bool
    number: int = 1
    of: int = 1

    @property
    def last(self) -> GradientEdge:
        """The output of the activation, or of the use where none follows."""
        edge = self.output if self.activated is None else self.activated
        assert edge is not None
        return edge

    def without_graph(self) -> Use:
        """The same without its places, so that the graph can go."""
        return dataclasses.replace(self, output=None, activated=None)


class Open:
    """A use, and its last tensor until that is noted."""

    def __init__(self, use: Use, tensor: Tensor) -> None:
        self.use, self.value = use, None
        self.tensor: Tensor | None = tensor
        self._entries = tensor.numel()
        self._noted = False

    def activate(self, kind: str, out: Tensor, phi: Callable[[Tensor], Tensor] | None) -> bool:
        """An activation follows; the first one counts, if it is of the whole output. Whether this one does."""
        if self.use.activation is not None or out.numel() != self._entries:
            return False
        self.use = dataclasses.replace(self.use, activation=kind, activated=get_gradient_edge(out), phi=phi)
        self.tensor = out
        return True

    def continues(self, name: str, names: tuple[str, ...], given: Sequence[Tensor]) -> bool:
        """Whether a scale or shift by other parameters of the same module belongs to this use."""
        return (
            entrywise(name)
            and self.tensor is not None
            and self.use.activation is None
            and any(tensor is self.tensor for tensor in given)
            and not set(names) & set(self.use.names)
            and all(module_of(key) == module_of(self.use.names[0]) for key in names)
        )

    def extend(self, names: tuple[str, ...], out: Tensor) -> None:
        """It does: the output is the later one."""
        self.use = dataclasses.replace(self.use, names=names, shape=out.shape, output=get_gradient_edge(out))
        self.tensor, self._entries = out, out.numel()

    def close(self, note: Callable[[Tensor, Use], Any]) -> None:
        """Note the last tensor, and let go of it."""
        if self.tensor is not None and not self._noted:
            with torch.no_grad():
                self.value = note(self.tensor.detach(), self.use)
            self._noted = True
        self.tensor = None


def layer_of(names: tuple[str, ...]) -> str:
    """The module with most of these parameters, or the parameter itself where that is the model."""
    modules = Counter(module_of(name) for name in names)
    module = max(modules, key=lambda key: modules[key])
    return module or next(_plain(name) for name in names if not module_of(name))


def module_of(name: str) -> str:
    plain = _plain(name)
    module, _, last = plain.rpartition(".")
    return plain if last.isdigit() else module  # an entry of a list of parameters is a layer of its own


def _plain(name: str) -> str:
    """As it was before a parametrization took its place."""
    return re.sub(r"(^|\.)parametrizations\.([^.]+)\.original\d*$", r"\1\2", name)
