"""Losses and metrics over a whole data set, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .._errors import kind_of, message
from .._per_sample import PerSampleGradsFunction, per_sample_grads
from .._tree import Tensors
from .._weights import Weighted, as_weighted
from ._data import Data, Order, read_data

Metric = Callable[..., Tensor | Weighted]


def evaluate(
    loss: Callable[..., Any] | PerSampleGradsFunction,
    params: Tensors,
    data: Any,
    *,
    metrics: Mapping[str, Metric] | None = None,
    batch_size: int | None = None,
) -> dict[str, float]:
    """The mean loss over a data set, and the mean of each metric: numerators over weights, divided once.

    Args:
        loss: of one sample, or what `gf.per_sample_grads` made of one, with its options.
        params: `{name: tensor}`.
        data: as for `gf.train.fit`, in its own order.
        metrics: `{name: metric(params, *batch) -> [B] | Weighted}`, of a whole batch each, such as
            `(model(params, x).argmax(-1) == y)`.
        batch_size: of data in memory, by default 32.

    Raises:
        TypeError, ValueError: data that cannot be read; a metric that gives something else; a total weight of 0.

    Example:
        >>> import torch, gradfunc as gf
        >>> def loss(p, x, y):
        ...     return (p["w"] * x - y).square()
        >>> def near(p, x, y):
        ...     return (p["w"] * x - y).abs() < 1
        >>> gf.train.evaluate(loss, {"w": torch.ones(())}, (torch.arange(4.0), torch.zeros(4)), metrics={"near": near})
        {'loss': 3.5, 'near': 0.25}
    """
    call = "gf.train.evaluate(loss, params, data)"
    if "loss" in (metrics or {}):
        raise ValueError(message(call, got="metrics of ['loss']", expected="other names than 'loss'"))
    f = loss if isinstance(loss, PerSampleGradsFunction) else per_sample_grads(loss)
    like = first_floating(call, params)
    read = read_data(call, "data", data, like, Order(batch_size))
    return means(call, f, params, read, metrics or {})


def means(
    call: str, f: PerSampleGradsFunction, params: Tensors, data: Data, metrics: Mapping[str, Metric], step: int = 0
) -> dict[str, float]:
    """The same of data that have been read; `step` names the draws of the loss."""
    sums: dict[str, tuple[float, float]] = {}
    with torch.no_grad():
        for batch in data.in_order():
            found = {
                "loss": f.at(step, None if f.options.batched else batch.ids).losses(params, *batch.args, **batch.kwargs)
            }
            for name, metric in metrics.items():
                found[name] = _rows(f"metrics[{name!r}](params, ...)", metric(params, *batch.args, **batch.kwargs))
            for name, (numerator, weight) in found.items():
                before = sums.get(name, (0.0, 0.0))
                pair = (float(numerator.sum(dtype=torch.float64)), float(weight.sum(dtype=torch.float64)))
                sums[name] = (before[0] + pair[0], before[1] + pair[1])
    if none := [name for name, (_, weight) in sums.items() if weight == 0]:
        raise ValueError(message(call, got=f"a total weight of 0 for {none}", expected="a sample with weight > 0"))
    return {name: numerator / weight for name, (numerator, weight) in sums.items()}


def first_floating(call: str, params: Any) -> Tensor:
    """The parameter whose dtype and device the data take."""
    if isinstance(params, Mapping):
        for value in params.values():
            if isinstance(value, Tensor) and value.is_floating_point():
                return value
    raise TypeError(
        message(call, got=f"{kind_of(params)} as params", expected="a dict {name: tensor} with a floating one")
    )


def _rows(call: str, out: Any) -> Weighted:
    if isinstance(out, Tensor) and not out.is_floating_point():
        out = out.double()
    return as_weighted(call, out, batched=True)
