"""Dots on a logarithmic axis, one line of them a name; zeros have a place of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ._style import PALETTE, decades, elided, power_of_ten

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Dots(NamedTuple):
    """One value a name, and its sign: a colour of the palette, a marker, a size in points."""

    values: Sequence[float | None]
    colour: str
    marker: str
    size: float
    filled: bool = True


def dots(axes: Axes, names: Sequence[str], series: Mapping[str, Dots], *, most: int = 44) -> None:
    """One sign a name and series, from top to bottom.

    x are logarithms to the base 10; None is left out, 0 is drawn left of all others at a tick of its own, and inf and
    NaN at the right.
    """
    every = [value for one in series.values() for value in one.values if value is not None]
    logs = [math.log10(value) for value in every if 0 < value < math.inf]
    low, high = (min(logs), max(logs)) if logs else (0.0, 0.0)
    room = max(1.0, 0.08 * (high - low))
    zero, beyond = math.floor(low) - room, math.ceil(high) + room

    def place(value: float) -> float:
        return zero if value == 0 else math.log10(value) if 0 < value < math.inf else beyond

    for label, one in series.items():
        at = [(place(value), k) for k, value in enumerate(one.values) if value is not None]
        if at:
            x, y = zip(*at, strict=True)
            inside = PALETTE[one.colour] if one.filled else "none"
            axes.plot(x, y, one.marker, color=PALETTE[one.colour], markerfacecolor=inside, markersize=one.size,
                      mew=1.4, linestyle="", label=label)  # fmt: skip
    ticks: list[float] = [float(k) for k in decades(low, high, 9)] if logs else []
    labels = [power_of_ten(k) for k in ticks]
    if any(value == 0 for value in every):
        ticks, labels = [zero, *ticks], ["0", *labels]
        axes.axvline(zero + room / 2, color=PALETTE["black"], linewidth=0.5, linestyle=":")
    if any(not math.isfinite(value) for value in every):
        ticks, labels = [*ticks, beyond], [*labels, "inf"]
    axes.set_xticks(ticks, labels)
    axes.set_xlim(min([*ticks, low]) - room / 2, max([*ticks, high]) + room / 2)
    axes.set_yticks(range(len(names)), [elided(name, most) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", color="#EEEEEE")
    if len(series) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=min(len(series), 4), borderaxespad=0.2)


def heights(count: int) -> float:
    """Inches for this many lines, with room for a title."""
    return float(np.clip(2.0 + 0.24 * count, 3.0, 40.0))
