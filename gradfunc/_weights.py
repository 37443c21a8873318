"""`Weighted` and the accumulator: the only way a mean is taken.

Each sample contributes a numerator and a weight. `sum` adds the numerators' gradients; `mean` divides that
sum by the total weight, once, at the very end: over chunks, micro-batches and ranks alike. Nothing in
gradfunc averages means.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ._errors import kind_of, message, one_of
from ._tree import Tensors, wide, zeros


class Weighted(NamedTuple):
    """A loss and the weight with which it enters a mean.

    Attributes:
        numerator: the summed loss; `[]` for one sample, `[B]` for a batch. Its gradient is the sample's gradient.
        weight: the same shape, >= 0 and constant: it never depends on the parameters.

    Example:
        >>> Weighted(torch.tensor(6.0), torch.tensor(3.0)).weight    # three tokens, total loss 6
        tensor(3.)
    """

    numerator: Tensor
    weight: Tensor


@runtime_checkable
class Summable(Protocol):
    """What an accumulator adds: the sum of the rows, and their weights."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters."""

    @property
    def weights(self) -> Tensor:
        """`[B]`."""

    def sum(self, *, wide: bool = False) -> Tensors:
        """Sum of the per-sample gradients, with `wide` in the accumulation dtype."""


def as_weighted(call: str, out: Any, *, batched: bool) -> Weighted:
    """Read what a loss returned: a tensor, or `Weighted`; a number as the weight is taken as it is.

    Raises:
        TypeError: neither a floating tensor nor `Weighted`.
        ValueError: not a scalar (or, batched, not one dimension); numerator and weight of other shapes.
    """
    numerator: Any = out.numerator if isinstance(out, Weighted) else out
    weight: Any = out.weight if isinstance(out, Weighted) else None
    shape = "one loss a sample, shape [B]" if batched else "a scalar, the loss of one sample"
    if not isinstance(numerator, Tensor):
        raise TypeError(
            message(call, got=f"{kind_of(numerator)} from the loss", expected=f"a tensor or gf.Weighted: {shape}")
        )
    if not numerator.is_floating_point():
        raise TypeError(message(call, got=f"a loss of dtype {numerator.dtype}", expected="a floating dtype"))
    if numerator.dim() != int(batched):
        do = (
            "Return the losses unreduced (gf.losses with batched=True, or reduction='none' summed over all but "
            "dimension 0), or drop batched=True if the loss is of one sample."
            if batched
            else "Reduce it (such as .sum()), or pass batched=True if the function runs the whole batch."
        )
        raise ValueError(message(call, got=f"a loss of shape {tuple(numerator.shape)}", expected=shape, do=do))
    if weight is None:
        # not ones_like, which would take part in a vmap around the call and so be nobody's to look at
        ones = torch.ones(numerator.shape, dtype=wide(numerator.dtype), device=numerator.device)
        return Weighted(numerator, ones)
    if not isinstance(weight, Tensor):
        weight = torch.full_like(numerator, float(weight), dtype=wide(numerator.dtype))
    if weight.shape != numerator.shape:
        raise ValueError(
            message(
                call,
                got=f"Weighted with a numerator of shape {tuple(numerator.shape)} and a weight of shape "
                f"{tuple(weight.shape)}",
                expected="the same shape",
            )
        )
    return Weighted(numerator, weight.detach())


def check_weights(call: str, weights: Tensor) -> None:
    """Raise ValueError on a weight that is negative or not finite."""
    bad = ~(weights.isfinite() & (weights >= 0))
    if bool(bad.any()):
        i = int(bad.nonzero()[0])
        raise ValueError(
            message(call, got=f"weight {float(weights[i])} for sample {i}", expected="finite weights >= 0")
        )


def total(weights: Tensor) -> Tensor:
    """The total weight, in float64 so that counts are exact."""
    return weights.sum(dtype=torch.float64)


def ratio(call: str, sums: Tensors, weight: Tensor, on_zero_weight: str, *, owned: bool = False) -> Tensors:
    """`sums / weight`, the one division; total weight 0 raises, or gives exact zeros with "zero".

    The quotients take the place of the sums in the dictionary, so that two of each are never held; with `owned`, where
    nobody else holds the sums, also of their memory.
    """
    one_of(call, "on_zero_weight", on_zero_weight, ("raise", "zero"))
    if on_zero_weight == "zero":  # nobody waits for the device
        none = weight == 0
        weight = torch.where(none, torch.ones_like(weight), weight)
        for name, value in sums.items():
            kept = torch.where(none.to(value.device), torch.zeros((), dtype=value.dtype, device=value.device), value)
            sums[name] = kept / weight.to(value.device, value.dtype)
        return sums
    if float(weight.detach()) == 0:
        raise ValueError(
            message(
                call,
                got="a total weight of 0",
                expected="at least one sample with weight > 0",
                do="The batch is empty, or every sample is ignored; pass on_zero_weight='zero' for zeros.",
            )
        )
    for name, value in sums.items():
        divisor = weight.to(value.device, value.dtype)
        sums[name] = value.div_(divisor) if owned and not value.requires_grad else value / divisor
    return sums


@dataclass(frozen=True)
class Accumulator:
    """A running sum and total weight: the same mean under any split of the batch. Immutable.

    Half types accumulate in float32 and are cast back by `sum` and `mean`.

    Example:
        >>> import gradfunc as gf
        >>> f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())
        >>> p, x = {"w": torch.ones(2)}, torch.arange(6.0).reshape(3, 2)
        >>> acc = gf.Accumulator.init(p).add(f(p, x[:1])).add(f(p, x[1:]))
        >>> acc.mean()["w"]
        tensor([2., 3.])
    """

    totals: Tensors
    weight: Tensor
    dtypes: dict[str, torch.dtype]

    @classmethod
    def init(cls, params: Mapping[str, Tensor]) -> Accumulator:
        """Zero for each of `params` (`{name: tensor}`).

        Raises:
            TypeError: `params` is something else.
        """
        if not isinstance(params, Mapping) or not all(isinstance(value, Tensor) for value in params.values()):
            call = "gf.Accumulator.init(params)"
            raise TypeError(
                message(call, got=kind_of(params), expected="a dict {name: tensor}", do="Pass model.params.")
            )
        return cls(zeros(params), torch.zeros((), dtype=torch.float64), {k: v.dtype for k, v in params.items()})

    def add(self, g: Summable) -> Accumulator:
        """With the samples of `g` (per-sample gradients of the same parameters) added.

        Raises:
            TypeError: `g` is something else.
            ValueError: `g` holds other parameters than `init` was given.
        """
        if not isinstance(g, Summable):
            raise TypeError(message("gf.Accumulator.add(g)", got=kind_of(g), expected="per-sample gradients"))
        if set(g.names) != set(self.totals):
            missing = sorted(set(self.totals) - set(g.names))
            extra = sorted(set(g.names) - set(self.totals))
            raise ValueError(
                message(
                    "gf.Accumulator.add(g)",
                    got=f"gradients that lack {missing} and hold besides {extra}",
                    expected="the parameters given to init",
                    do="With wrt=, start from Accumulator.init({name: params[name] for name in g.names}).",
                )
            )
        with torch.no_grad():  # totals outlive the batches: a graph behind them would keep every one
            sums = g.sum(wide=True)
        for name, value in self.totals.items():
            if value.shape != sums[name].shape:
                got = f"'{name}' of shape {tuple(sums[name].shape)}"
                raise ValueError(
                    message("gf.Accumulator.add(g)", got=got, expected=f"{tuple(value.shape)}, as in init")
                )
        totals = {name: value + sums[name].to(value.dtype) for name, value in self.totals.items()}
        weight = total(g.weights)
        return dataclasses.replace(self, totals=totals, weight=self.weight.to(weight.device) + weight)

    def sum(self) -> Tensors:
        """Sum of the numerators' gradients, in the parameters' dtypes."""
        return self._cast(self.totals)

    def mean(self, *, on_zero_weight: str = "raise") -> Tensors:
        """Sum divided by total weight.

        Raises:
            ValueError: the total weight is 0, unless `on_zero_weight="zero"`, which gives zeros.
        """
        return self._cast(ratio("gf.Accumulator.mean()", dict(self.totals), self.weight, on_zero_weight))

    def _cast(self, values: Tensors) -> Tensors:
        # clone: an accumulator's result must not share storage with the accumulator
        return {name: value.to(self.dtypes[name], copy=True) for name, value in values.items()}
