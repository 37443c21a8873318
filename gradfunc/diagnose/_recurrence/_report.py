"""What is said of a recurrent model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..._report import Report, Table, jsonable, number
from ._gradients import Clip, Clipped
from ._words import clipping_table, horizon, in_words, listed, power


@dataclass(frozen=True, eq=False)
class RecurrenceReport(Report):
    """What `gf.diagnose.recurrence` found of a model or a step function.

    The state h_t is everything that a step hands to the next: all layers, for an LSTM `(h, c)`. Jacobians are of the
    first S samples, gradients of all. Float64 tensors on the CPU; logarithms are natural, -inf for 0.

    Attributes:
        size: n, entries of one sample's state.
        steps: T.
        batch_size: B.
        samples: S.
        matrix_free: whether n was above `dense`: steps and lags are then some of them, spectra None, norms by ARPACK.
        at: the steps, from 1, that `step_norms` are of.
        step_norms: `[S, len(at)]`, `|dh_t / dh_{t-1}|_2`.
        step_spectra: `[S, T, n]`, the singular values of every step's Jacobian.
        lags: k, from 0.
        log_growth: `[S, len(lags)]`, log of `|dh_T / dh_{T-k}|_2`.
        log_spectrum: `[S, n]`, log of the singular values of `dh_T / dh_0`; below `n u` times the largest, rounding.
        residual: the largest relative one of these norms; 0 where dense, inf where one did not converge and is NaN.
        exponents: `[S, k]`, the k largest Lyapunov exponents per step along the sample's own trajectory, descending.
        warmup: steps before they are counted.
        gradients: `[B, T + 1]`, `|dL_i / dh_t|` by t, through readout and recurrence; None without a criterion.
        clip: the limit compared.
        clipping: the gradient of the mean loss under each way to clip; empty without a criterion.
        share: below which part of `|dh_T / dh_T| = 1` gradients count as vanished, above whose inverse as exploded.
    """

    size: int
    steps: int
    batch_size: int
    samples: int
    matrix_free: bool
    at: tuple[int, ...]
    step_norms: Tensor
    step_spectra: Tensor | None
    lags: tuple[int, ...]
    log_growth: Tensor
    log_spectrum: Tensor | None
    residual: float
    exponents: Tensor
    warmup: int
    gradients: Tensor | None
    clip: Clip
    clipping: tuple[Clipped, ...]
    share: float

    @property
    def growth(self) -> Tensor:
        """`[S, len(lags)]`, `|dh_T / dh_{T-k}|_2`."""
        return self.log_growth.exp()

    @property
    def horizons(self) -> tuple[int, ...]:
        """Of every sample the largest lag at which `|dh_T / dh_{T-k}|` is at least `share`; T if it never falls below.

        Where matrix-free, the largest of `lags`.
        """
        return tuple(horizon(self.lags, row, self.share) for row in self.log_growth)

    @property
    def gradient_horizons(self) -> tuple[int, ...] | None:
        """Of all B samples the largest lag k at which `|dL_i / dh_{T-k}|` is at least `share` of that at T.

        What a loss reads at earlier steps counts: this is how far back there is a gradient, not how far it came.
        """
        if self.gradients is None:
            return None
        logs = (self.gradients / self.gradients[:, -1:]).flip(1).log()
        return tuple(horizon(range(self.steps + 1), row, self.share) for row in logs)

    @property
    def vanishes(self) -> bool:
        """Whether `|dh_T / dh_0|` is below `share` for half of the samples or more."""
        return _middle(self.log_growth[:, -1]) < math.log(self.share)

    @property
    def explodes(self) -> bool:
        """Whether some `|dh_T / dh_{T-k}|` exceeds `1 / share`, for any sample."""
        return float(self.log_growth.max()) > -math.log(self.share)

    @property
    def ok(self) -> bool:
        """Whether gradients are finite and neither vanish nor explode within T steps, as far as could be told."""
        finite = self.gradients is None or bool(self.gradients.isfinite().all())
        return finite and not (self.vanishes or self.explodes or bool(self.log_growth.isnan().any()))

    def parts(self) -> Sequence[Table | str]:
        """Tables in reading order."""
        clipping = [clipping_table("Gradient of the mean loss", self.clip, self.clipping)] if self.clipping else []
        return [self._lags(), self._steps(), self._exponents(), *clipping, self._verdict()]

    def _lags(self) -> Table:
        rows = []
        for k in listed(self.lags):
            logs = self.log_growth[:, self.lags.index(k)]
            row = [str(k), *map(power, (float(logs.min()), _middle(logs), float(logs.max())))]
            if self.gradients is not None:
                row.append(number(_middle(self.gradients[:, self.steps - k])))
            rows.append(row)
        head = ["lag k", "|dh_T/dh_T-k| least", "median", "most"]
        head += ["|dL/dh_T-k| median"] if self.gradients is not None else []
        note = f"Matrix-free: relative residual {number(self.residual)}." if self.matrix_free else ""
        title = f"Back through time (n = {self.size}, T = {self.steps}, {self.samples} of {self.batch_size} samples)"
        return Table(title, head, rows, note)

    def _steps(self) -> Table:
        rows = []
        for t in [k for k in listed((0, *self.at)) if k] if not self.matrix_free else self.at:
            norms = self.step_norms[:, self.at.index(t)]
            row = [str(t), *map(number, (float(norms.min()), _middle(norms), float(norms.max())))]
            if self.step_spectra is not None:
                row.append(number(_middle(self.step_spectra[:, t - 1])))
            rows.append(row)
        head = ["step t", "|dh_t/dh_t-1| least", "median", "most"]
        head += ["median singular value"] if self.step_spectra is not None else []
        return Table("Each step", head, rows)

    def _exponents(self) -> str:
        middle = ", ".join(f"{_middle(x):+.4f}" for x in self.exponents.T)
        after = f" after {self.warmup} steps" if self.warmup else ""
        return f"Lyapunov exponents per step{after} (medians over samples): {middle}."

    def _verdict(self) -> str:
        reach = sorted(self.horizons)[len(self.horizons) // 2]
        lines = [in_words(self.vanishes, self.explodes, reach, self.steps, self.share)]
        if self.gradients is None or self.gradient_horizons is None:
            return lines[0]
        broken = int((~self.gradients.isfinite()).any(1).sum())
        if broken:
            return f"{lines[0]}\n|dL/dh_t| is not finite for {broken} of {self.batch_size} samples."
        found = sorted(k for k, last in zip(self.gradient_horizons, self.gradients[:, -1], strict=True) if last)
        whose = "" if len(found) == self.batch_size else f" ({len(found)} samples)"
        if whose:
            lines.append(f"|dL/dh_T| is 0 for {self.batch_size - len(found)} of {self.batch_size} samples.")
        if found:
            middle = found[len(found) // 2]
            back = f"{middle} step{'s' * (middle != 1)} back{whose}"
            lines.append(f"|dL/dh_t| stays above {self.share:g} of its last value for {back}.")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the fields, what follows from them, and `ok`."""
        out = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        out |= {"clipping": [dataclasses.asdict(row) for row in self.clipping], "clip": dataclasses.asdict(self.clip)}
        out |= {name: getattr(self, name) for name in ("horizons", "gradient_horizons", "vanishes", "explodes", "ok")}
        plain = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in out.items()}
        result: dict[str, Any] = jsonable(plain)
        return result


def _middle(values: Tensor) -> float:
    """The median: of an even number, between the two in the middle (torch takes the lower)."""
    return float(np.median(values.numpy()))
