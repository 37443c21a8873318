"""The noise scale from two batch sizes and over many batches, and what it says of batch sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from .._errors import POSITIVE, check_number, kind_of, message
from ._noise_scale import NoiseScale
from ._read import square_of

UNIT = "a number in [0, 1)"


def two_batch_noise_scale(
    small: Mapping[str, Tensor], big: Mapping[str, Tensor], small_size: float, big_size: float
) -> NoiseScale:
    """The noise scale from mean gradients of two batch sizes, such as of one device and of all of them.

    McCandlish et al. 2018, "An empirical model of large-batch training" (arXiv 1812.06162, appendix A.1):

        squared_norm = (B |G_B|^2 - b |G_b|^2) / (B - b)
        trace        = (|G_b|^2 - |G_B|^2) / (1/b - 1/B)

    Bias: both are unbiased for equal weights, also where the small batch is a part of the big one; `scale`, a quotient,
    is not: average the parts first (`RunningNoiseScale`). Their variance is larger than that of
    `gradient_noise_scale`, which sees every sample.

    Cost: two passes over P entries. Float64.

    Args:
        small, big: mean gradients `{name: tensor}`, of the same parameters.
        small_size, big_size: samples they are means of.

    Raises:
        TypeError, ValueError: something else; sizes that are not `0 < small_size < big_size`.

    Example:
        >>> import torch, gradfunc as gf
        >>> found = gf.quantities.two_batch_noise_scale({"w": torch.tensor(3.0)}, {"w": torch.tensor(2.0)}, 1, 2)
        >>> found.trace, found.squared_norm    # samples 3 and 1, as if all of them began with 3
        (tensor(10., dtype=torch.float64), tensor(-1., dtype=torch.float64))
    """
    call = "gf.quantities.two_batch_noise_scale(small, big, small_size, big_size)"
    for name, size in (("small_size", small_size), ("big_size", big_size)):
        check_number(call, name, size, POSITIVE)
    if small_size >= big_size:
        raise ValueError(message(call, got=f"sizes {small_size} and {big_size}", expected="small_size < big_size"))
    for given in (small, big):
        if not isinstance(given, Mapping):
            raise TypeError(message(call, got=kind_of(given), expected="mean gradients {name: tensor}"))
    if {k: v.shape for k, v in small.items()} != {k: v.shape for k, v in big.items()}:
        got = f"gradients of {sorted(small)} and {sorted(big)}"
        raise ValueError(message(call, got=got, expected="parameters of the same names and shapes"))
    little, large = square_of(small), square_of(big)
    norm = (big_size * large - small_size * little) / (big_size - small_size)
    trace = (little - large) / (1 / small_size - 1 / big_size)
    return NoiseScale(trace, norm, trace / norm)


@dataclass(frozen=True, eq=False)
class RunningNoiseScale:
    """Noise scales of many batches, averaged as they should be: each part, then the quotient. Immutable.

    Exponential moving averages of `trace` and `squared_norm`, both divided by the total weight `1 - decay^n`, so that
    they are weighted means from the first batch on (McCandlish et al. 2018, arXiv 1812.06162, appendix A.1). Decay 0 is
    the last batch alone.

    Bias: the parts are unbiased where those of the batches are; that of their quotient falls as `1 - decay` does.

    Attributes:
        decay: the share of the past, in [0, 1).
        count: batches added.
        trace: the sum of the averages of it, float64 `[]`.
        squared_norm: likewise.

    Example:
        >>> import torch, gradfunc as gf
        >>> f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())
        >>> running = gf.quantities.RunningNoiseScale.init(decay=0.5)
        >>> for x in (torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [2.0]])):
        ...     running = running.add(gf.quantities.gradient_noise_scale(f({"w": torch.zeros(1)}, x)))
        >>> running.value.trace    # (2 + 2 * 0) / 3
        tensor(0.6667, dtype=torch.float64)
    """

    decay: float
    count: int
    trace: Tensor
    squared_norm: Tensor

    @classmethod
    def init(cls, decay: float = 0.99) -> RunningNoiseScale:
        """Of no batch.

        Raises:
            TypeError, ValueError: a decay that is no number in [0, 1).
        """
        call = "gf.quantities.RunningNoiseScale.init(decay)"
        if not isinstance(decay, (int, float)) or isinstance(decay, bool):
            raise TypeError(message(call, got=f"decay={decay!r}", expected=UNIT))
        if not 0 <= decay < 1:
            raise ValueError(message(call, got=f"decay={decay!r}", expected=UNIT))
        zero = torch.zeros((), dtype=torch.float64)
        return cls(float(decay), 0, zero, zero)

    def add(self, found: NoiseScale) -> RunningNoiseScale:
        """With the noise scale of one more batch."""
        if not isinstance(found, NoiseScale):
            call = "RunningNoiseScale.add(found)"
            raise TypeError(message(call, got=kind_of(found), expected="gf.quantities.NoiseScale"))
        trace, norm = (part.detach().to(self.trace) for part in (found.trace, found.squared_norm))
        return dataclasses.replace(
            self,
            count=self.count + 1,
            trace=self.decay * self.trace + (1 - self.decay) * trace,
            squared_norm=self.decay * self.squared_norm + (1 - self.decay) * norm,
        )

    @property
    def value(self) -> NoiseScale:
        """The averages and their quotient; NaN of no batch."""
        weight = 1 - self.decay**self.count
        trace, norm = (torch.nan if not self.count else part / weight for part in (self.trace, self.squared_norm))
        trace, norm = torch.as_tensor(trace).double(), torch.as_tensor(norm).double()
        return NoiseScale(trace, norm, trace / norm)


@dataclass(frozen=True)
class BatchEfficiency:
    """What a batch size costs against the extremes, made by `gf.quantities.batch_efficiency`.

    Attributes:
        steps: how many times the fewest steps (of a huge batch) it takes: `1 + scale / B`.
        examples: how many times the fewest examples (of batches of one) it takes: `1 + B / scale`.
    """

    steps: float
    examples: float


def batch_efficiency(scale: float, batch_size: float) -> BatchEfficiency:
    """Steps and examples that a batch size takes, as multiples of the fewest possible, by the noise scale.

    McCandlish et al. 2018 (arXiv 1812.06162, eq. 2.6 and 2.11). At `batch_size = scale`, the critical batch size of
    this model, both are doubled. It is of one moment of a training and of curvature that is a multiple of the identity.

    Args:
        scale: a noise scale, such as `float(gradient_noise_scale(g).scale)`, > 0.
        batch_size: > 0.

    Raises:
        TypeError, ValueError: something else, such as a negative estimate: average more batches.

    Example:
        >>> batch_efficiency(1000.0, 250.0)
        BatchEfficiency(steps=5.0, examples=1.25)
    """
    call = "gf.quantities.batch_efficiency(scale, batch_size)"
    do = "An estimate below 0 says that noise prevails: average its parts over more batches."
    check_number(call, "scale", scale, POSITIVE, do=do)
    check_number(call, "batch_size", batch_size, POSITIVE)
    return BatchEfficiency(1 + scale / batch_size, 1 + batch_size / scale)


@dataclass(frozen=True)
class CriticalBatch:
    """The trade-off of steps and examples, made by `gf.quantities.critical_batch_size`.

    Attributes:
        size: the critical batch size, `least_examples / least_steps`.
        least_steps: those of a batch without end.
        least_examples: those of batches of one.
        residual: the root mean square of measured over fitted steps, less 1.
    """

    size: float
    least_steps: float
    least_examples: float
    residual: float


def critical_batch_size(batch_sizes: Sequence[float], steps: Sequence[float]) -> CriticalBatch:
    """The critical batch size from trainings to one goal at several batch sizes.

    Fits `(S / S_min - 1)(E / E_min - 1) = 1`, `E = B S` (McCandlish et al. 2018, arXiv 1812.06162, eq. 2.11), which is
    `S = S_min + E_min / B`: by least squares of relative errors, without negative numbers (scipy's non-negative least
    squares). The noise scale predicts it; this measures it.

    Bias: of the model itself; relative errors of equal variance make the fit nearly unbiased.

    Args:
        batch_sizes: at least two different ones, > 0.
        steps: how many each took to reach the goal, > 0.

    Raises:
        TypeError, ValueError: other lengths or numbers.

    Example:
        >>> found = critical_batch_size([10, 100, 1000], [1100, 200, 110])
        >>> round(found.size), round(found.least_steps), round(found.least_examples)
        (100, 100, 10000)
    """
    call = "gf.quantities.critical_batch_size(batch_sizes, steps)"
    for name, values in (("batch_sizes", batch_sizes), ("steps", steps)):
        for value in values:
            check_number(call, name, value, POSITIVE)
    if len(batch_sizes) != len(steps) or len(set(batch_sizes)) < 2:
        got = f"{len(batch_sizes)} batch sizes and {len(steps)} counts of steps"
        raise ValueError(message(call, got=got, expected="as many of both, and two batch sizes that differ"))
    sizes, counts = np.asarray(batch_sizes, dtype=float), np.asarray(steps, dtype=float)
    matrix = np.stack([1 / counts, 1 / (sizes * counts)], 1)
    reach = matrix.max(0)  # columns of one magnitude
    (least, examples), _ = nnls(matrix / reach, np.ones(len(counts)))
    least, examples = float(least / reach[0]), float(examples / reach[1])
    off = (least + examples / sizes) / counts - 1
    size = examples / least if least else float("inf")
    return CriticalBatch(size, least, examples, float(np.sqrt(np.mean(off**2))))
