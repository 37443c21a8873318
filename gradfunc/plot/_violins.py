"""Violins from histograms: what a `gf.diagnose.Distribution` holds, and no raw entries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..diagnose import Distribution
from ._style import PALETTE, decades, power_of_ten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HALF = 0.42  # the widest half of a violin; layers are 1 apart
WIDE = 30.0  # from here on scales of layers differ too much for a linear axis


def violins(axes: Axes, found: Mapping[int, Distribution | None], colour: str) -> None:
    """One violin at each x; bars for the quartiles, lines from 5 to 95 %, dots for medians.

    Its width at a height is the share of entries in that bin of the histogram, the widest bin of each layer alike.
    """
    from matplotlib.collections import PolyCollection

    spec = axes.get_subplotspec()
    place = 0 if spec is None else spec.num1  # names in a figure are each of one thing
    there = [(k, d) for k, d in found.items() if d is not None and d.histogram]
    outlines = [_outline(k, d) for k, d in there]
    axes.add_collection(
        PolyCollection(
            outlines, facecolors=colour, edgecolors=colour, alpha=0.45, linewidths=0.8, gid=f"violins-{place}"
        )
    )
    if there:
        at = [k for k, _ in there]
        low, first, middle, third, high = (
            [dict(d.quantiles)[level] for _, d in there] for level in (0.05, 0.25, 0.5, 0.75, 0.95)
        )
        axes.vlines(at, low, high, colors=PALETTE["black"], linewidth=0.7)
        axes.vlines(at, first, third, colors=PALETTE["black"], linewidth=2.2 if len(found) < 25 else 1.3)
        axes.plot(
            at,
            middle,
            "o",
            color="white",
            markeredgecolor=PALETTE["black"],
            markersize=2.6,
            mew=0.7,
            gid=f"medians-{place}",
        )
    for k, d in found.items():
        if d is None or not d.histogram:
            axes.annotate("none", (k, 0.5), xycoords=("data", "axes fraction"), ha="center", rotation=90, fontsize=7)
        elif d.nonfinite:
            axes.annotate("✗", (k, 0.97), xycoords=("data", "axes fraction"), ha="center", va="top",
                          color=PALETTE["vermilion"])  # fmt: skip
    scale(axes, [d for _, d in there])


def _outline(k: int, d: Distribution) -> np.ndarray:
    """Corners at the middles of bins, closed at the smallest and the largest entry."""
    low, high = d.edges
    if low == high:
        return np.array([(k - HALF, low), (k + HALF, low)])
    heights = np.array(d.histogram) / max(d.histogram) * HALF
    middles = low + (np.arange(len(heights)) + 0.5) * (high - low) / len(heights)
    y = np.concatenate([[low], middles, [high]])
    half = np.concatenate([heights[:1], heights, heights[-1:]])
    return np.concatenate([np.stack([k - half, y], 1), np.stack([k + half, y], 1)[::-1]])


def scale(axes: Axes, found: Sequence[Distribution]) -> None:
    """Linear, or by decades on both sides of 0 where the layers' scales differ by much."""
    sizes = [d.rms for d in found if d.rms > 0]
    reach = max((max(map(abs, d.edges)) for d in found), default=0.0)
    low, high = min((d.edges[0] for d in found), default=-1.0), max((d.edges[1] for d in found), default=1.0)
    if sizes and max(sizes) > WIDE * min(sizes):
        from matplotlib.ticker import NullLocator

        least = math.floor(math.log10(min(sizes)))
        axes.set_yscale("symlog", linthresh=10.0**least)
        powers = decades(least, math.log10(reach), 4)
        powers = powers[1:] if powers[-1] - least > 6 else powers  # the first stands too near to 0 then
        above = [10.0**k for k in powers] if high > 0 else []
        below = [-(10.0**k) for k in reversed(powers)] if low < 0 else []
        labels = [f"-{power_of_ten(k)}" for k in reversed(powers)] if below else []
        axes.set_yticks([*below, 0.0, *above], [*labels, "0", *([power_of_ten(k) for k in powers] if above else [])])
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(*(3 * x if x else 0.0 for x in (min(low, 0.0), max(high, 0.0))))
    else:
        room = 0.05 * (high - low) or 0.5
        axes.set_ylim(low - room, high + room)
