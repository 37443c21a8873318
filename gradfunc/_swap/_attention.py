"""Attention by its formula: torch's fused kernels draw inside, and have no second derivative."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ._dropout import Drawer, dropped


def attention(
    draw: Drawer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """`F.scaled_dot_product_attention` with `dropout_p > 0`, by the formula in its documentation.

    As there, a query that may look nowhere gets zeros, and half types are computed in float32.
    """
    if not 0 < dropout_p <= 1 or (is_causal and attn_mask is not None):
        return NotImplemented

    def thinned(weights: Tensor) -> Tensor:
        found = dropped(draw, weights, dropout_p, True, feature=False, alpha=False, inplace=False)
        # not implemented: p = 1, or nothing there
        return torch.dropout(weights, dropout_p, True) if found is NotImplemented else found

    return _formula(query, key, value, attn_mask, is_causal, scale, enable_gqa, thinned)


def plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """The same without dropout, of operations that can be differentiated any number of times."""
    if dropout_p != 0 or (is_causal and attn_mask is not None):
        return NotImplemented
    return _formula(query, key, value, attn_mask, is_causal, scale, enable_gqa, lambda weights: weights)


def _formula(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    thinned: Callable[[Tensor], Tensor],
) -> Tensor:
    dtype = query.dtype
    half = dtype in (torch.float16, torch.bfloat16)
    if half:
        query, key, value = query.float(), key.float(), value.float()
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    # Half of the scale on each side: nothing larger than it need be is ever formed.
    root = math.sqrt(1 / math.sqrt(query.shape[-1]) if scale is None else abs(scale))
    sign = -1 if scale is not None and scale < 0 else 1
    scores = (query * (sign * root)) @ (key.transpose(-2, -1) * root)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is None:
        weights = scores.softmax(-1)
    else:
        if attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -math.inf)
        else:
            scores = scores + attn_mask.to(scores.dtype)
        blind = (scores.detach() == -math.inf).all(-1, keepdim=True)
        weights = scores.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0)
    out = thinned(weights) @ value
    return out.to(dtype) if half else out  # autocast has chosen the type already


HANDLERS: dict[Any, Callable[..., Any]] = {F.scaled_dot_product_attention: attention}
