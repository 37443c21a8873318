"""Convolutions of every rank, transposed or not: `Unfolded` factors."""

from __future__ import annotations

from ..._factors import Steps, Unfolded
from ._site import Maker, Site


def convolution(site: Site) -> Maker | None:
    """Inputs: the data `[N, C, ...]`, the weight, the bias."""
    if site.layout.dim != 0 or site.input not in (1, 2):
        return None
    if site.input == 2:
        return site.channels
    node, x = site.node, site.saved("input")
    if x is None:
        return None
    stride, padding, dilation = (_each(site, f"_saved_{name}") for name in ("stride", "padding", "dilation"))
    steps = Steps(site.shape, stride, padding, dilation, int(node._saved_groups), bool(node._saved_transposed))
    return lambda g: Unfolded(site.split(x), site.split(g), site.shape, steps)


def _each(site: Site, name: str) -> tuple[int, ...]:
    """A number for each dimension of the kernel; torch may have kept one for all."""
    given = tuple(int(n) for n in getattr(site.node, name))
    return given * (len(site.shape) - 2) if len(given) == 1 else given


RULES = {"ConvolutionBackward0": convolution}
