"""Matrix products: `Outer` factors. `linear`, `matmul`, `einsum` and recurrent cells all end here."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..._factors import Grouped, Outer
from ._site import Maker, Site


def mm(site: Site) -> Maker | None:
    """`self [A, K] @ mat2 [K, C]`."""
    return _matrix(site, site.input, "self", "mat2", 1.0)


def addmm(site: Site) -> Maker | None:
    """`beta input + alpha mat1 @ mat2`."""
    node = site.node
    if site.input == 0:
        beta = float(node._saved_beta)
        return lambda g: site.summed(g if beta == 1 else g * beta)
    return _matrix(site, site.input - 1, "mat1", "mat2", float(node._saved_alpha))


def _matrix(site: Site, which: int, left: str, right: str, alpha: float) -> Maker | None:
    if site.layout.dim != 1 - which:
        return None
    kept = site.saved((right, left)[which])
    if kept is None or kept.is_complex():  # products of complex rows are not written here
        return None
    if which == 1:  # rows of the left factor belong to samples; the value is the right one
        return lambda g: _outer(site, site.split(g), site.split(kept, 0), alpha)
    return lambda g: _outer(site, site.split(kept, 1), site.split(g), alpha)  # columns of the right factor do


def mv(site: Site) -> Maker | None:
    """`self [A, K] @ vec [K]`, rows of samples times a shared vector."""
    kept = site.saved("self") if site.input == 1 else None
    if kept is None or kept.is_complex():
        return None
    return lambda g: _outer(site, site.split(kept), site.split(g)[..., None], 1.0)


def bmm(site: Site) -> Maker | None:
    """`self [N, A, K] @ mat2 [N, K, C]`."""
    return _matrices(site, site.input, "self", "mat2", 1.0)


def baddbmm(site: Site) -> Maker | None:
    """`beta input + alpha batch1 @ batch2`."""
    node = site.node
    if site.input == 0:
        beta = float(node._saved_beta)
        return lambda g: site.summed(g if beta == 1 else g * beta)
    return _matrices(site, site.input - 1, "batch1", "batch2", float(node._saved_alpha))


def _matrices(site: Site, j: int, left: str, right: str, alpha: float) -> Maker | None:
    """The shared operand is one matrix that is repeated N times."""
    dim, other = site.layout.dim, site.saved((right, left)[j])
    if other is None or other.is_complex():
        return None
    if site.shape[0] == site.out[0] > 1 and len(site.shape) == 3:
        return _stacked(site, j, other, alpha)
    if math.prod(site.shape) != other.shape[1 + j] * site.out[1 + j]:
        return None

    def positions(tensor: Tensor, own: int) -> Tensor:
        return site.split(tensor, own).flatten(1, 2)

    if dim == 0:  # every matrix belongs to a sample
        rows = positions(other if j == 1 else other.mT, 0)
        if j == 1:
            return lambda g: _outer(site, positions(g, 0), rows, alpha)
        return lambda g: _outer(site, rows, positions(g.mT, 0), alpha)
    if j == 1 and dim == 1:  # rows of the left factor do
        rows = positions(other, 1)
        return lambda g: _outer(site, positions(g, 1), rows, alpha)
    if j == 0 and dim == 2:  # columns of the right factor do
        rows = positions(other.mT, 1)
        return lambda g: _outer(site, rows, positions(g.mT, 1), alpha)
    return None


def _stacked(site: Site, j: int, other: Tensor, alpha: float) -> Maker | None:
    """The shared operand is a stack of matrices, each with its own product: experts."""
    dim, count = site.layout.dim, site.out[0]
    if dim != 2 - j:  # rows of the left factor belong to samples, or columns of the right one
        return None

    def positions(tensor: Tensor) -> Tensor:  # [E, samples' slots, features] -> [B, slots of all matrices, features]
        return site.split(tensor, 1).flatten(1, 2)

    kept = positions(other if j == 1 else other.mT)
    index = torch.arange(count, device=kept.device).repeat(kept.shape[1] // count).expand(site.samples, -1)
    if j == 1:
        return lambda g: Grouped(index, positions(g if alpha == 1 else g * alpha), kept, site.shape)
    return lambda g: Grouped(index, kept, positions(g.mT if alpha == 1 else g.mT * alpha), site.shape)


def grouped_mm(site: Site) -> Maker | None:
    """`self [N, I] @ mat2 [E, I, O]`, rows sorted by matrix; `offs` says where those of each end."""
    x, ends = site.saved("self"), site.saved("offs")
    if site.input != 1 or site.layout.dim != 0 or x is None or ends is None or x.dim() != 2 or len(site.shape) != 3:
        return None
    which = torch.searchsorted(ends.contiguous(), torch.arange(len(x), device=x.device, dtype=ends.dtype), right=True)
    beyond = (which >= site.shape[0])[:, None]  # rows behind the last end are in no product
    index, kept = site.split(which.clamp_max(site.shape[0] - 1)), site.split(x)
    return lambda g: Grouped(index, site.split(g.masked_fill(beyond, 0)), kept, site.shape)


_BILINEAR = {"expand1": (1, 3), "expand2": (0,), "expand3": (1, 2), "sumdim": (2, 3)}


def trilinear(site: Site) -> Maker | None:
    """`F.bilinear`: `[N, I]` and `[N, J]` with a weight `[O, I, J]`, a product with every pair of their entries."""
    node = site.node
    if site.layout.dim != 0 or site.input != 1:
        return None
    if any(tuple(getattr(node, f"_saved_{name}")) != value for name, value in _BILINEAR.items()):
        return None
    left, right = site.saved("i1"), site.saved("i3")
    if left is None or right is None:
        return None

    def make(g: Tensor) -> Outer:
        if site.shape[0] <= right.shape[1]:  # pairs of what is less
            pairs = (g[:, :, None] * left[:, None]).flatten(1)
            return _outer(site, site.split(right), site.split(pairs), 1.0)
        pairs = (left[:, :, None] * right[:, None]).flatten(1)
        return _outer(site, site.split(pairs), site.split(g), 1.0)

    return make


def _outer(site: Site, x: Tensor, g: Tensor, alpha: float) -> Outer:
    """Rows `g_b^T x_b`."""
    return Outer(x, g if alpha == 1 else g * alpha, site.shape)


RULES = {
    "MmBackward0": mm,
    "AddmmBackward0": addmm,
    "MvBackward0": mv,
    "GroupedMmBackward0": grouped_mm,
    "TrilinearBackward0": trilinear,
    "BmmBackward0": bmm,
    "BaddbmmBackward0": baddbmm,
}
