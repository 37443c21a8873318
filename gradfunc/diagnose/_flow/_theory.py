"""What theory says that a layer does to the norm of gradients: `gf.init.variance_factor` at its own variance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ... import init
from ..._tree import Tensors
from ._measure import Measured

_NORMS: dict[str, Any] = {"batch_norm": "batch", "layer_norm": "layer", "rms_norm": "rms"}


def theory_of(uses: Sequence[Measured], k: int, before: int, ends: Sequence[int], params: Tensors) -> float | None:
    """The factor of use k, whose product is the next one behind `before`; None where theory has none.

    It has one for a linear or convolutional layer that reads what the one before gave and nothing else. The variance of
    its pre-activations is taken to be `gain^2 mean(a^2) + mean(b^2)`, a the activations before it. Behind a norm, which
    must be as it was made, both layers must have the same one and the same activation.
    """
    layer, end, behind = uses[k], uses[ends[k]], uses[ends[before]]
    if layer.gain is None or layer.use.sources != (ends[before],) or not layer.use.straight:
        return None
    if end.use.activation is not None and end.use.phi is None:
        return None
    phi: Any = end.use.phi or "identity"
    biases = [params[name].double().square().mean().item() for name in layer.use.names if name not in layer.weights]
    if ends[k] == k:
        variance = layer.gain**2 * behind.activation.values.rms**2 + sum(biases)
        return init.variance_factor(phi, layer.gain, variance=variance).backward if variance > 0 else None
    norm = _NORMS.get(end.use.function)
    same = (end.use.function, end.use.activation) == (behind.use.function, behind.use.activation)
    if norm is None or not same or end.use.sources != (k,) or not end.use.straight or not _fresh(end, params):
        return None
    return init.variance_factor(phi, layer.gain, norm, bias_variance=sum(biases)).backward


def _fresh(norm: Measured, params: Tensors) -> bool:
    """Whether its scale is 1 and its shift 0."""
    return all(bool(((params[name] == 1) | (params[name] == 0)).all()) for name in norm.use.names)
