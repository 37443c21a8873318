"""What is said of a linear recurrence."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..._report import Report, Table, jsonable, number
from ._eigen import UNIT, Growth
from ._gradients import Clip, Clipped
from ._words import clipping_table, horizon, in_words, listed, power

SHOWN = 12


@dataclass(frozen=True, eq=False)
class LinearRecurrence(Report):
    """What `gf.diagnose.recurrence(W, steps=T)` found of `h_t = W^T h_{t-1}`.

    Logarithms are natural, -inf for 0; numbers beyond float64 are inf where they are not logarithms.

    Attributes:
        size: n.
        steps: T.
        matrix_free: whether n was above `dense`: `growth` is of the largest eigenvalues only, `lags` double.
        growth: one row an eigenvalue, or group of them that rounding cannot tell apart; largest modulus first.
        spectral_radius: `max |lambda|`: growth a step in the long run.
        spectral_norm: `|W|_2`: the most that one step grows anything by.
        departure: from normality (Henrici), 0 for a normal W; NaN where matrix-free.
        condition: of the eigenvectors; beyond `1 / (n u)` there is no basis of them. NaN where matrix-free.
        lags: k, from 0.
        log_norms: log of `|dh_T / dh_{T-k}|_2 = |W^k|_2`.
        log_spectrum: `[n]`, log of the singular values of `dh_T / dh_0`; None where matrix-free.
        residual: relative, of `log_norms`; 0 where dense.
        gradients: `[T + 1]`, `|dL / dh_{T-k}|` by lag k for `L = cotangent . h_T`.
        shares: `[T + 1]`, the part of its square in the dominating direction: the invariant subspace of W of the
            largest modulus, projected onto at right angles.
        clip: the limit compared.
        clipping: `dL / dW` under each way to clip, and the share of its rows in the dominating direction.
        share: below which part of `|dh_T / dh_T| = 1` gradients count as vanished, above whose inverse as exploded.
    """

    size: int
    steps: int
    matrix_free: bool
    growth: tuple[Growth, ...]
    spectral_radius: float
    spectral_norm: float
    departure: float
    condition: float
    lags: tuple[int, ...]
    log_norms: Tensor
    log_spectrum: Tensor | None
    residual: float
    gradients: Tensor
    shares: Tensor
    clip: Clip
    clipping: tuple[Clipped, ...]
    share: float

    @property
    def norms(self) -> Tensor:
        """`|dh_T / dh_{T-k}|_2` by lag, float64."""
        return self.log_norms.exp()

    @property
    def peak(self) -> float:
        """The largest of them: above 1 where all `|lambda| < 1`, it is a transient of a W that is not normal."""
        return float(self.norms.max())

    @property
    def peak_lag(self) -> int:
        """Its lag."""
        return self.lags[int(self.log_norms.argmax())]

    @property
    def defective(self) -> bool:
        """Whether some eigenvalue has too few eigenvectors, to rounding."""
        return any(row.chain > 1 for row in self.growth)

    @property
    def horizon(self) -> int:
        """The largest lag at which `|dh_T / dh_{T-k}|` is still at least `share`; T if it never falls below."""
        return horizon(self.lags, self.log_norms, self.share)

    @property
    def vanishes(self) -> bool:
        """Whether `|dh_T / dh_0|` is below `share`."""
        return float(self.log_norms[-1]) < math.log(self.share)

    @property
    def explodes(self) -> bool:
        """Whether some `|dh_T / dh_{T-k}|` exceeds `1 / share`."""
        return float(self.log_norms.max()) > -math.log(self.share)

    @property
    def ok(self) -> bool:
        """Whether gradients neither vanish nor explode within T steps, as far as could be told."""
        return not (self.vanishes or self.explodes or bool(self.log_norms.isnan().any()))

    def parts(self) -> Sequence[Table | str]:
        """Tables in reading order."""
        return [self._directions(), self._lags(), *self._spectrum(), self._clipping(), self._verdict()]

    def _directions(self) -> Table:
        rows = [
            [
                f"{row.real:.6g}" + (f" {row.imaginary:+.6g}i" if row.imaginary else ""),
                f"{row.modulus:.6g}",
                f"{row.turns:.3g}" if row.turns else "",
                str(row.multiplicity),
                str(row.chain),
                power(row.log_closed),
                power(row.log_measured),
            ]
            for row in self.growth[:SHOWN]
        ]
        head = ["eigenvalue", "modulus", "degrees/step", "times", "chain", "closed form", f"measured, T = {self.steps}"]
        note = "chain: longest Jordan chain; closed form |lambda|^T for 1, with terms C(T, j) lambda^(T-j) N^j beyond."
        if len(self.growth) > SHOWN:
            note += f" {len(self.growth) - SHOWN} smaller ones are in to_dict()."
        return Table(f"Growth by eigendirection (n = {self.size})", head, rows, note)

    def _lags(self) -> Table:
        chosen = listed(self.lags)
        rows = [
            [str(k), power(float(self.log_norms[self.lags.index(k)])), number(float(self.gradients[k])),
             f"{float(self.shares[k]):.4f}"]
            for k in chosen
        ]  # fmt: skip
        note = "share: the part of |dL/dh|^2 in the dominating direction."
        if self.matrix_free:
            note += f" Matrix-free: relative residual of the norms {number(self.residual)}."
        head = ["lag k", "|dh_T/dh_T-k|", "|dL/dh_T-k|", "share"]
        return Table("Back through time", head, rows, note)

    def _spectrum(self) -> list[str]:
        if self.log_spectrum is None:
            return []
        floor = float(self.log_spectrum[0]) + math.log(self.size * UNIT)
        kept = [power(float(x)) for x in self.log_spectrum if float(x) > floor or not math.isfinite(floor)]
        more = self.size - len(kept[:SHOWN])
        tail = f", and {more} more, smaller or rounding" if more else ""
        return [f"Singular values of dh_T/dh_0: {', '.join(kept[:SHOWN])}{tail}."]

    def _clipping(self) -> Table:
        return clipping_table("dL/dW", self.clip, self.clipping)

    def _verdict(self) -> str:
        lines = [
            f"Spectral radius {self.spectral_radius:.6g}, norm {self.spectral_norm:.6g}, departure from normality "
            f"{number(self.departure)}, condition of the eigenvectors {number(self.condition)}."
        ]
        if self.defective:
            lines.append("W is defective: no basis of eigenvectors; the rows above are invariant subspaces.")
        elif self.condition * self.size * UNIT > 1:
            lines.append("No basis of eigenvectors can be told from rounding.")
        if self.spectral_radius < 1 < self.peak:
            lines.append(f"Not normal: it grows {self.peak:.4g} times (lag {self.peak_lag}) before it decays.")
        lines.append(in_words(self.vanishes, self.explodes, self.horizon, self.steps, self.share))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the fields, what follows from them, and `ok`."""
        out = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        out |= {"growth": [dataclasses.asdict(row) for row in self.growth]}
        out |= {"clipping": [dataclasses.asdict(row) for row in self.clipping], "clip": dataclasses.asdict(self.clip)}
        out |= {name: getattr(self, name) for name in ("peak", "peak_lag", "defective", "horizon", "vanishes")}
        out |= {"explodes": self.explodes, "ok": self.ok}
        plain = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in out.items()}
        result: dict[str, Any] = jsonable(plain)
        return result
