"""Training: loss curves with clip events, and how gradient flow changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._errors import kind_of, message, one_of
from ..train import History
from ._style import PALETTE, SEQUENTIAL, drawing, elided, new, round_numbers, say, short, told_apart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHARED = {  # what of a captured flow report: (the field, in words, whether a distribution)
    "gradient": ("gradient", "RMS of the gradients", True),
    "activations": ("activations", "RMS of the activations", True),
    "activation_gradient": ("activation_gradient", "RMS of the activations' gradients", True),
    "weights": ("weights", "RMS of the weights", True),
    "ratio": ("ratio", "|gradient| / |weight|", False),
    "norm": ("norm", "norms of the activations' gradients", False),
}


@drawing
def losses(history: History, *, clipped: str | None = None) -> Figure:
    """The loss over training, and below it which share was clipped at each step, where that was captured.

    The loss axis is logarithmic where positive losses differ by more than a factor of 30. A step whose loss is not
    finite is marked.

    Args:
        history: of `gf.train.fit`.
        clipped: the series of clip events: the "clipped" of a clip stage, 0 or 1 a step, or the share of rows. Default:
            the first series called "clipped" or ".../clipped".

    Raises:
        ImportError: matplotlib is not there.
        TypeError, ValueError: no history; no such series; no step was made.

    Example:
        >>> import torch, gradfunc as gf
        >>> def loss(p, x):
        ...     return (p["w"] - x).square()
        >>> step = gf.clip_per_sample(1.0) >> gf.mean() >> gf.sgd(0.25)
        >>> fit = gf.train.fit(loss, step, {"w": torch.zeros(())}, torch.tensor([1.0, 0.4]), batch_size=2, epochs=3,
        ...                    capture={"clip": lambda snapshot: snapshot.report["clip_per_sample"]})
        >>> gf.plot.losses(fit.history).get_suptitle()
        'Mean loss fell from 0.58 to 0.184 in 3 steps; 3 of them clipped'
    """
    call = "gf.plot.losses(history)"
    _check(call, history)
    if "loss" not in history:
        raise ValueError(message(call, got="a history without steps", expected="a series 'loss'"))
    if clipped is None:
        clipped = next((name for name in history if name.split("/")[-1] == "clipped"), None)
    else:
        one_of(call, "clipped", clipped, list(history))
    figure = new(8.0, 5.0 if clipped else 4.0)
    if clipped:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        _events(below, history, clipped)
    else:
        above = below = figure.subplots()
    _curves(above, history)
    below.set_xlabel("step")
    how = "Thin: mean loss of each batch; thick: of each epoch." + (" Below: what was clipped." if clipped else "")
    return say(figure, _fell(history, clipped), how)


@drawing
def flow_over_training(history: History, series: str = "flow", *, of: str = "gradient") -> Figure:
    """A heat map: layers down, steps to the right, colour for the logarithm of a layer's size.

    Args:
        history: of a `gf.train.fit` that captured reports of `gf.diagnose.gradient_flow`, as in the
            example.
        series: their name.
        of: "gradient", "weights", "activations" or "activation_gradient" for an RMS; "norm" for the activation
            gradient's norm; "ratio" for |gradient| / |weight|.

    Raises:
        ImportError: matplotlib is not there.
        TypeError, ValueError: no history; no such series, or no flow reports in it, or not of the same layers.

    Example:
        >>> import torch, gradfunc as gf
        >>> from torch import nn
        >>> model = gf.stateless(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)))
        >>> x, y = torch.randn(32, 4), torch.randn(32, 1)
        >>> def flow(snapshot):
        ...     return gf.diagnose.gradient_flow(model.bind(snapshot.params), nn.MSELoss(), (x, y))
        >>> def loss(params, x, y):
        ...     return gf.losses.mse(model.sample(params, x), y)
        >>> fit = gf.train.fit(loss, gf.mean() >> gf.sgd(0.1), model.params, (x, y), epochs=2, capture={"flow": flow})
        >>> gf.plot.flow_over_training(fit.history).axes[0].get_xlabel()
        'step'
    """
    call = f"gf.plot.flow_over_training(history, {series!r})"
    _check(call, history)
    one_of(call, "series", series, list(history))
    one_of(call, "of", of, SHARED)
    names, values = _grid(call, history[series], of)
    from matplotlib.ticker import MaxNLocator

    steps = history.steps(series)
    with np.errstate(divide="ignore"):
        logs = np.ma.masked_invalid(np.log10(values))
    figure = new(8.0, float(np.clip(2.2 + 0.22 * len(names), 3.2, 14.0)))
    axes = figure.subplots()
    axes.set_facecolor("white")  # the middle of the colours is grey
    mesh = axes.pcolormesh(_edges(steps), np.arange(len(names) + 1) - 0.5, logs, cmap=SEQUENTIAL, rasterized=False)
    every = max(1, math.ceil(len(names) / 60))
    axes.set_yticks(range(0, len(names), every), told_apart(names)[::every])
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel("layer, first on top")
    bar = figure.colorbar(mesh, ax=axes, label=SHARED[of][1])
    if logs.count():
        ticks = round_numbers(10 ** float(logs.min()), 10 ** float(logs.max()))
        bar.set_ticks([math.log10(x) for x in ticks], labels=[short(x) for x in ticks])
    return say(figure, _moved(names, values, of, steps), "Colour: by decades. White: 0, or none.")


def _check(call: str, history: object) -> None:
    if not isinstance(history, History):
        raise TypeError(message(call, got=kind_of(history), expected="the history of a gf.train.fit"))


def _curves(axes: Axes, history: History) -> None:
    loss, steps = np.asarray(history["loss"], dtype=float), history.steps("loss")
    axes.plot(steps, loss, color=PALETTE["sky"], linewidth=0.8, label="batch", gid="batch")
    single: dict[str, Any] = {"marker": "o", "markersize": 4}
    if "epoch_loss" in history:
        axes.plot(history.steps("epoch_loss"), history["epoch_loss"], color=PALETTE["blue"], linewidth=2,
                  label="epoch", **single)  # fmt: skip
    if "validation/loss" in history:
        axes.plot(history.steps("validation/loss"), history["validation/loss"], "--", color=PALETTE["vermilion"],
                  label="validation", **single)  # fmt: skip
    broken = steps[~np.isfinite(loss) & (np.asarray(history["weight"]) != 0)]
    if len(broken):
        axes.axvline(float(broken[0]), color=PALETTE["black"], linestyle=":", label=f"not finite (step {broken[0]})")
    finite = loss[np.isfinite(loss)]
    if len(finite) and finite.min() > 0 and finite.max() > 30 * finite.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda x, _: short(x))
        axes.yaxis.set_minor_formatter(lambda x, _: "")
    axes.set_ylabel("loss")
    axes.legend()


def _events(axes: Axes, history: History, clipped: str) -> None:
    shares, steps = np.asarray(history[clipped], dtype=float), history.steps(clipped)
    axes.fill_between(steps, shares, step="mid", color=PALETTE["orange"], linewidth=0, gid="clipped")
    axes.plot(steps[shares > 0], shares[shares > 0], "|", color=PALETTE["vermilion"], markersize=5, gid="events")
    axes.set_ylim(0, 1.12)
    axes.set_ylabel("share clipped")


def _fell(history: History, clipped: str | None) -> str:
    loss = np.asarray(history["loss"], dtype=float)
    count = f"{len(loss)} steps" if len(loss) != 1 else "1 step"
    sound = loss[np.isfinite(loss)]
    bad = ~np.isfinite(loss) & (np.asarray(history["weight"]) != 0)
    first = int(bad.argmax())
    if bad.any() and not np.isfinite(loss[first:]).any():
        told = f"Loss is not finite from step {history.steps('loss')[first]} on"
    elif bad.any():
        told = f"Loss is not finite at {bad.sum()} of {count}, first at step {history.steps('loss')[first]}"
    elif not len(sound):
        told = f"No loss in {count}"
    else:
        # single batches say little: where there are epochs, their means
        known = "epoch_loss" in history
        epochs = np.asarray(history["epoch_loss"], dtype=float) if known else sound[:0]
        means = epochs[np.isfinite(epochs)]
        what, (first_seen, *_, last_seen) = ("Mean loss", means) if len(means) > 1 else ("Loss", [sound[0], *sound])
        word = "fell" if last_seen < first_seen else "rose"
        moved = f"{word} from {short(first_seen)} to {short(last_seen)} in"
        told = f"{what} {moved if last_seen != first_seen else f'is {short(first_seen)} after'} {count}"
    if clipped is None:
        return told
    times = int((np.asarray(history[clipped], dtype=float) > 0).sum())
    return f"{told}; {times or 'none'} of them clipped"


def _grid(call: str, captured: Any, of: str) -> tuple[list[str], np.ndarray]:
    """Names of layers, and `[layers, steps]`."""
    field, _, distribution = SHARED[of]
    if not isinstance(captured, list) or not all(isinstance(one, dict) and "rows" in one for one in captured):
        do = "Capture what gf.diagnose.gradient_flow returns."
        raise ValueError(message(call, got="a series of something else", expected="flow reports", do=do))
    named = [[_name(row) for row in one["rows"]] for one in captured]
    if any(names != named[0] for names in named):
        raise ValueError(message(call, got="reports of different layers", expected="one model at every step"))
    columns = []
    for one in captured:
        values = [row[field] for row in one["rows"]]
        columns.append([value["rms"] if distribution and value else value for value in values])
    return named[0], np.array([[_number(x) for x in column] for column in columns]).T


def _number(x: Any) -> float:
    return math.nan if x is None else float(x)  # JSON-ready: "nan" and "inf" are text


def _name(row: dict[str, Any]) -> str:
    return f"{row['layer']} ({row['use']}/{row['uses']})" if row["uses"] > 1 else str(row["layer"])


def _edges(steps: Sequence[int] | np.ndarray) -> np.ndarray:
    """Halfway between steps, and as far beyond the first and the last."""
    at = np.asarray(steps, dtype=float)
    if len(at) == 1:
        return np.array([at[0] - 0.5, at[0] + 0.5])
    inside = (at[1:] + at[:-1]) / 2
    return np.concatenate([[2 * at[0] - inside[0]], inside, [2 * at[-1] - inside[-1]]])


def _moved(names: Sequence[str], values: np.ndarray, of: str, steps: np.ndarray) -> str:
    """The layer that changed by the largest factor between the first step and the last."""
    with np.errstate(all="ignore"):
        change = np.abs(np.log(values[:, -1] / values[:, 0]))
    what = SHARED[of][1]
    if len(steps) < 2 or not np.isfinite(change).any():
        return f"{what[0].upper()}{what[1:]} over training"
    k = int(np.nanargmax(np.where(np.isfinite(change), change, np.nan)))
    first, last = values[k, 0], values[k, -1]
    word = "fell" if last < first else "rose"
    many = len(names) > 1
    most = "changed most" if many else word
    return (
        f"{what[0].upper()}{what[1:]} {most}{' in layer ' if many else ' of layer '}{elided(names[k])}: "
        f"{word + ' ' if many else ''}from {short(first)} to {short(last)} by step {steps[-1]}"
    )
