"""What the theory answers: factors of one layer, and of layers in a row."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class VarianceFactor:
    """What one layer multiplies standard deviations by.

    Attributes:
        forward: that of the pre-activation.
        backward: that of the gradient by it, `sqrt(chi)`, on the way back.
        variance: of the pre-activation at which these hold: 0 or inf for the limits.
        error: how far off the factors may be by the quadrature, relatively.
    """

    forward: float
    backward: float
    variance: float
    error: float


@dataclass(frozen=True)
class VariancePath:
    """Layer after layer, made by `variance_path`.

    Attributes:
        layers: the factors of each; `variance` is that of the pre-activation it takes.
        variances: of the first pre-activation and those after each layer, one more than there are layers.
    """

    layers: tuple[VarianceFactor, ...]
    variances: tuple[float, ...]

    @property
    def forward(self) -> float:
        """The product over all layers."""
        return math.prod(layer.forward for layer in self.layers)

    @property
    def backward(self) -> float:
        """The product over all layers."""
        return math.prod(layer.backward for layer in self.layers)
