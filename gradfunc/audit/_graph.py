"""What the autograd graph of a case tells: the lowest precision in it, and where rounding has a bound.

Reads node names and `_input_metadata` (shapes and dtypes of a node's outputs), as they are in torch 2.13.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from .._graph import coarsest_in, nodes
from ._case import Case, value_of

_PRODUCTS = {"AddmmBackward0", "MmBackward0"}

# Nodes through which a cotangent scaled by a power of two stays scaled exactly, row by row. Convolution and
# attention are left out: their sums over positions may be split differently for different batches.
_ROWWISE_NAMES = """
    T Add Sub Mul Neg Pow Abs Sum View UnsafeView ReshapeAlias Squeeze Unsqueeze Clone ToCopy Slice
    Relu Tanh Sigmoid Gelu Elu Silu LeakyRelu Softplus Hardtanh LogSigmoid LogSoftmax Softmax
    NllLoss MseLoss L1Loss HuberLoss SmoothL1Loss BinaryCrossEntropyWithLogits BinaryCrossEntropy
"""
_ROWWISE = _PRODUCTS | {f"{name}Backward{i}" for i in (0, 1) for name in _ROWWISE_NAMES.split()}


def coarsest_roundoff(case: Case) -> float:
    """The largest unit roundoff of any floating value in the graph: a float32 island in a float64 model counts."""
    return coarsest_in(value_of(case.forward), case.leaves)


def bounded_parameters(case: Case) -> set[str]:
    """Parameters of linear layers without shared positions whose routes see the same cotangents.

    For these, two ways of averaging differ by at most `2 gamma_{n+2} sum |g_i| / n`. They are the last layer, and,
    when n is a power of two and the graph has nothing but rowwise nodes and matrix products, every linear layer.
    """
    root = value_of(case.forward).grad_fn
    if root is None or case.forward.output is None or not isinstance(case.forward.output, torch.Tensor):
        return set()
    every = nodes(root)
    power_of_two = math.log2(case.size).is_integer()
    rowwise = all(node.name() in _ROWWISE or hasattr(node, "variable") for node in every)
    users: dict[Any, list[Any]] = {}
    for node in every:
        for below, _ in node.next_functions:
            if below is not None:
                users.setdefault(below, []).append(node)
    names = {id(value): name for name, value in case.leaves.items()}
    covered = set()
    for node in every:
        name = names.get(id(getattr(node, "variable", None)))
        if name is None:
            continue
        product = _only_product(node, users)
        outputs = getattr(product, "_input_metadata", ())
        if not outputs or tuple(outputs[0].shape)[:-1] != (case.size,):
            continue
        if product is case.forward.output.grad_fn or (power_of_two and rowwise):
            covered.add(name)
    return covered


def _only_product(leaf: Any, users: dict[Any, list[Any]]) -> Any:
    """The matrix product that is the leaf's only use, seen through a transpose."""
    node = leaf
    while len(users.get(node, [])) == 1:
        node = users[node][0]
        if node.name() in _PRODUCTS:
            return node
        if node.name() != "TBackward0":
            return None
    return None
