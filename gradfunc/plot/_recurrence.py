"""Gradients through time: growth by lag with theory, eigenvalues in the unit circle, remedies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .._errors import kind_of, message
from ..diagnose import Growth, LinearRecurrence, RecurrenceReport, RemedyReport
from ._dots import Dots, dots
from ._style import GREY, PALETTE, drawing, logarithmic, new, say, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TENS = math.log(10)
LINES = ("blue", "vermilion", "green", "purple", "orange", "sky", "black")
INSIDE, ON, OUTSIDE = "inside: decays", "on the circle, as far as is known", "outside: grows"
SIDES = ((INSIDE, "blue", "o"), (ON, "orange", "s"), (OUTSIDE, "vermilion", "^"))
Either = LinearRecurrence | RecurrenceReport


@drawing
def through_time(report: Either | Mapping[str, Either]) -> Figure:
    """`|dh_T / dh_{T-k}|` by lag k on a logarithmic axis, beside theory.

    Of a matrix: `rho^k` (rho the spectral radius), what growth tends to, and `|W|^k`, which it never exceeds. Of a
    model: medians over samples with a band from the least to the most, and `exp(lambda k)`, lambda the median of the
    largest Lyapunov exponents. `|dL / dh_{T-k}|` over its value at k = 0 is drawn besides. Of several reports, a line
    and a theory each.

    Raises:
        ImportError: matplotlib is not there.
        TypeError, ValueError: no report of `gf.diagnose.recurrence`, or an empty mapping.

    Example:
        >>> import torch, gradfunc as gf
        >>> report = gf.diagnose.recurrence(torch.tensor([[0.9, 10.0], [0.0, 0.9]]), steps=200)
        >>> gf.plot.through_time(report).get_suptitle()
        'Gradients vanish: below 0.01 beyond 111 steps back, after a peak of 38.7 at 9'
    """
    call = "gf.plot.through_time(report)"
    every = dict(report) if isinstance(report, Mapping) else {"": report}
    if not every:
        raise ValueError(message(call, got="no report", expected="one or more"))
    for one in every.values():
        if not isinstance(one, (LinearRecurrence, RecurrenceReport)):
            raise TypeError(message(call, got=kind_of(one), expected="a report of gf.diagnose.recurrence"))
    figure = new(8.0, 4.8)
    axes = figure.subplots()
    for k, (name, one) in enumerate(every.items()):
        _growth(axes, one, f"{name}: " if name else "", k, alone=len(every) == 1)
    share = next(iter(every.values())).share
    for limit in (math.log10(share), -math.log10(share)):
        axes.axhline(limit, color=GREY, linewidth=0.7, linestyle=(0, (1, 3)))
    low, high = _window(axes, math.log10(share))
    logarithmic(axes.yaxis, low, high)
    axes.set_ylim(low, high)
    longest = max(one.steps for one in every.values())
    axes.set_xlim(-0.02 * longest, 1.02 * longest)
    axes.set_xlabel("lag k, steps back from T")
    axes.set_ylabel("|dh_T/dh_T-k|")
    axes.legend(fontsize=7)
    told = f"Gradients {_told(next(iter(every.values())))}" if len(every) == 1 else _farthest(every, share)
    how = f"Dotted: {share:g} and {1 / share:g}, beyond which gradients count as vanished and exploded. Dashed: theory."
    return say(figure, told, how)


@drawing
def eigenvalues(report: LinearRecurrence) -> Figure:
    """Eigenvalues in the complex plane with the unit circle: inside a direction decays, outside it grows.

    The area of a sign is in proportion to how many eigenvalues rounding cannot tell apart there.

    Raises:
        ImportError: matplotlib is not there.
        TypeError: no `LinearRecurrence`.

    Example:
        >>> import torch, gradfunc as gf
        >>> report = gf.diagnose.recurrence(torch.diag(torch.tensor([0.5, 1.5])), steps=50)
        >>> " ".join(gf.plot.eigenvalues(report).get_suptitle().split())
        '1 of 2 eigenvalues lies outside of the unit circle, the largest at 1.5: x 6.38e8 in 50 steps'
    """
    if not isinstance(report, LinearRecurrence):
        call = "gf.plot.eigenvalues(report)"
        raise TypeError(message(call, got=kind_of(report), expected="a report of gf.diagnose.recurrence(W, steps=T)"))
    figure = new(6.2, 6.2)
    axes = figure.subplots()
    turn = np.linspace(0, 2 * math.pi, 361)
    axes.plot(np.cos(turn), np.sin(turn), color=GREY, linewidth=1, label="unit circle")
    for side, colour, marker in SIDES:
        rows = [row for row in report.growth if _side(row) == side]
        if rows:
            axes.scatter([row.real for row in rows], [row.imaginary for row in rows], marker=marker,
                         s=[28 * row.multiplicity for row in rows], color=PALETTE[colour], alpha=0.8,
                         label=side)  # fmt: skip
            for row in rows:
                if row.multiplicity > 1:
                    axes.annotate(f"{row.multiplicity} times", (row.real, row.imaginary), xytext=(7, 5),
                                  textcoords="offset points", fontsize=8)  # fmt: skip
    reach = 1.12 * max(1.0, *(row.modulus for row in report.growth))
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="real part", ylabel="imaginary part")
    axes.legend(loc="upper right")
    note = "Only the largest are computed. " if report.matrix_free else ""
    departure = "" if math.isnan(report.departure) else f" (departure {short(report.departure)})"
    how = f"{note}What the circle says of W that is not normal{departure} is the long run."
    return say(figure, _where(report), how)


@drawing
def remedies(report: RemedyReport) -> Figure:
    """What each remedy leaves of a gradient after T steps: closed form, measured, and of the whole Jacobian.

    Raises:
        ImportError: matplotlib is not there.
        TypeError: no `RemedyReport`.

    Example:
        >>> import gradfunc as gf
        >>> figure = gf.plot.remedies(gf.diagnose.remedies(eigenvalue=0.9, steps=50))
        >>> figure.get_suptitle().startswith("Through 50 steps, plain leaves 0.00515 of a gradient")
        True
    """
    if not isinstance(report, RemedyReport):
        call = "gf.plot.remedies(report)"
        raise TypeError(message(call, got=kind_of(report), expected="a report of gf.diagnose.remedies"))
    figure = new(8.0, 1.9 + 0.3 * len(report.rows))
    axes = figure.subplots()
    series = {
        "|dh_T/dh_0|": Dots([row.whole for row in report.rows], "orange", "s", 10.0, filled=False),
        "measured, of the closed form's path": Dots([row.measured for row in report.rows], "blue", "o", 5.0),
        "closed form": Dots([row.closed for row in report.rows], "black", "|", 15.0),
    }
    dots(axes, [row.name for row in report.rows], series)
    axes.set_xlabel(f"what is left of a gradient after {report.steps} steps")
    best = max(report.rows, key=lambda row: row.whole)
    plain = report.rows[0]
    told = f"Through {report.steps} steps, {plain.name} leaves {short(plain.whole)} of a gradient"
    other = "" if best is plain else f"; {best.name}, {short(best.whole)}"
    return say(figure, told + other, "Bars: closed forms; for gated models the direct path, gates held as they are.")


def _growth(axes: Axes, report: Either, name: str, k: int, *, alone: bool) -> None:
    colour = PALETTE[LINES[k % len(LINES)]]
    lags = np.array(report.lags, dtype=float)
    if isinstance(report, LinearRecurrence):
        logs = report.log_norms.numpy() / TENS
        theories = {f"{short(report.spectral_radius)}^k, spectral radius": report.spectral_radius}
        if alone:
            theories[f"{short(report.spectral_norm)}^k, a bound"] = report.spectral_norm
        rates = {label: math.log(value) if value else -math.inf for label, value in theories.items()}
        gradients: Any = report.gradients.numpy()
    else:
        each = report.log_growth.numpy() / TENS
        logs = np.median(each, 0)
        if len(each) > 1:
            axes.fill_between(lags, _drawable(each.min(0)), _drawable(each.max(0)), color=colour, alpha=0.2,
                              linewidth=0, label=f"{name}least to most of {len(each)} samples")  # fmt: skip
        rate = float(np.median(report.exponents[:, 0].numpy()))
        rates = {f"exp({short(rate)} k), Lyapunov exponent": rate}
        gradients = None if report.gradients is None else report.gradients.flip(1).numpy()
    axes.plot(lags, _drawable(logs), color=colour, label=f"{name}|dh_T/dh_T-k|", gid=f"growth-{k}",
              marker="o" if len(lags) < 12 else "", markersize=3)  # fmt: skip
    for (label, rate), dash in zip(rates.items(), ("--", "-."), strict=False):
        if math.isfinite(rate):
            line = PALETTE["black"] if alone else colour
            axes.plot(lags, rate * lags / TENS, dash, color=line, linewidth=1, label=name + label,
                      gid=f"theory-{k}{dash}")  # fmt: skip
    if alone and gradients is not None:
        with np.errstate(all="ignore"):
            relative = np.log10(gradients / gradients[..., :1])
        relative = np.atleast_2d(relative)
        told = relative[np.isfinite(relative[:, 0])]  # samples whose loss depends on h_T
        if len(told):
            axes.plot(range(told.shape[1]), _drawable(np.median(told, 0)), ":", color=PALETTE["orange"], linewidth=2,
                      label="|dL/dh_T-k| / |dL/dh_T|", gid="gradient")  # fmt: skip


def _drawable(logs: Any) -> np.ndarray:
    """Zeros (-inf) are left out."""
    return np.where(np.isfinite(logs), logs, np.nan)


def _window(axes: Axes, share: float) -> tuple[float, float]:
    """All that was measured and both limits; theory may leave the picture."""
    values: list[np.ndarray] = [
        np.asarray(line.get_ydata(), dtype=float)
        for line in axes.lines
        if str(line.get_gid()).startswith(("growth", "gradient"))
    ]
    finite = np.concatenate([value[np.isfinite(value)] for value in values])
    low, high = min([1.3 * share, *finite]), max([-1.3 * share, *finite])
    return float(low) - 0.03 * (high - low), float(high) + 0.03 * (high - low)


def _told(report: Either) -> str:
    logs: Any = report.log_norms if isinstance(report, LinearRecurrence) else np.median(report.log_growth.numpy(), 0)
    words = [word for word, is_so in (("explode", report.explodes), ("vanish", report.vanishes)) if is_so]
    if not words:
        return f"neither vanish nor explode in {report.steps} step{'s' * (report.steps > 1)}"
    peak, at = float(logs.max()) / TENS, report.lags[int(logs.argmax())]
    size = short(10**peak) if peak < 300 else f"1e{round(peak)}"
    if not report.vanishes:
        return f"explode: {size}-fold at {at} steps back"
    after = f", after a peak of {size} at {at}" if peak > math.log10(1.5) else ""
    return f"{' and '.join(words)}: below {report.share:g} beyond {_reach(report)} steps back{after}"


def _farthest(every: Mapping[str, Either], share: float) -> str:
    reach = {name: _reach(one) for name, one in every.items()}
    best = max(reach, key=reach.__getitem__)
    others = ", ".join(f"{count} ({name})" for name, count in reach.items() if name != best)
    return f"Gradients reach back farthest in {best}: {reach[best]} steps above {share:g}, against {others}"


def _reach(report: Either) -> int:
    if isinstance(report, LinearRecurrence):
        return report.horizon
    return sorted(report.horizons)[len(report.horizons) // 2]


def _side(row: Growth) -> str:
    """Where an eigenvalue lies, as far as it is known."""
    if abs(row.modulus - 1) <= row.error:
        return ON
    return OUTSIDE if row.modulus > 1 else INSIDE


def _where(report: LinearRecurrence) -> str:
    count, on = (sum(row.multiplicity for row in report.growth if _side(row) == side) for side in (OUTSIDE, ON))
    every = sum(row.multiplicity for row in report.growth)
    some = every < report.size  # the largest, so that none besides is outside unless all of them are
    if some and count + on == every:
        return _of_largest(report, every, count)
    every = report.size
    if not count and on:
        return f"{on} of {every} eigenvalues {'lies' if on == 1 else 'lie'} on the unit circle, none outside"
    if every == 1 and not count:
        return f"The eigenvalue lies inside of the unit circle, at {short(report.spectral_radius)}"
    if not count:
        return f"All {every} eigenvalues lie inside of the unit circle, the largest at {short(report.spectral_radius)}"
    if every == 1:
        return f"The eigenvalue lies outside of the unit circle, at {_grown(report)}"
    lie = "lies" if count == 1 else "lie"
    return f"{count} of {every} eigenvalues {lie} outside of the unit circle, the largest at {_grown(report)}"


def _of_largest(report: LinearRecurrence, known: int, outside: int) -> str:
    """Where more may lie as those that are known do."""
    least = f"At least {outside or known} of {report.size} eigenvalues lie"
    return (
        f"{least} outside of the unit circle, the largest at {_grown(report)}"
        if outside
        else (f"{least} on the unit circle, none outside")
    )


def _grown(report: LinearRecurrence) -> str:
    tens = report.growth[0].log_closed / TENS
    size = short(10**tens) if abs(tens) < 300 else f"1e{round(tens)}"
    return f"{short(report.spectral_radius)}: x {size} in {report.steps} step{'s' * (report.steps > 1)}"
