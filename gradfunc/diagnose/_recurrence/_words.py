"""What both reports of a recurrence say alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ..._report import Table, number
from ._gradients import Clip, Clipped


def power(log: float) -> str:
    """A number from its natural logarithm, also beyond the range of floats."""
    if math.isnan(log) or log == -math.inf:
        return "nan" if math.isnan(log) else "0"
    tens = log / math.log(10)
    whole = math.floor(tens)
    digits = f"{10 ** (tens - whole):.3f}"
    return f"1.000e{whole + 1:+03d}" if digits == "10.000" else f"{digits}e{whole:+03d}"


def listed(lags: Sequence[int]) -> list[int]:
    """Those a table shows: 0, powers of two, the last."""
    last = lags[-1]
    wanted = {0, last, *(1 << k for k in range(last.bit_length()))}
    return [k for k in lags if k in wanted]


def horizon(lags: Sequence[int], logs: Tensor, share: float) -> int:
    """The largest lag whose logarithm is at least that of `share`; the first lag if none is."""
    return max((k for k, log in zip(lags, logs.tolist(), strict=True) if log >= math.log(share)), default=lags[0])


def clipping_table(what: str, clip: Clip, rows: Sequence[Clipped]) -> Table:
    """Ways to clip compared."""
    cells = [
        [
            row.how,
            number(row.norm),
            f"{row.angle:.4g}",
            *([] if row.share is None else [f"{row.share:.6f}"]),
            f"same as {row.equals}, bit by bit" if row.equals else "",
        ]
        for row in rows
    ]
    share = ["share"] if rows and rows[0].share is not None else []
    note = "angle: to the gradient that is not clipped, in degrees."
    return Table(f"{what} clipped by {clip.kind} at {clip.limit:g}", ["how", "norm", "angle", *share, ""], cells, note)


def in_words(vanishes: bool, explodes: bool, reach: int, steps: int, share: float) -> str:
    """The verdict."""
    what = [word for word, is_so in (("explodes", explodes), ("vanishes", vanishes)) if is_so]
    seen = f"{reach} of {steps} steps" if reach < steps else "the only step" if steps == 1 else f"all {steps} steps"
    told = " and ".join(what) if what else "neither vanishes nor explodes"
    return f"Verdict: {told}; |dh_T/dh_t| stays above {share:g} for {seen} back."
