"""Flat dictionaries of tensors: parameters, gradients, directions."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def add(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensors:
    """Entrywise sum of two dictionaries with the same keys."""
    return {name: a[name] + b[name] for name in a}


def subtract(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensors:
    """Entrywise difference of two dictionaries with the same keys."""
    return {name: a[name] - b[name] for name in a}


def scale(a: Mapping[str, Tensor], factor: float | Tensor) -> Tensors:
    """Every tensor times `factor`, dtypes kept."""
    return {name: value * factor for name, value in a.items()}


def dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Inner product over all entries, products in their own precision, summed in float64."""
    return sum((float((a[name] * b[name]).sum(dtype=torch.float64)) for name in a), 0.0)


def norm(a: Mapping[str, Tensor]) -> float:
    """Euclidean norm over all entries, in float64."""
    return math.hypot(*(float(torch.linalg.vector_norm(value.detach(), dtype=torch.float64)) for value in a.values()))
