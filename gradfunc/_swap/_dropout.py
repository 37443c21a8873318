"""torch's dropouts and randomized leaky ReLU on keyed numbers.

A handler takes `draw`, which names the next draw, and the arguments of torch's function. It returns `NotImplemented`
where that function draws nothing or raises: torch then does either itself.

Formulas: p dropped, kept entries times 1 / (1 - p) (Srivastava et al., JMLR 15, 2014); alpha dropout sets dropped
entries to SELU's limit, then restores mean and variance (Klambauer et al., NeurIPS 2017, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._random import Draw

Drawer = Callable[[], Draw]
# -lambda alpha of SELU, where it levels out to the left, without the sign
_SELU_LIMIT = 1.0507009873554805 * 1.6732632423543772


def dropped(draw: Drawer, input: Tensor, p: float, train: bool, *, feature: bool, alpha: bool, inplace: bool) -> Any:
    """All eight of them. With `feature` whole channels, the second dimension, are dropped."""
    draws = train and 0 < p < 1 and input.numel() > 0 and (input.is_floating_point() or input.is_complex())
    if not draws or (feature and input.dim() < 2):
        return NotImplemented
    shape = (*input.shape[:2], *[1] * (input.dim() - 2)) if feature else input.shape
    noise = draw().keep(shape, p, input.device).to(input.dtype)
    if not alpha:
        noise.div_(1 - p)
        return input.mul_(noise) if inplace else input * noise
    scale = 1 / math.sqrt((_SELU_LIMIT**2 * p + 1) * (1 - p))
    shift = (noise - 1).mul_(_SELU_LIMIT * scale).add_(_SELU_LIMIT * scale * p)
    noise.mul_(scale)
    return input.mul_(noise).add_(shift) if inplace else input * noise + shift


def rrelu(
    draw: Drawer,
    input: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    *,
    inplace: bool = False,
) -> Any:
    """`torch.rrelu`: negative entries times a uniform number in [lower, upper) (Xu et al., arXiv 1505.00853)."""
    if not training or not lower <= upper or not input.is_floating_point() or input.numel() == 0:
        return NotImplemented
    slope = draw().uniform(input.shape, input.dtype, input.device).mul_(upper - lower).add_(lower)
    noise = torch.where(input.detach() <= 0, slope, 1)
    return input.mul_(noise) if inplace else input * noise


def _of(feature: bool, alpha: bool, inplace: bool) -> Callable[..., Any]:
    # Not a partial: a call's arguments are matched against the signature.
    def handler(draw: Drawer, input: Tensor, p: float, train: bool) -> Any:
        return dropped(draw, input, p, train, feature=feature, alpha=alpha, inplace=inplace)

    return handler


HANDLERS: dict[Any, Callable[..., Any]] = {
    torch.dropout: _of(False, False, False),
    torch.dropout_: _of(False, False, True),
    torch.feature_dropout: _of(True, False, False),
    torch.feature_dropout_: _of(True, False, True),
    torch.alpha_dropout: _of(False, True, False),
    torch.alpha_dropout_: _of(False, True, True),
    torch.feature_alpha_dropout: _of(True, True, False),
    torch.feature_alpha_dropout_: _of(True, True, True),
    torch.rrelu: rrelu,
    torch.rrelu_: partial(rrelu, inplace=True),
}
