"""The stages that random chains are made of, the simplest of each place first: hypothesis shrinks towards these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import _transform as t
from ..._per_sample import PerSampleGrads
from ...schedules import exponential

Names = Sequence[str]  # of parameters that stages may single out; none for those that know no name
Make = Callable[[float, Names], Any]

HALVING = exponential(1.0, 0.5)


def heavy(g: PerSampleGrads) -> Tensor:
    """Which samples weigh more than 1/2: `[B]`, for `gf.mask_per_sample`.

    Example:
        >>> import torch, gradfunc as gf
        >>> f = gf.per_sample_grads(lambda p, x, w: gf.Weighted((p["w"] * x).sum(), w))
        >>> heavy(f({"w": torch.ones(1)}, torch.ones(2, 1), torch.tensor([0.25, 2.0])))
        tensor([False,  True])
    """
    return g.weights > 0.5


def deviation(g: PerSampleGrads) -> Tensor:
    """How far each loss is from their mean, `[B]`, for `gf.reweight_per_sample`: it looks at all samples.

    Example:
        >>> import torch, gradfunc as gf
        >>> f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())
        >>> deviation(f({"w": torch.ones(1)}, torch.tensor([[1.0], [3.0]])))
        tensor([1., 1.])
    """
    return (g.losses - g.losses.mean()).abs()


class Stage(NamedTuple):
    """How a stage is made of one positive number.

    Attributes:
        alone: of rows: row i of the output depends on row i only.
        bounds: of rows: whatever comes, no row is longer than a number.
        named: whether it singles out parameters by name.
    """

    make: Make
    alone: bool = True
    bounds: bool = False
    named: bool = False


ROWS = (
    Stage(lambda c, _: t.clip_per_sample(c), bounds=True),
    Stage(lambda c, _: t.identity()),
    Stage(lambda c, _: t.normalize_per_sample(c), bounds=True),
    Stage(lambda c, _: t.normalize_weights()),
    Stage(lambda c, _: t.clip_per_sample(c, per_unit_weight=True)),
    Stage(lambda c, _: t.clip_per_sample(HALVING)),
    Stage(lambda c, _: t.normalize_per_sample(c, per_unit_weight=True, stability=0.5)),
    Stage(lambda c, _: t.adaptive_clip_per_sample(c)),
    Stage(lambda c, _: t.adaptive_clip_per_sample(c, unit=True)),
    Stage(lambda c, _: t.clip_value_per_sample(c)),
    Stage(lambda c, _: t.sign_per_sample()),
    Stage(lambda c, _: t.mask_per_sample(heavy, per_sample_independent=True)),
    Stage(lambda c, _: t.nonfinite_per_sample("skip")),
    Stage(lambda c, _: t.clip_per_sample(c, groups="parameter"), named=True),
    Stage(lambda c, names: t.clip_per_sample(2 * c, groups={names[0]: c}), bounds=True, named=True),
    Stage(lambda c, names: t.masked(t.clip_per_sample(c), names[-1]), named=True),
    Stage(
        lambda c, names: t.partition(
            {"x": t.clip_per_sample(c), "y": t.normalize_per_sample(c)}, _halves(names, "x", "y")
        ),
        bounds=True,
        named=True,
    ),
    Stage(lambda c, _: t.top_k_loss(3), alone=False),
    Stage(lambda c, _: t.reweight_per_sample(deviation), alone=False),
)
# By sums of rows over a number that was fixed beforehand, over their weight, and in other ways.
FIXED: tuple[Callable[[], Any], ...] = (t.sum, lambda: t.mean(denominator=5.0))
LINEAR = (*FIXED, lambda: t.mean(on_zero_weight="zero"))
REDUCTIONS = (
    *LINEAR,
    lambda: t.median(on_zero_weight="zero"),
    lambda: t.trimmed_mean(on_zero_weight="zero"),
    lambda: t.sign_vote(on_zero_weight="zero"),
)
BATCH = (
    Stage(lambda c, _: t.scale(c)),
    Stage(lambda c, _: t.identity()),
    Stage(lambda c, _: t.clip_by_global_norm(c)),
    Stage(lambda c, _: t.clip_by_value(c)),
    Stage(lambda c, _: t.add_noise(c, seed=3)),
    Stage(lambda c, _: t.ema(0.5)),
    Stage(lambda c, _: t.centralize()),
    Stage(lambda c, _: t.sign()),
    Stage(lambda c, _: t.add_decayed_weights(c)),
    Stage(lambda c, _: t.skip_nonfinite()),
    Stage(lambda c, _: t.clip_by_parameter_norm(c)),
    Stage(lambda c, names: t.masked(t.scale(HALVING), names[0]), named=True),
)
RULES = (
    Stage(lambda c, _: t.sgd(c)),
    Stage(lambda c, _: t.sgd(c, momentum=0.5)),
    Stage(lambda c, _: t.adam(c)),
    Stage(lambda c, _: t.adamw(HALVING)),
    Stage(lambda c, _: t.lion(c)),
    Stage(lambda c, _: t.from_torch_optim(torch.optim.RMSprop, lr=c)),
)


def _halves(names: Names, first: str, second: str) -> dict[str, str]:
    """The first parameter by itself, and all others."""
    return {name: second if k else first for k, name in enumerate(names)}
