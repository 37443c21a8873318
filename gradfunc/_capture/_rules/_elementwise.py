"""Elementwise and broadcast arithmetic: the unreduced product, summed sample by sample.

Called with the whole cotangent, the node of an elementwise operation gives the product before it is summed to the
operand's shape; the sum over a sample's own slots is then that sample's gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..._factors import Dense
from ._site import Maker, Site, sum_copies


def add(site: Site) -> Maker | None:
    """`self + alpha other`."""
    alpha = float(site.node._saved_alpha) if site.input == 1 else 1.0
    return lambda g: site.summed(g if alpha == 1 else g * alpha)


def sub(site: Site) -> Maker | None:
    """`self - alpha other`."""
    factor = -float(site.node._saved_alpha) if site.input == 1 else 1.0
    return lambda g: site.summed(g if factor == 1 else g * factor)


def mul(site: Site) -> Maker | None:
    """`self * other`."""
    other = site.saved("other" if site.input == 0 else "self")
    return None if other is None else lambda g: site.summed(g * other.conj())


def same(site: Site) -> Maker | None:
    """Repeated by broadcasting."""
    return lambda g: site.summed(g)


def repeat(site: Site) -> Maker | None:
    """`self.repeat(...)`: copies one after the other, as instance norm makes of its scale and shift."""
    own, lead = site.layout.dim, len(site.out) - len(site.shape)
    each = 1 if own < lead else site.shape[own - lead]
    if site.layout.table is not None or not each or site.layout.inner % each:
        return None  # samples that meet in one copy

    def make(g: Tensor) -> Dense:
        return Dense(sum_copies(site.split(g).movedim(1, 1 + own), site.shape))

    return make


def by_the_node(site: Site) -> Maker | None:
    """What the node itself makes of the whole cotangent."""
    node, j = site.node, site.input

    def make(g: Tensor) -> Dense:
        out = node(g)
        product = out[j] if isinstance(out, tuple) else out
        assert product is not None
        return site.summed(product.expand(torch.broadcast_shapes(product.shape, g.shape)))

    return make


RULES = {
    "AddBackward0": add,
    "SubBackward0": sub,
    "MulBackward0": mul,
    "ExpandBackward0": same,
    "RepeatBackward0": repeat,
}
# These call the node after the backward pass, so the graph must last.
BY_THE_NODE = dict.fromkeys(
    [
        "AddBackward1",
        "SubBackward1",
        "MulBackward1",
        "RsubBackward0",
        "RsubBackward1",
        "DivBackward0",
        "DivBackward1",
        "WhereBackward0",
        "PreluKernelBackward0",
        "PowBackward0",
        "PowBackward1",
        "LerpBackward0",
        "LerpBackward1",
        "AddcmulBackward0",
        "AddcdivBackward0",
        "MaximumBackward0",
        "MinimumBackward0",
        "FmaxBackward0",
        "FminBackward0",
    ],
    by_the_node,
)
