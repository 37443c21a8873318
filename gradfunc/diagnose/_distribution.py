"""How the entries of tensors are distributed, in one pass that keeps no copy of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._errors import check_int, kind_of, message

LEVELS = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_BLOCK = 1 << 16  # entries at a time on a CPU, by numpy: they stay in the cache, and no thread waits for another
_CHUNK = 1 << 24  # elsewhere
_Row = tuple[int, float, float, int]  # what _Sums adds up
_BARS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Distribution:
    """How entries are distributed. Made by `gf.diagnose.describe`.

    Mean, deviation, RMS and zeros are those of all finite entries; quantiles and histogram are those of a
    sample of positions, or of all finite entries where these are no more.

    Attributes:
        count: number of entries; of a complex tensor, real and imaginary parts.
        mean: of the finite entries; NaN where there are none, as are the next two.
        std: square root of the mean squared deviation (divided by the count).
        rms: square root of the mean square.
        zero: share of entries that are exactly 0.
        nonfinite: share that is NaN or infinite.
        sampled: how many positions quantiles and histogram are of.
        quantiles: `(level, value)` for the levels .01, .05, .25, .5, .75, .95, .99.
        histogram: number of sampled entries in bins of equal width.
        edges: where the first bin begins and the last one ends.
    """

    count: int
    mean: float
    std: float
    rms: float
    zero: float
    nonfinite: float
    sampled: int
    quantiles: tuple[tuple[float, float], ...]
    histogram: tuple[int, ...]
    edges: tuple[float, float]

    @property
    def norm(self) -> float:
        """Euclidean norm of the finite entries."""
        finite = round(self.count * (1 - self.nonfinite))
        return self.rms * math.sqrt(finite) if finite else 0.0

    def bars(self, width: int = 10) -> str:
        """The histogram as one line of text of this many signs."""
        if not self.histogram:
            return ""
        width = min(width, len(self.histogram))
        cuts = [k * len(self.histogram) // width for k in range(width + 1)]
        heights = [sum(self.histogram[a:b]) / (b - a) for a, b in itertools.pairwise(cuts)]
        top = max(heights)
        return "".join(_BARS[math.ceil(8 * height / top)] for height in heights)


def describe(
    tensors: Tensor | Sequence[Tensor], *, sample: int = 10_000, bins: int = 30, seed: int = 0
) -> Distribution:
    """How the entries of a tensor, or of several together, are distributed.

    Sums are taken in float64, block by block; a second pass is made only where entries are not finite, or their squares
    leave the range of float64.

    Args:
        tensors: floating or complex, of any shape.
        sample: the most positions that quantiles and the histogram are of, drawn with replacement.
        bins: of the histogram, between the smallest and the largest sampled entry.
        seed: of the sample.

    Raises:
        TypeError: not tensors, or of integers.
        ValueError: `sample` or `bins` below 1.

    Example:
        >>> import gradfunc as gf
        >>> found = gf.diagnose.describe(torch.tensor([0.0, 3.0, -3.0, 4.0, float("nan")]), bins=4)
        >>> found.mean, round(found.rms, 3), found.zero, found.nonfinite, found.histogram
        (1.0, 2.915, 0.2, 0.2, (1, 1, 0, 2))
    """
    call = "gf.diagnose.describe(tensors)"
    check_int(call, "sample", sample, 1)
    check_int(call, "bins", bins, 1)
    check_int(call, "seed", seed, 0)
    given = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    for tensor in given:
        if not isinstance(tensor, Tensor) or not (tensor.is_floating_point() or tensor.is_complex()):
            got = f"a tensor of {tensor.dtype}" if isinstance(tensor, Tensor) else kind_of(tensor)
            raise TypeError(message(call, got=got, expected="floating or complex tensors"))
    with torch.no_grad():
        return _described([_flat(tensor) for tensor in given], sample, bins, seed)


def _described(flats: list[Tensor], sample: int, bins: int, seed: int) -> Distribution:
    count = sum(flat.numel() for flat in flats)
    found = _Sums.of(flats)
    if not math.isfinite(found.squares):  # a NaN or inf is among them, or a square is too large
        found = _Sums.of(flats, finite=True)
    scale, shift = 1.0, 0.0
    if found.finite > found.zeros and not 1e-280 < found.squares < math.inf:  # the squares left the range of float64
        scale = max(_largest(block) for block in _blocks(flats))
        found = _Sums.of(flats, finite=True, scale=scale)
    mean, rms, std = math.nan, math.nan, math.nan
    if found.finite:
        mean, square = found.total / found.finite, found.squares / found.finite
        variance = square - mean**2
        if variance < 1e-8 * square:  # cancelled: eight digits are left of sixteen
            shift = mean
            variance = _Sums.of(flats, finite=True, scale=scale, shift=shift).squares / found.finite
        mean, rms, std = scale * mean, scale * math.sqrt(square), scale * math.sqrt(variance)
    chosen = _sampled(flats, count, sample, seed)
    quantiles, histogram, edges = _shape(chosen[np.isfinite(chosen)], bins)
    return Distribution(
        count=count,
        mean=mean,
        std=std,
        rms=rms,
        zero=found.zeros / count if count else 0.0,
        nonfinite=(count - found.finite) / count if count else 0.0,
        sampled=min(sample, count),
        quantiles=quantiles,
        histogram=histogram,
        edges=edges,
    )


@dataclass(frozen=True)
class _Sums:
    """Over finite entries x: sums of `x / scale - shift` and its square; zeros among x itself."""

    finite: int
    total: float
    squares: float
    zeros: int

    @classmethod
    def of(cls, flats: list[Tensor], *, finite: bool = False, scale: float = 1.0, shift: float = 0.0) -> _Sums:
        """One pass. Unless `finite` entries are picked, all are taken to be."""
        rows = [row for block in _blocks(flats) if (row := _sums(block, finite, scale, shift)) is not None]
        if not rows:
            return cls(0, 0.0, 0.0, 0)
        counts, totals, squares, zeros = zip(*rows, strict=True)
        return cls(sum(counts), sum(totals), sum(squares), sum(zeros))


def _blocks(flats: list[Tensor]) -> Iterator[Any]:
    """Some entries at a time: arrays of numpy on a CPU, tensors elsewhere."""
    for flat in flats:
        if flat.device.type == "cpu":
            yield from (
                part.float().numpy() if part.dtype == torch.bfloat16 else part.numpy()
                for part in (flat.split(_BLOCK) if flat.numel() else ())
            )
        elif flat.numel():
            yield from flat.split(_CHUNK)


def _sums(x: Any, finite: bool, scale: float, shift: float) -> _Row | None:
    if isinstance(x, Tensor):
        return _sums_on_device(x, finite, scale, shift)
    x = x[np.isfinite(x)] if finite else x
    if not x.size:
        return None
    with np.errstate(all="ignore"):
        y = x.astype(np.float64)
        if scale != 1.0 or shift:
            y = y / scale - shift
        total = float(y.sum())
        np.multiply(y, y, out=y)
        zeros = int(np.count_nonzero(x == 0))  # twice as fast as of x itself
        return int(x.size), total, float(y.sum()), zeros


def _sums_on_device(x: Tensor, finite: bool, scale: float, shift: float) -> _Row | None:
    x = x[x.isfinite()] if finite else x
    if not x.numel():
        return None
    y = x.double() / scale - shift
    total, squares, zeros = torch.stack([y.sum(), y.square().sum(), (x == 0).sum().double()]).tolist()
    return x.numel(), total, squares, int(zeros)


def _largest(x: Any) -> float:
    """The largest finite magnitude."""
    x = x.double().cpu().numpy() if isinstance(x, Tensor) else x.astype(np.float64)
    return float(np.max(np.abs(x[np.isfinite(x)]), initial=0.0))


def _flat(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return tensor.to_dense().reshape(-1) if tensor.layout != torch.strided else tensor.reshape(-1)


def _sampled(flats: list[Tensor], count: int, sample: int, seed: int) -> Any:
    """Sampled entries in float64, an array; each position is as likely as any other."""
    if not count:
        return np.empty(0)
    if count <= sample:
        return np.concatenate([flat.double().cpu().numpy() for flat in flats])
    positions = np.sort(np.random.default_rng(seed).integers(count, size=sample))
    parts, start = [], 0
    for flat in flats:
        first, last = np.searchsorted(positions, (start, start + flat.numel()))
        inside = positions[first:last] - start
        if flat.device.type == "cpu" and flat.dtype != torch.bfloat16:
            parts.append(flat.numpy()[inside].astype(np.float64))
        else:
            parts.append(flat[torch.from_numpy(inside).to(flat.device)].double().cpu().numpy())
        start += flat.numel()
    return np.concatenate(parts)


def _shape(x: Any, bins: int) -> tuple[tuple[tuple[float, float], ...], tuple[int, ...], tuple[float, float]]:
    """Quantiles, histogram and its edges."""
    if not x.size:
        return (), (), (math.nan, math.nan)
    values = np.quantile(x, LEVELS).tolist()
    low, high = float(x.min()), float(x.max())
    if bool((np.diff(np.linspace(low, high, bins + 1)) > 0).all()):
        counts = np.histogram(x, bins, range=(low, high))[0].tolist()
    else:  # one number, or neighbours with fewer floats between them than bins
        counts = [0] * bins
        counts[bins // 2] = x.size
    return tuple(zip(LEVELS, values, strict=True)), tuple(counts), (low, high)
