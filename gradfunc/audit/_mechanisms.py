"""The mechanisms by which reductions come to disagree, as data: one list, read by the audit, its tests and its tables.

Each has a closed form. All of them say the same kind of thing: an estimator of the mean gradient is `sum c * d(e)` over
the elements e of `reduction="none"`, and the mechanism changes the coefficients c, or the forward pass that gives e.

- A *weight* mechanism gives each element a weight w (and says whether a sample's elements are counted or averaged).
  Then torch's mean has c = 1 / sum w, one sample alone has c = 1 / (n w_i), while sum / n has c = 1 / n.
- A *forward* mechanism says under which intervention one pass of the whole batch repeats what passes over parts of it
  do.
- A *loop* mechanism lies in the code that collects gradients. With m_k the gradient of the mean of part k of K:
  it says which coefficients the m_k get instead of those of the mean.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from .. import losses
from .._problem import Problem
from .._random import CannotReplay, Record, ReplayDraws
from ._case import Case

Parts = list[range]


@dataclass(frozen=True)
class Mechanism:
    """One way in which gradients under different reductions come to disagree.

    Attributes:
        name: stable identifier.
        kind: "weight", "forward" or "loop".
        moves: the estimators it changes.
        says: what happens, in one line.
        formula: the closed form of the discrepancy.
        remedy: what to do.
        invited: why this model and criterion invite it, None if they don't.
        applies: whether it acts on this batch.
        weight: for a weight mechanism, the factor of each element's weight, broadcast to `[n, ...]`.
        counts: whether a sample's weight is the sum over its elements rather than their mean.
        divides: a divisor of each element inside a mean, where the criterion has one.
        members: which elements belong to each part of the batch, where rows of elements are not samples.
        intervene: for a forward mechanism, the context under which one pass repeats passes over `sizes`.
        loop: for a loop mechanism, `(case, parts, true weights) -> [(detail, coefficients [n])]`.
    """

    name: str
    kind: str
    moves: tuple[str, ...]
    says: str
    formula: str
    remedy: str
    invited: Callable[[Case], str | None]
    applies: Callable[[Case], bool]
    weight: Callable[[Case], Tensor] | None = None
    counts: bool = False
    divides: Callable[[Case], Tensor] | None = None
    members: Callable[[Case, Parts], list[Tensor]] | None = None
    intervene: Callable[[list[int], list[Record] | None], AbstractContextManager[Any]] | None = None
    loop: Callable[[Case, Parts, Tensor], Iterable[tuple[str, Tensor]]] | None = None


# --- weights -------------------------------------------------------------------------------------------


def _options(case: Case) -> tuple[Any, ...]:
    criterion = case.problem.criterion
    return (
        criterion.option("weight"),
        criterion.option("ignore_index", -100),
        criterion.option("label_smoothing", 0.0),
    )


def _indices(case: Case) -> Tensor | None:
    """Class targets, where the criterion is of classes and its targets are indices."""
    target = case.problem.target
    family = case.problem.criterion.family
    return target if family == "class" and isinstance(target, Tensor) and not target.is_floating_point() else None


def _ignored(case: Case) -> bool:
    target = _indices(case)
    return target is not None and bool((target == _options(case)[1]).any())


def _invites_ignoring(case: Case, what: str) -> str | None:
    """An `ignore_index` that was asked for, or that hits; -100 is everybody's default."""
    asked = _indices(case) is not None and _options(case)[1] != -100
    return f"{what} may be ignored" if asked or _ignored(case) else None


def _per_row(case: Case) -> int:
    """Elements of one sample."""
    elements = case.forward.elements
    return 0 if elements is None or case.size == 0 else elements.numel() // case.size


def _valid_weight(case: Case) -> Tensor:
    target = _indices(case)
    assert target is not None
    assert case.forward.elements is not None
    counted: Tensor = target != _options(case)[1]
    return counted.to(case.forward.elements.dtype)


def _class_weight(case: Case) -> Tensor:
    target, (weight, ignored, _) = _indices(case), _options(case)
    assert target is not None
    assert case.forward.elements is not None
    counted = losses.class_weights(target, weight, ignored, like=case.forward.elements)
    return torch.where(target == ignored, torch.ones_like(counted), counted)


def _has_class_weights(case: Case, smoothed: bool) -> bool:
    weight, _, smoothing = _options(case)
    return _indices(case) is not None and weight is not None and (smoothing > 0) == smoothed


def _is_broadcast(case: Case) -> bool:
    output, target = case.forward.output, case.problem.target
    if case.problem.criterion.family != "element" or case.problem.criterion.form != "reducible":
        return False
    both = isinstance(output, Tensor) and isinstance(target, Tensor)
    return both and output.shape != target.shape and case.forward.elements is not None


def same_rows(case: Case, parts: Parts) -> list[Tensor]:
    """For each part, which elements pair an output row and a target row of that part. Broadcasting makes others too."""
    part_of = torch.empty(case.size, dtype=torch.long)
    for k, part in enumerate(parts):
        part_of[part.start : part.stop] = k
    assert case.forward.elements is not None
    shape = case.forward.elements.shape
    if not _is_broadcast(case):
        part_of = part_of.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
        return [part_of == k for k in range(len(parts))]
    output, target = (
        part_of.reshape(-1, *[1] * (t.dim() - 1)).expand(t.shape) for t in (case.forward.output, case.problem.target)
    )
    output, target = torch.broadcast_tensors(output, target)
    return [(output == k) & (target == k) for k in range(len(parts))]


def _target_lengths(case: Case) -> Tensor:
    lengths = case.problem.target[2]
    return torch.as_tensor(lengths).clamp(min=1)


def _criterion_is(family: str) -> Callable[[Case], bool]:
    return lambda case: case.problem.criterion.family == family


def _many(case: Case) -> bool:
    return case.problem.criterion.form == "reducible" and _per_row(case) > 1


# --- forward passes ------------------------------------------------------------------------------------


class PartwiseBatchNorm(TorchFunctionMode):
    """Batch statistics of each part of the batch, written out: (x - mean) / sqrt(var + eps) * weight + bias."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace `F.batch_norm` where it would use the statistics of the whole batch."""
        if func is not F.batch_norm:
            return func(*args, **(kwargs or {}))
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        given: dict[str, Any] = {"weight": None, "bias": None, "training": False, "eps": 1e-5}
        given |= dict(zip(names, args, strict=False)) | (kwargs or {})
        if not given["training"]:
            return func(*args, **(kwargs or {}))
        x: Tensor = given["input"]
        if x.shape[0] % sum(self.sizes):
            raise CannotReplay(f"batch norm over {x.shape[0]} rows for {sum(self.sizes)} samples")
        each = x.shape[0] // sum(self.sizes)
        return torch.cat([self._normalised(part, given) for part in x.split([each * size for size in self.sizes])])

    @staticmethod
    def _normalised(x: Tensor, given: dict[str, Any]) -> Tensor:
        over = [dim for dim in range(x.dim()) if dim != 1]
        centred = x - x.mean(over, keepdim=True)
        out: Tensor = centred / (centred.square().mean(over, keepdim=True) + given["eps"]).sqrt()
        shape = (1, -1, *[1] * (x.dim() - 2))
        out = out if given["weight"] is None else out * given["weight"].reshape(shape)
        return out if given["bias"] is None else out + given["bias"].reshape(shape)


def layers_of(problem: Problem, kind: str) -> list[str]:
    """Names of the layers that could act: "norm" (batch norm) or "dropout"."""
    module = problem.model.module
    if module is None:
        return []
    named = [(name or type(layer).__name__, layer) for name, layer in module.named_modules()]
    if kind == "norm":
        return [name for name, layer in named if isinstance(layer, _BatchNorm)]
    return [name for name, layer in named if _drops(layer)]


def _drops(layer: nn.Module) -> bool:
    if isinstance(layer, _DropoutNd):
        return layer.p > 0
    return isinstance(layer, (nn.RNNBase, nn.MultiheadAttention)) and layer.dropout > 0


def _replay(sizes: list[int], records: list[Record] | None) -> AbstractContextManager[Any]:
    if records is None:
        raise CannotReplay("a draw inside a fused operator")
    return ReplayDraws(records)


def _has_draws(case: Case) -> bool:
    return case.draws is None or bool(case.draws.draws)


def _named(layers: list[str]) -> str | None:
    return ", ".join(layers[:3]) + (", ..." if len(layers) > 3 else "") if layers else None


# --- loops that collect gradients --------------------------------------------------------------------------


def spread(parts: Parts, weights: Tensor, factors: list[float]) -> Tensor:
    """Coefficients of `sum_k factors[k] m_k`, m_k the gradient of the mean over part k."""
    c = torch.zeros_like(weights)
    for part, factor in zip(parts, factors, strict=True):
        total = weights[part.start : part.stop].sum()
        c[part.start : part.stop] = factor / total if total > 0 else 0.0
    return c


def _mean_of_means(case: Case, parts: Parts, weights: Tensor) -> Iterable[tuple[str, Tensor]]:
    yield f"{len(parts)} means averaged", spread(parts, weights, [1 / len(parts)] * len(parts))


def _no_division(case: Case, parts: Parts, weights: Tensor) -> Iterable[tuple[str, Tensor]]:
    yield f"K = {len(parts)}", spread(parts, weights, [1.0] * len(parts))
    if len(parts) == case.size:
        yield "a sum, undivided", torch.ones_like(weights)


def _missing_zero(case: Case, parts: Parts, weights: Tensor) -> Iterable[tuple[str, Tensor]]:
    k = len(parts)
    yield f"K = {k}, averaged", spread(parts, weights, [(k - i) / k for i in range(k)])
    yield f"K = {k}, summed", spread(parts, weights, [float(k - i) for i in range(k)])


def _aliased(case: Case, parts: Parts, weights: Tensor) -> Iterable[tuple[str, Tensor]]:
    k = len(parts)
    factors = [0.0, 2 / k, *[1 / k] * (k - 2)] if k > 1 else [1.0]
    yield f"first of {k} replaced by the second", spread(parts, weights, factors)


def _short_batch(case: Case, parts: Parts, weights: Tensor) -> Iterable[tuple[str, Tensor]]:
    nominal = max(len(part) for part in parts)
    if len(parts) > 1 and len(parts[-1]) < nominal:
        factors = [float(weights[p.start : p.stop].sum()) / (nominal * len(parts)) for p in parts]
        yield f"sums divided by the nominal {nominal}", spread(parts, weights, factors)


def _short_window(case: Case, parts: Parts, weights: Tensor) -> Iterable[tuple[str, Tensor]]:
    k = len(parts)
    for window in range(k + 1, 4 * k + 1):
        yield f"{k} of {window} micro-batches arrived", spread(parts, weights, [1 / window] * k)


def _counted_padding(case: Case, parts: Parts, weights: Tensor) -> Iterable[tuple[str, Tensor]]:
    positions = case.size * _per_row(case)
    yield f"{positions} positions, {int(weights.sum())} of them counted", torch.full_like(weights, 1 / positions)


_SUMS = ("mean", "sliced", "re-fed", "yours")
_PARTS = ("re-fed", "yours")


def _yours(case: Case) -> str | None:
    return "gradients are collected by a loop" if case.yours_sizes else None


def _loop(name: str, says: str, formula: str, remedy: str, loop: Any, applies: Any = None) -> Mechanism:
    return Mechanism(name, "loop", ("yours",), says, formula, remedy, _yours, applies or (lambda case: True), loop=loop)


MECHANISMS: tuple[Mechanism, ...] = (
    Mechanism(
        name="aliased_first_sample",
        kind="loop",
        moves=("forum loop", "yours"),
        says="the first gradient was kept as a view of .grad, then zeroed in place and overwritten by the second",
        formula="(g_1 - g_0) / n",
        remedy="clone: param.grad.detach().clone(); or zero_grad(set_to_none=True)",
        invited=_yours,
        applies=lambda case: case.size > 1,
        loop=_aliased,
    ),
    Mechanism(
        name="class_weights",
        kind="weight",
        moves=_SUMS,
        says="torch's mean divides by the sum of class weights, and on one sample the weight cancels",
        formula="sum w_i g_i / sum w_i  against  sum w_i g_i / n",
        remedy="keep (numerator, weight) and divide once: gf.losses.cross_entropy(..., weight=w), g.mean()",
        invited=lambda case: "class weights" if _has_class_weights(case, False) else None,
        applies=lambda case: _has_class_weights(case, False),
        weight=_class_weight,
    ),
    Mechanism(
        name="label_smoothing_weights",
        kind="weight",
        moves=_SUMS,
        says="smoothing spreads over all class weights, but torch's mean divides by the targets' weights alone",
        formula="sum g_i / sum w_y(i)  against  sum g_i / n",
        remedy="keep (numerator, weight): gf.losses.cross_entropy(..., weight=w, label_smoothing=e), g.mean()",
        invited=lambda case: "class weights with label smoothing" if _has_class_weights(case, True) else None,
        applies=lambda case: _has_class_weights(case, True),
        weight=_class_weight,
    ),
    Mechanism(
        name="ignore_index",
        kind="weight",
        moves=_SUMS,
        says="torch's mean divides by the samples that are not ignored",
        formula="factor n / n_valid",
        remedy="divide sums by the number of targets that count: g.mean(), gf.Accumulator",
        invited=lambda case: _invites_ignoring(case, "targets") if _per_row(case) == 1 else None,
        applies=lambda case: _per_row(case) == 1 and _ignored(case),
        weight=_valid_weight,
    ),
    Mechanism(
        name="padding",
        kind="weight",
        moves=_SUMS,
        says="torch's mean counts every token once; one sequence at a time counts every sequence once",
        formula="sum (1/n - T_i / sum T) g_i, g_i the mean gradient of sequence i",
        remedy="sum over tokens, divide once by the number of tokens: g.mean(), gf.Accumulator",
        invited=lambda case: _invites_ignoring(case, "positions") if _many(case) else None,
        applies=lambda case: _many(case) and _ignored(case),
        weight=_valid_weight,
        counts=True,
    ),
    Mechanism(
        name="element_mean",
        kind="weight",
        moves=_SUMS,
        says="torch's mean divides by n x d elements, a sum over n by n alone",
        formula="factor d",
        remedy="decide on one: divide sums by n d, or use gf.losses.mse, whose weight is d",
        invited=lambda case: f"{_per_row(case)} elements a sample" if _many(case) else None,
        applies=lambda case: (
            _many(case) and not _ignored(case) and not _is_broadcast(case) and not _criterion_is("kl")(case)
        ),
        counts=True,
    ),
    Mechanism(
        name="batchmean",
        kind="weight",
        moves=_SUMS,
        says="KLDivLoss's mean divides by n x d elements; the divergence itself is its batchmean",
        formula="factor d",
        remedy="nn.KLDivLoss(reduction='batchmean')",
        invited=lambda case: "KLDivLoss" if _criterion_is("kl")(case) and _many(case) else None,
        applies=lambda case: _criterion_is("kl")(case) and _many(case),
        counts=True,
    ),
    Mechanism(
        name="broadcast",
        kind="weight",
        moves=_SUMS,
        says="output and target of other shapes are broadcast: every sample is compared with every other's target",
        formula="mean over n x n pairs  against  mean over n",
        remedy="target = target.view_as(output); gf.losses refuse to broadcast",
        invited=lambda case: "output and target differ in shape" if _is_broadcast(case) else None,
        applies=_is_broadcast,
        members=same_rows,
    ),
    Mechanism(
        name="ctc_lengths",
        kind="weight",
        moves=_SUMS,
        says="CTCLoss's mean divides each loss by its target's length before averaging; its sum does not",
        formula="sum (1/T_i - 1) g_i / n",
        remedy="decide on one convention and use it for sums and means alike",
        invited=lambda case: "CTCLoss" if _criterion_is("ctc")(case) else None,
        applies=_criterion_is("ctc"),
        divides=_target_lengths,
    ),
    Mechanism(
        name="sample_weights",
        kind="weight",
        moves=_SUMS,
        says="the loss carries weights other than 1 (counted elements, class weights, ignored samples)",
        formula="sum g_i / sum w_i  against  sum g_i / n",
        remedy="g.mean() divides by the weights; sum / n is another quantity",
        invited=lambda case: "weights of the loss" if case.forward.weights is not None else None,
        applies=lambda case: case.forward.weights is not None and bool((case.forward.weights != 1).any()),
        weight=lambda case: case.forward.weights,  # type: ignore[arg-type,return-value]
    ),
    Mechanism(
        name="batch_statistics",
        kind="forward",
        moves=_PARTS,
        says="BatchNorm in train mode normalises by the statistics of whatever batch it is given",
        formula="gradient of the whole batch with each part normalised by its own mean and variance",
        remedy="model.eval(), or GroupNorm / LayerNorm",
        invited=lambda case: _named(layers_of(case.problem, "norm")),
        applies=lambda case: bool(case.problem.model.batch_stat_layers()),
        intervene=lambda sizes, records: PartwiseBatchNorm(sizes),
    ),
    Mechanism(
        name="dropout",
        kind="forward",
        moves=_PARTS,
        says="each forward pass draws its own masks",
        formula="gradient of the whole batch under the masks that the parts drew",
        remedy="model.eval(), or one forward pass, or the same seed for the same samples",
        invited=lambda case: (
            _named(layers_of(case.problem, "dropout")) or ("random draws" if _has_draws(case) else None)
        ),
        applies=_has_draws,
        intervene=_replay,
    ),
    _loop(
        "unequal_micro_batches",
        "means of micro-batches of unequal weight were averaged",
        "sum_k (1/(K n_k) - 1/n) S_k",
        "add sums and weights, divide once: gf.Accumulator",
        _mean_of_means,
    ),
    _loop(
        "no_division",
        "means of K micro-batches were added without dividing by K",
        "factor K",
        "loss = loss / K before backward, or gf.Accumulator",
        _no_division,
    ),
    _loop(
        "short_last_batch",
        "each sum was divided by the nominal batch size, but the last batch is shorter",
        "sum_k S_k / (K N) against sum_k S_k / n",
        "divide by the samples that came: gf.Accumulator",
        _short_batch,
    ),
    _loop(
        "short_last_window",
        "the last window of accumulation held fewer micro-batches than it was divided by",
        "factor k / K",
        "divide by the micro-batches that came: gf.Accumulator",
        _short_window,
    ),
    _loop(
        "missing_zero_grad",
        "gradients were collected without zeroing .grad in between",
        "sum_i (n - i) g_i / n - mean",
        "zero_grad() before every backward that is collected",
        _missing_zero,
    ),
    _loop(
        "padding_counted",
        "padded positions were counted in the mean",
        "sum S_i / (n T) against sum S_i / sum T_i",
        "divide by the positions that count: gf.losses.cross_entropy(..., ignore_index=pad)",
        _counted_padding,
        lambda case: _many(case) and _ignored(case),
    ),
)

BY_NAME: dict[str, Mechanism] = {mechanism.name: mechanism for mechanism in MECHANISMS}


def singles(n: int) -> Parts:
    """Every sample a part of its own."""
    return [range(i, i + 1) for i in range(n)]


def parts_of(sizes: list[int]) -> Parts:
    """Consecutive parts of the given sizes."""
    stops = list(itertools.accumulate(sizes))
    return [range(stop - size, stop) for stop, size in zip(stops, sizes, strict=True)]
