"""Hugging Face transformers: what their models need in a loss of one sample."""

from __future__ import annotations

import torch
from torch import Tensor

from ._errors import kind_of, message


def attention_mask(mask: Tensor, *, causal: bool, dtype: torch.dtype = torch.float32) -> Tensor:
    """A padding mask as the four-dimensional numbers that transformers take as they are.

    Given a mask `[B, T]`, transformers ask `mask.all()` in Python, which `torch.vmap` cannot. What is expanded outside
    is passed through, by the fused attention as by the eager one. Run natively (`batched=True`) models need nothing.

    Args:
        mask: `[B, T]`, or `[T]` of one sample: nonzero for tokens, 0 for padding.
        causal: whether a token sees only those before it and itself: decoders such as GPT-2 and Llama; not encoders.
        dtype: of the model's weights, or that of autocast.

    Returns:
        `[B, 1, T, T]`: 0 where a query sees a token, the least number of the dtype elsewhere; of a sample `[1, T, T]`,
        whose batch dimension `model.sample` inserts. A query that sees no token (padding on the left of a decoder) sees
        all alike, where fused attention may give zeros: ignore the label of the first token, which it predicts.
        Models with an encoder and a decoder take one mask for both; run them natively.

    Raises:
        TypeError: not a tensor, or a dtype that is not floating.
        ValueError: another number of dimensions.

    Example:
        >>> import torch, gradfunc as gf
        >>> gf.hf.attention_mask(torch.tensor([[1, 1, 0]]), causal=True)[0, 0] == 0
        tensor([[ True, False, False],
                [ True,  True, False],
                [ True,  True, False]])
    """
    call = "gf.hf.attention_mask(mask)"
    if not isinstance(mask, Tensor):
        raise TypeError(message(call, got=kind_of(mask), expected="a tensor [B, T]"))
    if not dtype.is_floating_point:
        raise TypeError(message(call, got=f"dtype={dtype}", expected="a floating dtype: that of the model's weights"))
    if mask.dim() not in (1, 2):
        do = "A mask of more dimensions is expanded already."
        raise ValueError(message(call, got=f"shape {tuple(mask.shape)}", expected="[B, T] or [T]", do=do))
    length = mask.shape[-1]
    seen = (mask != 0)[..., None, :].expand(*mask.shape[:-1], length, length)
    if causal:
        seen = seen & torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    numbers = torch.zeros(seen.shape, dtype=dtype, device=mask.device)
    return numbers.masked_fill(~seen, torch.finfo(dtype).min).unsqueeze(-3)
