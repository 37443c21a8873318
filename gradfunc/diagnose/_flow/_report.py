"""Rows of `gradient_flow`, as tables and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..._report import Report, Table, jsonable, number
from .._distribution import Distribution
from ._spread import Spread
from ._trend import Trend
from ._verdict import worst

_BARS = 7  # signs of a histogram
_SHOWN = 40  # rows of a table; of longer ones, the first and the last half of these


@dataclass(frozen=True)
class FlowRow:
    """One use of a layer, in forward order. Parameters and their gradients are those of all uses of the layer.

    Norms of gradients are of the criterion's mean over the batch. A layer with several uses (tied, recurrent) has a row
    for each.

    Attributes:
        layer: the module, or the parameter where that belongs to the model itself.
        use: which use of the layer it is, from 1.
        uses: how many it has.
        function: torch's name of what mixes parameters with data.
        parameters: names of all of them.
        shape: of the output.
        activation: kind of the activation that follows, None without.
        activations: of the activation's output, or of the layer's where none follows.
        activation_gradient: of the loss with respect to that; None where no gradient comes.
        weights: of its parameters with two dimensions or more; of all where none has.
        gradient: of the loss with respect to these.
        ratio: |gradient| / |weight|; None for weights of 0, or where one is not finite.
        update: rate times that, None without a rate.
        spread: how gradients of single samples differ in these parameters; None if not asked for.
        norm: Euclidean norm of the activation gradient, None where none comes or it is not finite; behind the norms
            and scales that follow a product directly.
        change: `norm` over that of the last comparable layer; None for a layer that is not compared (norms, biases
            and scales on their own), or without a norm.
        factor: what `norm` is multiplied by on the way back through this layer and its activation, to the comparable
            layer before.
        gain: `sqrt(fan_in mean(w^2))`; None but for linear and convolutional layers.
        theory: the factor that theory gives; None where it gives none, or was not asked.
        units: features or channels.
        dead: share of units that are 0 for every sample and position.
        saturated: share of entries where the activation's slope is below 5 % of its largest; None for activations that
            do not saturate on both sides.
        verdict: "healthy", "saturated", "vanishing", "exploding", "dead" or "non-finite".
        evidence: for it, in words.
    """

    layer: str
    use: int
    uses: int
    function: str
    parameters: tuple[str, ...]
    shape: tuple[int, ...]
    activation: str | None
    activations: Distribution
    activation_gradient: Distribution | None
    weights: Distribution
    gradient: Distribution
    ratio: float | None
    update: float | None
    spread: Spread | None
    norm: float | None
    change: float | None
    factor: float | None
    gain: float | None
    theory: float | None
    units: int
    dead: float
    saturated: float | None
    verdict: str
    evidence: str

    @property
    def name(self) -> str:
        """The layer, and which of its uses."""
        return f"{self.layer} ({self.use}/{self.uses})" if self.uses > 1 else self.layer


@dataclass(frozen=True)
class FlowReport(Report):
    """What `gf.diagnose.gradient_flow` found.

    Attributes:
        loss: the criterion's mean over the batch.
        batch_size: number of samples.
        rows: one a use of a layer, in forward order.
        trend: how the norm of the activation gradient changes over comparable layers; None for fewer than two.
        verdict: the most severe one of the rows.
        lr: the rate that updates are for, None without.
        sample: the most positions that quantiles and histograms are of.
        notes: what could not be had, and why.
    """

    loss: float
    batch_size: int
    rows: tuple[FlowRow, ...]
    trend: Trend | None
    verdict: str
    lr: float | None
    sample: int
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every layer is healthy."""
        return self.verdict == "healthy"

    def row(self, layer: str, use: int = 1) -> FlowRow:
        """The row of a layer's use.

        Raises:
            KeyError: no such use.
        """
        for row in self.rows:
            if (row.layer, row.use) == (layer, use):
                return row
        raise KeyError(f"no use {use} of {layer!r}; layers: {list(dict.fromkeys(row.layer for row in self.rows))}")

    def parts(self) -> Sequence[Table | str]:
        """Tables in reading order."""
        return [self._activations(), self._parameters(), self._told()]

    def _activations(self) -> Table:
        rows = []
        for row in self.rows:
            gradient = row.activation_gradient
            off = f"{row.dead:.0%}" if row.saturated is None else f"{row.dead:.0%} / {row.saturated:.0%}"
            cells = [row.name, row.activation or "", number(row.activations.rms), row.activations.bars(_BARS)]
            cells += [number(gradient.rms if gradient else None), gradient.bars(_BARS) if gradient else ""]
            cells += [number(row.factor), number(row.theory), off, row.verdict]
            rows.append(cells)
        head = ["layer", "then", "RMS", "entries", "gradient", "entries", "factor", "theory", "dead"]
        note = (
            "RMS: of activations, and of the loss's gradient with respect to them. factor: of that gradient's norm, on "
            "the way back through the layer to the one before. dead: units that are 0 for every sample / flat entries."
        )
        title = f"Gradient flow ({self.batch_size} samples, loss {number(self.loss)})"
        return Table(title, [*head, "verdict"], _cut(rows), note)

    def _parameters(self) -> Table:
        rows = []
        for row in self.rows:
            if row.use == 1:
                cells = [row.layer, number(row.weights.rms), row.weights.bars(_BARS), number(row.gradient.rms)]
                cells += [row.gradient.bars(_BARS), number(row.ratio)]
                cells += [number(row.update)] if self.lr is not None else []
                rows.append([*cells, number(row.spread.signal_to_noise) if row.spread else "-"])
        head = ["layer", "weights", "entries", "gradient", "entries", "gradient / weight"]
        head += ["update / weight"] if self.lr is not None else []
        note = "RMS of weights and of their gradients; signal / noise: |mean| over the deviation of samples' gradients."
        return Table("Parameters", [*head, "signal / noise"], _cut(rows), note)

    def _told(self) -> str:
        lines = []
        if self.trend is not None:
            t = self.trend
            within = f" ({number(t.interval[0])} to {number(t.interval[1])} at 95 %)" if t.interval else ""
            lines.append(
                f"On the way back the gradient's norm is multiplied by {number(t.factor)}{within} a layer, over "
                f"{t.layers} layers by {number(t.total)}."
            )
        lines += [f"Note: {note}" for note in self.notes]
        where = [f"{row.name} ({row.evidence})" for row in self.rows if row.verdict == self.verdict]
        more = f" and {len(where) - 3} more" if len(where) > 3 else ""
        lines.append(f"Verdict: {self.verdict}" + ("." if self.ok else f", in {', '.join(where[:3])}{more}."))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the fields, and `ok`."""
        result: dict[str, Any] = jsonable({**dataclasses.asdict(self), "ok": self.ok})
        return result


def verdict_of(rows: Sequence[FlowRow]) -> str:
    """The most severe one."""
    return worst([row.verdict for row in rows])


def _cut(rows: list[list[str]]) -> list[list[str]]:
    if len(rows) <= _SHOWN:
        return rows
    half = _SHOWN // 2
    left_out = [f"... {len(rows) - 2 * half} more", *[""] * (len(rows[0]) - 1)]
    return [*rows[:half], left_out, *rows[-half:]]
