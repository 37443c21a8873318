"""Samples times numbers that are made of the batch: masks and weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..._errors import kind_of, message
from ..._per_sample import PerSampleGrads
from ..._tree import Tensors
from .._chain import RowStage
from .._guarantee import SAMPLES, Guarantee
from .._numbers import check_flag, shown
from .._protocol import State
from .._said import Facts
from .._stage import How, check_rows

OfRows = Callable[[PerSampleGrads], Tensor]


@dataclass(frozen=True, repr=False)
class Reweighted(RowStage):
    """Every sample times a number that is made of the batch.

    Attributes:
        label: what made it, as it is called.
        shown: its arguments.
        numbers: of the rows, `[B]`, >= 0.
        weights: whether weights are multiplied too.
        independent: whether sample i's number depends on sample i only.
        shrinks: whether no number is above 1.
    """

    label: str
    shown: str
    numbers: OfRows
    weights: bool
    independent: bool
    shrinks: bool

    @property
    def name(self) -> str:
        """As it is called."""
        return self.label

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """A bound stays where rows only shrink, and per unit of weight where weights change alike."""
        bound = before.bound if self.shrinks or (before.per_unit_weight and self.weights) else None
        independent = before.per_sample_independent and self.independent
        unit = before.per_unit_weight and bound is not None
        return dataclasses.replace(before, bound=bound, per_unit_weight=unit, per_sample_independent=independent)

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[PerSampleGrads, State]:
        """The rows, each with its number."""
        g, call = check_rows(self, grads), f"{self!r}.update(g, state)"
        numbers = self.numbers(g)
        if not isinstance(numbers, Tensor) or numbers.shape != (g.batch_size,):
            got = f"shape {tuple(numbers.shape)}" if isinstance(numbers, Tensor) else kind_of(numbers)
            raise ValueError(message(call, got=f"{got} from its function", expected=f"a tensor [{g.batch_size}]"))
        if how.said is not None:
            how.say(self.name, partial(_facts, numbers.detach()))
        return (g.weighted(numbers) if self.weights else g.scaled(numbers)), state

    def __repr__(self) -> str:
        return f"{self.name}({self.shown})"


def mask_per_sample(keep: OfRows, *, per_sample_independent: bool = False) -> Reweighted:
    """Leave samples out: a stage from rows to rows. What is left out has gradient, loss and weight 0.

    Args:
        keep: from the per-sample gradients to bools `[B]`: `lambda g: g.losses < 5`, `lambda g: g.aux["trusted"]`.
        per_sample_independent: promise that `keep` looks at each sample alone. A mask by rank, quantile or any other
            sum over the batch does not, and a chain with it states no sensitivity.

    Formal guarantee: a bound from before holds; row i depends on sample i only if it did before and if that is
    promised.

    | sample                       | kept                        | left out                         |
    |------------------------------|-----------------------------|----------------------------------|
    | finite                       | stays, bit by bit           | gradient, loss and weight 0      |
    | gradient inf or NaN          | stays                       | exact zeros                      |
    | weight 0                     | stays                       | zeros                            |

    Raises:
        TypeError: `keep` is no function.
        ValueError: in an update, something else than bools `[B]`.

    Example:
        >>> import torch, gradfunc as gf
        >>> p = {"w": torch.ones(2)}
        >>> g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())(p, torch.tensor([[3.0, 4.0], [0.0, 0.5]]))
        >>> step = gf.mask_per_sample(lambda g: g.losses < 5) >> gf.mean()
        >>> step.update(g, step.init(p))[0]["w"]
        tensor([0.0000, 0.5000])
    """
    call = "gf.mask_per_sample(keep)"
    _check_function(call, "keep", keep)
    check_flag(call, "per_sample_independent", per_sample_independent)
    told = _told(keep, per_sample_independent=(per_sample_independent, False))
    return Reweighted("mask_per_sample", told, partial(_bools, keep), True, per_sample_independent, True)


def reweight_per_sample(numbers: OfRows, *, weights: bool = True, per_sample_independent: bool = False) -> Reweighted:
    """Multiply samples by numbers >= 0 made of the batch: importance weights, curricula; a stage from rows to rows.

    With importance sampling, sample i drawn with probability p_i out of N counts `1 / (N p_i)`:
    `gf.reweight_per_sample(lambda g: 1 / (N * g.aux["p"]))`. Numbers are constants: no gradient flows through them.

    Args:
        numbers: from the per-sample gradients to numbers `[B]`, finite and >= 0.
        weights: multiply weights as well as gradients and losses, so that a mean is the weighted mean (self-normalised
            importance sampling). False: a mean still divides by the old weights (plain importance sampling).
        per_sample_independent: promise that number i depends on sample i only.

    Formal guarantee: none on norms, since numbers are not bounded, except a bound per unit of weight where weights
    change too; row i depends on sample i only if it did before and if that is promised.

    | number         | sample                                   |
    |----------------|------------------------------------------|
    | 1              | stays, bit by bit                        |
    | 0              | exact zeros, also for inf and NaN        |
    | negative, NaN  | refused                                  |

    Raises:
        TypeError: `numbers` is no function.
        ValueError: in an update, something else than a tensor `[B]` of finite numbers >= 0.

    Example:
        >>> import torch, gradfunc as gf
        >>> p = {"w": torch.ones(1)}
        >>> g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())(p, torch.tensor([[3.0], [1.0]]))
        >>> step = gf.reweight_per_sample(lambda g: torch.tensor([1.0, 3.0])) >> gf.mean()
        >>> step.update(g, step.init(p))[0]["w"]
        tensor([1.5000])
    """
    call = "gf.reweight_per_sample(numbers)"
    _check_function(call, "numbers", numbers)
    for name, value in {"weights": weights, "per_sample_independent": per_sample_independent}.items():
        check_flag(call, name, value)
    told = _told(numbers, weights=(weights, True), per_sample_independent=(per_sample_independent, False))
    checked = partial(_checked, call, numbers)
    return Reweighted("reweight_per_sample", told, checked, weights, per_sample_independent, False)


def _told(fn: OfRows, **options: tuple[bool, bool]) -> str:
    """A function, and options that are not at their default, as in the call."""
    return ", ".join([shown(fn), *(f"{name}={value}" for name, (value, usual) in options.items() if value != usual)])


def _check_function(call: str, name: str, fn: object) -> None:
    if not callable(fn):
        raise TypeError(message(call, got=f"{name}={fn!r}", expected="a function of per-sample gradients"))


def _bools(keep: OfRows, g: PerSampleGrads) -> Tensor:
    kept = keep(g)
    if isinstance(kept, Tensor) and kept.dtype != torch.bool:
        call, do = "gf.mask_per_sample(keep)", "Compare: g.losses < 5. Numbers are for gf.reweight_per_sample."
        raise ValueError(message(call, got=f"dtype {kept.dtype} from keep", expected="bools", do=do))
    return kept


def _checked(call: str, numbers: OfRows, g: PerSampleGrads) -> Tensor:
    given = numbers(g)
    return given.detach() if isinstance(given, Tensor) else given


def _facts(numbers: Tensor) -> Facts:
    n = max(len(numbers), 1)
    return {"left_out": (numbers == 0).double().sum() / n, "mean_factor": numbers.double().sum() / n}
