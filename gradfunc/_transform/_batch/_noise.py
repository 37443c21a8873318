"""Gaussian noise, of a standard deviation that is given, or that follows from what one sample can move."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..._errors import message, one_of
from ..._tree import Tensors
from .._chain import BatchStage
from .._guarantee import SAMPLES, Guarantee, times
from .._noise import check_seed, gaussian
from .._numbers import NOT_NEGATIVE, POSITIVE, Number, at, check_number, count_of, counted, fixed, shown
from .._protocol import Grads, State
from .._stage import How, check_grads, gathered

ADJACENCIES = ("add_remove", "replace_one")


@dataclass(frozen=True, repr=False)
class AddNoise(BatchStage):
    """Made by `gf.add_noise`, which has the meanings."""

    std: Number
    seed: int
    name = "add_noise"

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """Noise does not depend on the data: one sample moves the output as far as the input."""
        return times(before, 1.0)

    def init(self, params: Tensors, /) -> State:
        """The count of updates, which names the draws."""
        return {"count": 0}

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Grads, State]:
        """Every entry."""
        std = at(repr(self), "std", self.std, NOT_NEGATIVE, state)
        how.say(self.name, lambda: {"std": std})
        return noised(self, check_grads(self, grads), std, self.seed, count_of(state), how), counted(state)

    def __repr__(self) -> str:
        return f"add_noise({shown(self.std)}, seed={self.seed})"


def add_noise(std: Number, *, seed: int) -> AddNoise:
    """Gaussian noise on every entry: a stage on gradients.

    The noise of a parameter is a function of the seed, the count of updates in the state, and the parameter's name: it
    is the same whatever other parameters there are, in `gf.masked` and `gf.partition`, and when training is resumed.
    torch's global generators are neither read nor moved. Devices have generators of their own, so their draws differ.
    Two such stages of one seed draw the same: give each its own. For half types noise is drawn in float32 and rounded
    with the sum.

    Args:
        std: the standard deviation, at least 0, or a schedule: a function from the count of updates before this one.
        seed: an integer.

    Raises:
        TypeError, ValueError: something else.

    Example:
        >>> import torch, gradfunc as gf
        >>> stage = gf.add_noise(0.1, seed=0)
        >>> g = {"w": torch.zeros(10_000)}
        >>> first, state = stage.update(g, stage.init(g))
        >>> again, _ = stage.update(g, stage.init(g))
        >>> abs(float(first["w"].std()) - 0.1) < 0.005, torch.equal(first["w"], again["w"])
        (True, True)
    """
    call = "gf.add_noise(std, seed=...)"
    check_number(call, "std", std, NOT_NEGATIVE)
    check_seed(call, seed)
    return AddNoise(fixed(std), seed)


@dataclass(frozen=True, repr=False)
class GaussianMechanism(BatchStage):
    """Made by `gf.gaussian_mechanism`, which has the meanings.

    Attributes:
        told: the sensitivity of what comes before, by the chain that it is in.
    """

    noise_multiplier: Number
    seed: int
    adjacency: str
    sensitivity: float | None
    told: float | None = None
    name = "gaussian_mechanism"

    def guarantee(self, before: Guarantee = SAMPLES, /) -> Guarantee:
        """As of `gf.add_noise`."""
        return times(before, 1.0)

    def after(self, before: Guarantee, giver: str, /) -> GaussianMechanism:
        """With the sensitivity of what `giver` gives.

        Raises:
            ValueError: it is not known.
        """
        if self.sensitivity is not None:
            return self
        found = getattr(before.sensitivity, self.adjacency)
        if found is None:
            raise ValueError(
                message(
                    f"{giver} >> {self.name}",
                    got=f"{giver}, behind which nothing bounds what one sample can move ({self.adjacency})",
                    expected=f"a bound, to which {self.name} scales its noise",
                    do="Clip every sample and divide by a number that is no data: gf.clip_per_sample(C) >> "
                    "gf.mean(denominator=D), or gf.sum(); stages of your own in between need guarantee(before). "
                    "Or pass sensitivity=, if you know it.",
                )
            )
        return dataclasses.replace(self, told=found)

    def init(self, params: Tensors, /) -> State:
        """The count of updates, which names the draws."""
        return {"count": 0}

    def apply(self, grads: Any, state: State, params: Tensors | None, how: How, /) -> tuple[Grads, State]:
        """Every entry."""
        call = f"{self!r}.update(grads, state)"
        sensitivity = self.told if self.sensitivity is None else self.sensitivity
        if sensitivity is None:
            do = "Put it behind gf.clip_per_sample(C) >> gf.sum() in one chain, or pass sensitivity=."
            got = "no sensitivity: nothing has told the stage what one sample can move"
            raise ValueError(message(call, got=got, expected="a chain from per-sample gradients", do=do))
        std = at(call, "noise_multiplier", self.noise_multiplier, NOT_NEGATIVE, state) * sensitivity
        how.say(self.name, lambda: {"std": std, "sensitivity": sensitivity})
        return noised(self, check_grads(self, grads), std, self.seed, count_of(state), how), counted(state)

    def __repr__(self) -> str:
        given = [shown(self.noise_multiplier), f"seed={self.seed}"]
        given += [] if self.adjacency == "add_remove" else [f"adjacency={self.adjacency!r}"]
        given += [] if self.sensitivity is None else [f"sensitivity={self.sensitivity!r}"]
        return f"{self.name}({', '.join(given)})"


def gaussian_mechanism(
    noise_multiplier: Number, *, seed: int, adjacency: str = "add_remove", sensitivity: float | None = None
) -> GaussianMechanism:
    """Gaussian noise in units of what one sample can move the gradient by: a stage on gradients.

    The standard deviation is `noise_multiplier` times the sensitivity S (Dwork, Roth 2014, "The Algorithmic Foundations
    of Differential Privacy", appendix A), as the chain knows it when it is built from per-sample gradients on: behind
    `gf.clip_per_sample(C) >> gf.sum()` it is C if a sample is added or left out, 2C if one is replaced, and over D
    behind `gf.mean(denominator=D)`. Stages between keep or scale it where that is provable: `gf.scale`, clips of the
    batch's gradient, noise, weight decay. Draws are as in `gf.add_noise`: numbers of a pseudo-random generator of
    machine precision. What privacy that is, an accountant says.

    | before it                                        | S, add or remove | S, replace one |
    |--------------------------------------------------|------------------|----------------|
    | clip_per_sample(C) >> sum()                      | C                | 2C             |
    | clip_per_sample(C) >> mean(denominator=D)        | C/D              | 2C/D           |
    | the same >> scale(a)                             | times `|a|`      | times `|a|`    |
    | clip_per_sample(C) >> mean()                     | ValueError       | ValueError     |
    | sum() of rows that are not clipped               | ValueError       | ValueError     |
    | a stage of your own without `guarantee`          | ValueError       | ValueError     |
    | nothing: a stage alone, no `sensitivity`         | ValueError in the update | the same |

    Args:
        noise_multiplier: at least 0, or a schedule: a function from the count of updates before this one.
        seed: an integer, not that of another noise in the chain.
        adjacency: which data sets are neighbours: one sample more or less ("add_remove"), or another ("replace_one").
        sensitivity: S itself, on your own word; the chain's is not asked.

    Raises:
        TypeError, ValueError: an option out of range; when a chain is built, no bound on what one sample moves; in an
            update, the stage was never told one.

    Example:
        >>> import gradfunc as gf
        >>> step = gf.clip_per_sample(2.0) >> gf.mean(denominator=10) >> gf.gaussian_mechanism(1.5, seed=0)
        >>> step.stages[-1].told
        0.2
        >>> try:
        ...     gf.clip_per_sample(2.0) >> gf.mean() >> gf.gaussian_mechanism(1.5, seed=0)
        ... except ValueError as error:
        ...     print(str(error)[:84])
        mean >> gaussian_mechanism: got mean, behind which nothing bounds what one sample ca
    """
    call = "gf.gaussian_mechanism(noise_multiplier, seed=...)"
    check_number(call, "noise_multiplier", noise_multiplier, NOT_NEGATIVE)
    check_seed(call, seed)
    one_of(call, "adjacency", adjacency, ADJACENCIES)
    if sensitivity is not None:
        check_number(call, "sensitivity", sensitivity, POSITIVE, schedule=False)
        sensitivity = float(sensitivity)
    return GaussianMechanism(fixed(noise_multiplier), seed, adjacency, sensitivity)


def noised(stage: BatchStage, values: Tensors, std: float, seed: int, count: int, how: How) -> Grads:
    """Values plus noise of this stage, step and parameter."""
    out = how.own(values.values())
    for name, value in zip(values, out, strict=True):
        value.add_(gaussian(value, stage.name, seed, count, name), alpha=std)
    return gathered(values, out)
