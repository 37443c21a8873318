"""When a layer is said to vanish, to explode, to be dead or saturated; every threshold, with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..._report import number

# The norm of the activations' gradient at a layer, over that at the last one. At a hundredth, a rate that suits one end
# of the net is two orders wrong at the other: about the width of the range of rates at which a net trains at all.
# It counts where no layer before has a gradient on the good side of it: behind a branch such as the keys of attention,
# whose gradients are small by nature, earlier layers are reached by other ways.
CHANGE = 100.0
# Rates from 1 down to 1/1000 are in use. Where no rate is given, |gradient| / |weight| is too small if even a step at
# rate 1 is lost in the rounding of a float32 weight, too large if even one at 1/1000 replaces it.
RATES = (1e-3, 1.0)
LOST, REPLACED = 2.0**-24, 1.0
# Half of the units of a deep ReLU net are 0 on a whole batch without harm: its inputs grow alike with depth, and each
# unit is on for all of them or off for all.
DEAD = 0.9
# Where most entries are flat, their gradient is that of the others.
FLAT_ENTRIES = 0.5

SEVERITY = ("non-finite", "dead", "exploding", "vanishing", "saturated", "healthy")


@dataclass(frozen=True)
class Evidence:
    """What a layer is judged by.

    Attributes:
        nonfinite: what is not finite: "activations", "gradients", ... in the order of the passes.
        dead: share of units that are 0 for every sample.
        units: how many it has.
        saturated: share of entries where the activation is flat, None for one that does not saturate.
        change: the norm of its activations' gradient over that at the last comparable layer; None where not compared.
        least: the smallest such number of this and all earlier layers.
        most: the largest one.
        ratio: |gradient| / |weight|; None where a weight is 0, or no gradient comes.
        reached: whether a gradient comes at all.
        lr: the rate, None if not known.
    """

    nonfinite: tuple[str, ...]
    dead: float
    units: int
    saturated: float | None
    change: float | None
    least: float
    most: float
    ratio: float | None
    reached: bool
    lr: float | None


def judge(seen: Evidence) -> tuple[str, str]:
    """The verdict on a layer, and the evidence in words; the first that holds, in the order of `SEVERITY`."""
    if seen.nonfinite:
        return "non-finite", f"{' and '.join(seen.nonfinite)} not finite"
    if seen.dead > DEAD:
        return "dead", f"{seen.dead:.0%} of {seen.units} units are 0 for every sample"
    smallest, largest = RATES if seen.lr is None else (seen.lr, seen.lr)
    found = []
    if seen.change is not None and seen.least > CHANGE:
        found.append(("exploding", f"its gradient is {number(seen.change)} times that at the last layer"))
    if seen.ratio is not None and seen.ratio * smallest > REPLACED:
        found.append(("exploding", f"|gradient| / |weight| is {number(seen.ratio)}, above {REPLACED / smallest:.3g}"))
    if seen.reached and seen.change is not None and seen.most < 1 / CHANGE:
        found.append(("vanishing", f"its gradient is {number(seen.change)} times that at the last layer"))
    if not seen.reached:
        found.append(("vanishing", "its gradient is exactly 0"))
    elif seen.ratio is not None and seen.ratio * largest < LOST:
        found.append(("vanishing", f"|gradient| / |weight| is {number(seen.ratio)}, below {LOST / largest:.3g}"))
    if found:
        verdict = found[0][0]
        return verdict, "; ".join(why for kind, why in found if kind == verdict)
    if seen.saturated is not None and seen.saturated > FLAT_ENTRIES:
        return "saturated", f"{seen.saturated:.0%} of its entries lie where the activation is flat"
    return "healthy", ""


def worst(verdicts: list[str]) -> str:
    """The most severe one."""
    return min(verdicts, key=SEVERITY.index)


def ratio(gradient: float, weight: float) -> float | None:
    """`|gradient| / |weight|`, None for weights of 0."""
    return gradient / weight if weight > 0 and math.isfinite(weight) else None
