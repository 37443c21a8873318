"""What the quantities have in common: what they take, samples of weight above 0, sums over layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .._errors import kind_of, message, one_of
from .._per_sample import PerSampleGrads, per_sample_grads
from .._per_sample._function import PerSampleGradsFunction
from .._tree import Tensors, layer_of, splatted

COARSE = ("parameter", "layer", "total")
PER = ("entry", *COARSE)


def check_value(call: str, g: Any, name: str = "") -> PerSampleGrads:
    """Raise TypeError unless `g` is per-sample gradients."""
    if not isinstance(g, PerSampleGrads):
        got = kind_of(g) + (f" as {name}" if name else "")
        do = "Pass what gf.per_sample_grads(loss)(params, ...) gives."
        raise TypeError(message(call, got=got, expected="per-sample gradients", do=do))
    return g


def check_samples(call: str, g: PerSampleGrads, least: int) -> None:
    """Raise ValueError unless at least so many samples have a weight above 0."""
    used = int((g.weights > 0).sum())
    if used < least:
        few = "at least one" if least == 1 else "at least two, to see how they differ"
        raise ValueError(message(call, got=f"{used} samples of weight above 0", expected=few))


def function_of(call: str, loss: Any, options: Mapping[str, Any]) -> PerSampleGradsFunction:
    """`gf.per_sample_grads(loss, **options)`, or what was made by it."""
    if not isinstance(loss, PerSampleGradsFunction):
        return per_sample_grads(loss, **options)
    if options:
        got = f"options {sorted(options)} beside a function that has its own"
        raise TypeError(message(call, got=got, expected="none", do="Give them to gf.per_sample_grads."))
    return loss


def on_batch(f: PerSampleGradsFunction, params: Mapping[str, Tensor], batch: Any, *first: Any) -> PerSampleGrads:
    """`f` of a batch: a mapping as keywords, a tuple or list as positionals, anything else as one."""
    args, kwargs = splatted(batch)
    return f(params, *first, *args, **kwargs)


def shares(g: PerSampleGrads) -> Tensor:
    """`w_i / sum w`, `[B]` in float64."""
    weights = g.weights.double()
    return weights / weights.sum()


def unit_norms(g: PerSampleGrads) -> Tensor:
    """`|g_i| / w_i`, `[B]` in float64; 0 where the weight is 0."""
    norms = g.norms().double()
    return norms * per_unit(g).to(norms.device)


def per_unit(g: PerSampleGrads) -> Tensor:
    """`1 / w_i`, `[B]` in float64; 0 where the weight is 0."""
    weights = g.weights.double()
    used = weights > 0
    return torch.where(used, 1 / torch.where(used, weights, 1.0), 0.0)


def square_of(values: Mapping[str, Tensor]) -> Tensor:
    """The squared length of a dictionary of tensors, `[]` in float64."""
    parts = [value.double().square().sum() for value in values.values()]
    return torch.stack([part.to(parts[0].device) for part in parts]).sum()


def gathered(call: str, values: Tensors, per: str) -> Tensors | Tensor:
    """Values of entries added up: by entry as they are, `{name: []}`, `{layer: []}`, or one `[]`."""
    one_of(call, "per", per, PER)
    if per == "entry":
        return values
    each = {name: value.sum() for name, value in values.items()}
    if per == "parameter":
        return each
    layers: Tensors = {}
    for name, value in each.items():
        key = layer_of(name) if per == "layer" else ""
        layers[key] = layers[key] + value.to(layers[key].device) if key in layers else value
    return layers if per == "layer" else layers[""]
