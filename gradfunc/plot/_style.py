"""How figures look: one palette, one style, in force while a figure is made and nowhere else."""

from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito 2008, "Color universal design": told apart with every common form of colour blindness.
PALETTE = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "purple": "#CC79A7",
}
"""Colours by name, `{name: "#rrggbb"}`, in the order in which figures take them."""
GREY = "#595959"  # seven to one on white
LIGHT = "#D9D9D9"
SEQUENTIAL = "cividis"  # its order is that of lightness, for every kind of sight
# Wrong things differ by shape as well.
SIGNS = {
    "exact": ("blue", "o"),
    "holds": ("blue", "o"),
    "rounding": ("sky", "o"),
    "cannot tell": ("orange", "s"),
    "wrong": ("vermilion", "X"),
    "failed": ("vermilion", "X"),
    "refused": ("purple", "X"),
}

_RC: dict[str, Any] = {
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "figure.titlesize": 12,
    "font.size": 9,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "savefig.dpi": 150,
    "svg.fonttype": "none",  # text stays text: to be searched, read aloud, and small
    "svg.hashsalt": "gradfunc",
    "text.parse_math": False,  # a layer may be called $x$
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}

P = ParamSpec("P")


@contextmanager
def style() -> Iterator[None]:
    """This style, whatever the user's own is; theirs is back at the end.

    Raises:
        ImportError: matplotlib is not there.
    """
    try:
        import matplotlib.style
    except ImportError as error:
        raise ImportError("gf.plot needs matplotlib: pip install 'gradfunc[plot]'") from error
    with matplotlib.style.context(["default", _RC]):
        yield


def drawing(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """A function that draws, in this style; where things stand is settled once, whatever is done with the figure."""

    @functools.wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with style():
            figure = draw(*args, **kwargs)
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
            return figure

    return inside


def new(width: float, height: float) -> Figure:
    """An empty figure of this many inches, known to no global list of figures."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06))


def say(figure: Figure, finding: str, how_to_read: str) -> Figure:
    """The title says what was found; a line below, how to read it. That line is the figure's label (alt text) too."""
    width = figure.get_figwidth()
    figure.suptitle(textwrap.fill(finding, int(width * 11.3)), x=0.01, ha="left")
    below = textwrap.fill(how_to_read, int(width * 16))
    figure.supxlabel(below, x=0.01, ha="left", fontsize=8, color=GREY)
    figure.set_label(how_to_read)
    return figure


def short(x: float) -> str:
    """Three digits: `0.577`, `3.2e-5`."""
    text = f"{x:.3g}"
    digits, e, power = text.partition("e")
    return f"{digits}e{int(power)}" if e else text


def elided(name: str, most: int = 26) -> str:
    """A long name with its middle left out."""
    if len(name) <= most:
        return name
    head = (most - 1) // 2
    return f"{name[:head]}…{name[len(name) - (most - 1 - head) :]}"


def told_apart(names: Sequence[str], most: int = 26) -> list[str]:
    """Names of at most this length; of long ones, what all begin and end with is left out first."""
    if len(names) < 2 or all(len(name) <= most for name in names):
        return [elided(name, most) for name in names]
    head = _alike(names)
    rest = [name[head:] for name in names]
    tail = _alike([name[::-1] for name in rest])
    head, tail = head if head > 2 else 0, tail if tail > 2 else 0
    apart = [f"{'…' * (head > 0)}{name[head : len(name) - tail]}{'…' * (tail > 0)}" for name in names]
    return [elided(name, most) for name in apart]


def _alike(names: Sequence[str]) -> int:
    """How many letters all of them begin with."""
    differ = (k for k, letters in enumerate(zip(*names, strict=False)) if len(set(letters)) > 1)
    return next(differ, min(map(len, names)))


def power_of_ten(exponent: float) -> str:
    """`10⁻³`, for an axis of logarithms."""
    return "10" + str(round(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def decades(low: float, high: float, most: int = 8) -> list[int]:
    """At most this many whole exponents between two logarithms to the base 10, evenly apart."""
    first, last = math.floor(low), math.ceil(high)
    step = max(1, math.ceil((last - first) / max(most - 1, 1)))
    return list(range(first, last + step, step))


def round_numbers(low: float, high: float) -> list[float]:
    """Those between two positive numbers that are 1, 2 or 5 in their decade; over more than three decades, 1."""
    digits = (1, 2, 5) if high < 1000 * low else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [x for k in powers for digit in digits if low <= (x := float(f"{digit}e{k}")) <= high]


def logarithmic(axis: Any, low: float, high: float, most: int = 8) -> None:
    """Ticks for an axis on which logarithms to the base 10 are drawn."""
    ticks = decades(low, high, most)
    axis.set_ticks(ticks, [power_of_ten(k) for k in ticks])


def named_layers(axes: Axes, names: Sequence[str]) -> None:
    """Names along x; of many, some."""
    every = max(1, math.ceil(len(names) / 64))
    shown = range(0, len(names), every)
    labels = [told_apart(names)[k] for k in shown]
    upright = len(labels) < 13 and sum(len(label) + 2 for label in labels) < 66  # of a figure seven inches wide
    axes.set_xticks(list(shown), labels, rotation=0 if upright else 90)
    axes.set_xlim(-0.7, len(names) - 0.3)
