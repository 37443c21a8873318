"""Recurrent weights of the scans by hand: `Outer` factors of all steps."""

from __future__ import annotations

from torch import Tensor

from ..._factors import Outer
from ..._recurrent import is_product
from ._site import Maker, Site


def recurrent(site: Site) -> Maker | None:
    """`(weight, bias or none)`, rows `[T, N, features]` of the states beside the cotangent `[T, N, outputs]`."""
    if not is_product(site.node) or site.layout.dim > 1:
        return None
    if site.input == 1:
        return lambda g: site.summed(g)
    x = site.node.saved_tensors[0]

    def positions(tensor: Tensor) -> Tensor:
        return site.split(tensor).flatten(1, 2)

    rows = positions(x)
    return lambda g: Outer(rows, positions(g), site.shape)


RULES = {"RecurrentProductBackward": recurrent}
