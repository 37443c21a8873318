"""Losses and metrics over a whole data set, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._errors import kind_of, message
from .._per_sample import PerSampleGradsFunction, per_sample_grads
from .._random import forked
from .._tree import Tensors
from .._weights import Weighted, as_weighted
from ._data import Data, Order, no_batch, read_data

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
        TypeError, ValueError: data that cannot be read, or give no batch; a metric that is no function, or gives
            something else; a total weight of 0.

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
    metrics = functions(call, "metrics", metrics, ("loss",))
    f = loss if isinstance(loss, PerSampleGradsFunction) else per_sample_grads(loss)
    like = first_floating(call, params)
    read = read_data(call, "data", data, like, Order(batch_size))
    return means(call, f, params, read, metrics)


def means(
    call: str, f: PerSampleGradsFunction, params: Tensors, data: Data, metrics: Mapping[str, Metric], step: int = 0
) -> dict[str, float]:
    """The same of data that have been read; `step` names the draws of the loss, and of metrics."""
    sums: dict[str, tuple[float, float]] = {}
    devices = {value.device for value in params.values()}
    with torch.no_grad():
        for number, batch in enumerate(data.in_order()):
            found = {
                "loss": f.at(step, None if f.options.batched else batch.ids).losses(params, *batch.args, **batch.kwargs)
            }
            for k, (name, metric) in enumerate(metrics.items()):
                with forked(f.options.seed, step, number, k, devices=devices):
                    rows = metric(params, *batch.args, **batch.kwargs)
                found[name] = _rows(f"metrics[{name!r}](params, ...)", rows)
            for name, (numerator, weight) in found.items():
                before = sums.get(name, (0.0, 0.0))
                both = torch.stack([numerator.sum(dtype=torch.float64), weight.sum(dtype=torch.float64)]).tolist()
                sums[name] = (before[0] + both[0], before[1] + both[1])
    if not sums:
        raise no_batch(call, "of the data")
    if none := [name for name, (_, weight) in sums.items() if weight == 0]:
        raise ValueError(message(call, got=f"a total weight of 0 for {none}", expected="a sample with weight > 0"))
    return {name: numerator / weight for name, (numerator, weight) in sums.items()}


def functions(call: str, name: str, given: Any, taken: Sequence[str]) -> dict[str, Any]:
    """A mapping of functions under names that are not taken; empty for None.

    Raises:
        TypeError: something else.
        ValueError: a name that is taken.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(k, str) and callable(v) for k, v in given.items()):
        raise TypeError(message(call, got=f"{name}={given!r}", expected="a mapping {name: function}"))
    if used := [key for key in given if key.partition("/")[0] in taken]:
        raise ValueError(
            message(call, got=f"{name} of {used}", expected=f"other names than those taken, {list(taken)}")
        )
    return dict(given)


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
