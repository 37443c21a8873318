"""Rows in a few numbers each: what a projection is."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ._factor import Factor


class Projection(Protocol):
    """A linear map of a whole row to `size` numbers, parameter by parameter."""

    @property
    def size(self) -> int:
        """How many numbers."""

    def apply(self, name: str, factor: Factor) -> Tensor:
        """This factor's part of the parameter `name`'s part: `[B, size]`."""
