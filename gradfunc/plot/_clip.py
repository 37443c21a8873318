"""The geometry of clipping a gradient of two entries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .._errors import POSITIVE, check_number, kind_of, message
from .._transform import Grads, clip_by_global_norm, clip_by_value
from ._style import GREY, PALETTE, drawing, new, say, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@drawing
def clip_geometry(gradient: Sequence[float] | Tensor = (2.5, 0.8), *, limit: float = 1.0) -> Figure:
    """What clipping by value and by norm make of a gradient of two entries: one turns it, the other does not.

    Both are computed by `gf.clip_by_value` and `gf.clip_by_global_norm`, in float64.

    Args:
        gradient: two finite numbers, not both 0.
        limit: of entries, and of the norm; positive.

    Raises:
        ImportError: matplotlib is not there.
        TypeError, ValueError: other gradients or limits.

    Example:
        >>> import gradfunc as gf
        >>> gf.plot.clip_geometry([2.5, 0.8]).get_suptitle()
        'Clipping by value turns the gradient by 20.92°, by norm by 0°'
    """
    call = f"gf.plot.clip_geometry({gradient!r}, limit={limit!r})"
    try:
        g = torch.as_tensor(gradient, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(message(call, got=kind_of(gradient), expected="two finite numbers, not both 0")) from None
    if g.shape != (2,) or not bool(g.isfinite().all()) or not bool(g.any()):
        raise ValueError(message(call, got=f"a gradient {g.tolist()}", expected="two finite numbers, not both 0"))
    check_number(call, "limit", limit, POSITIVE)
    by_value = _clipped(clip_by_value(limit), g)
    by_norm = _clipped(clip_by_global_norm(limit), g)
    from matplotlib.patches import Circle, Rectangle

    x, y = _frame(g, limit)
    figure = new(7.4, float(np.clip(2.0 + 6.4 * (y[1] - y[0]) / (x[1] - x[0]), 3.4, 8.5)))
    axes = figure.subplots()
    axes.add_patch(
        Rectangle((-limit, -limit), 2 * limit, 2 * limit, fill=False, color=PALETTE["orange"], linestyle="--")
    )
    axes.add_patch(Circle((0, 0), limit, fill=False, color=PALETTE["blue"], linestyle=":", linewidth=1.5))
    _arrow(axes, g, "black", "o", f"gradient {_said(g)}")
    _arrow(axes, by_value, "orange", "s", f"by value {_said(by_value)}, turned {_angle(g, by_value):.4g}°")
    _arrow(axes, by_norm, "blue", "^", f"by norm {_said(by_norm)}, turned {_angle(g, by_norm):.4g}°")
    for line in (axes.axhline, axes.axvline):
        line(0, color=GREY, linewidth=0.6)
    axes.set(xlim=x, ylim=y, aspect="equal", xlabel="first entry", ylabel="second entry")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    title = f"Clipping by value turns the gradient by {_angle(g, by_value):.4g}°, by norm by {_angle(g, by_norm):.4g}°"
    return say(figure, title, f"Dashed: entries up to {limit:g}. Dotted: norms up to {limit:g}.")


def _clipped(stage: object, g: Tensor) -> Tensor:
    grads = Grads({"g": g})
    out, _ = stage.update(grads, stage.init({"g": g}), {"g": g})  # type: ignore[attr-defined]
    found: Tensor = out["g"]
    return found


def _angle(a: Tensor, b: Tensor) -> float:
    """Degrees between two vectors; rounding of parallel ones is 0."""
    x, y = a.tolist(), b.tolist()
    turned = math.degrees(abs(math.atan2(x[0] * y[1] - x[1] * y[0], x[0] * y[0] + x[1] * y[1])))
    return turned if turned > 1e-12 else 0.0


def _said(g: Tensor) -> str:
    return f"[{short(float(g[0]))}, {short(float(g[1]))}]"


def _arrow(axes: Axes, g: Tensor, colour: str, marker: str, label: str) -> None:
    x, y = g.tolist()
    axes.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": PALETTE[colour], "lw": 1.8,
                                                  "shrinkA": 0, "shrinkB": 3})  # fmt: skip
    axes.plot([x], [y], marker, color=PALETTE[colour], markersize=6, label=label)


def _frame(g: Tensor, limit: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """What is shown along x and along y: the limits on both sides of 0, and the gradient."""
    reach = 1.15 * limit
    x, y = ((min(-reach, 1.1 * entry), max(reach, 1.1 * entry)) for entry in g.tolist())
    return x, y
