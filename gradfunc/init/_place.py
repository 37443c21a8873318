"""Where a parameter stands: what a scheme may ask beyond the shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Place:
    """A parameter in its model. Handed to `Scheme.at` by `initialize`.

    Attributes:
        name: of the parameter, such as "encoder.fc.weight".
        params: all that are given, by name.
        model: the module they are of, None if `initialize` was given tensors alone.

    Example:
        >>> import torch, gradfunc as gf
        >>> params = {"fc.weight": torch.zeros(2, 3), "fc.bias": torch.zeros(2)}
        >>> place = gf.init.Place("fc.bias", params, None)
        >>> place.path, place.own_name, place.sibling("weight").shape
        ('fc', 'bias', torch.Size([2, 3]))
    """

    name: str
    params: Mapping[str, Tensor]
    model: nn.Module | None

    @property
    def path(self) -> str:
        """The module it belongs to, such as "encoder.fc"."""
        return self.name.rpartition(".")[0]

    @property
    def own_name(self) -> str:
        """Its name there, such as "weight"."""
        return self.name.rpartition(".")[2]

    def sibling(self, own_name: str) -> Tensor | None:
        """The parameter of this name of the same module; None if there is none."""
        return self.params.get(f"{self.path}.{own_name}" if self.path else own_name)
