"""Mechanisms that lie in the weights: what torch's mean divides by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import losses
from .._case import Case
from ._base import Mechanism, Parts

_MOVES = ("mean", "sliced", "re-fed", "yours")


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


def per_row(case: Case) -> int:
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
    elements = case.forward.elements
    if not isinstance(output, Tensor) or not isinstance(target, Tensor) or elements is None:
        return False
    try:
        shape = torch.broadcast_shapes(output.shape, target.shape)
    except RuntimeError:
        return False
    return output.shape != target.shape and elements.shape == shape


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


def _declared_weight(case: Case) -> Tensor:
    assert case.forward.weights is not None
    return case.forward.weights


def _target_lengths(case: Case) -> Tensor:
    lengths = case.problem.target[2]
    assert case.forward.elements is not None
    return torch.as_tensor(lengths, device=case.forward.elements.device).clamp(min=1)


def _criterion_is(family: str) -> Callable[[Case], bool]:
    return lambda case: case.problem.criterion.family == family


def many(case: Case) -> bool:
    return case.problem.criterion.form == "reducible" and per_row(case) > 1


def is_padded(case: Case) -> bool:
    """Several positions a sample, some of them ignored."""
    return many(case) and _ignored(case)


def _divides_by_elements(case: Case) -> bool:
    """KLDivLoss with its default reduction."""
    criterion = case.problem.criterion
    return criterion.family == "kl" and criterion.given_mean == "mean" and many(case)


WEIGHT: tuple[Mechanism, ...] = (
    Mechanism(
        name="class_weights",
        kind="weight",
        moves=_MOVES,
        says="torch's mean divides by the sum of class weights, and on one sample the weight cancels",
        formula="sum w_i g_i / sum w_i  against  sum w_i g_i / n",
        remedy="keep (numerator, weight) and divide once: gf.losses.cross_entropy(..., weight=w), g.mean()",
        invited=lambda case: "class weights" if _has_class_weights(case, False) else None,
        applies=lambda case: _has_class_weights(case, False) and bool((_class_weight(case) != 1).any()),
        weight=_class_weight,
    ),
    Mechanism(
        name="label_smoothing_weights",
        kind="weight",
        moves=_MOVES,
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
        moves=_MOVES,
        says="torch's mean divides by the samples that are not ignored",
        formula="factor n / n_valid",
        remedy="divide sums by the number of targets that count: g.mean(), gf.Accumulator",
        invited=lambda case: _invites_ignoring(case, "targets") if per_row(case) == 1 else None,
        applies=lambda case: per_row(case) == 1 and _ignored(case),
        weight=_valid_weight,
    ),
    Mechanism(
        name="padding",
        kind="weight",
        moves=_MOVES,
        says="torch's mean counts every token once; one sequence at a time counts every sequence once",
        formula="sum (1/n - T_i / sum T) g_i, g_i the mean gradient of sequence i",
        remedy="sum over tokens, divide once by the number of tokens: g.mean(), gf.Accumulator",
        invited=lambda case: _invites_ignoring(case, "positions") if many(case) else None,
        applies=is_padded,
        weight=_valid_weight,
        counts=True,
    ),
    Mechanism(
        name="element_mean",
        kind="weight",
        moves=_MOVES,
        says="torch's mean divides by n x d elements, a sum over n by n alone",
        formula="factor d",
        remedy="decide on one: divide sums by n d, or use gf.losses.mse, whose weight is d",
        invited=lambda case: f"{per_row(case)} elements a sample" if many(case) else None,
        applies=lambda case: (
            many(case) and not _ignored(case) and not _is_broadcast(case) and not _criterion_is("kl")(case)
        ),
        counts=True,
    ),
    Mechanism(
        name="batchmean",
        kind="weight",
        moves=_MOVES,
        says="KLDivLoss's mean divides by n x d elements; the divergence itself is its batchmean",
        formula="factor d",
        remedy="nn.KLDivLoss(reduction='batchmean')",
        invited=lambda case: "KLDivLoss" if _divides_by_elements(case) else None,
        applies=_divides_by_elements,
        counts=True,
    ),
    Mechanism(
        name="broadcast",
        kind="weight",
        moves=_MOVES,
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
        moves=_MOVES,
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
        moves=_MOVES,
        says="the loss carries weights other than 1 (counted elements, class weights, ignored samples)",
        formula="sum g_i / sum w_i  against  sum g_i / n",
        remedy="g.mean() divides by the weights; sum / n is another quantity",
        invited=lambda case: "weights of the loss" if case.forward.weights is not None else None,
        applies=lambda case: case.forward.weights is not None and bool((case.forward.weights != 1).any()),
        weight=_declared_weight,
        declared=True,
    ),
)
