"""Under vmap, operations that torch runs sample by sample or in pieces: run on the whole batch at once.

An `autograd.Function` whose `vmap` is all there is to it: that gets the batch as it is, one level down, and calls
torch's operation on it there, which autograd records as it records any other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ._levels import is_batched, levels


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """`F.linear` of samples with a shared weight: one `addmm` where torch makes a product, a multiple and a sum."""
    if bias is None or is_batched(weight) or is_batched(bias) or not _inside_vmap(input):
        return NotImplemented
    return once(_linear, input, weight, bias)


def _linear(dims: tuple[Any, ...], input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    input = input.movedim(dims[0], 0)
    out: Tensor = once(_linear, input, weight, bias) if is_batched(input) else F.linear(input, weight, bias)
    return out


def attention(
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
    """`F.scaled_dot_product_attention`, for whose fused kernels torch has no batching rule."""
    given = [query, key, value] if attn_mask is None else [query, key, value, attn_mask]
    rank = query.dim()
    alike = key.dim() == value.dim() == rank >= 2 and all(t.dim() <= rank for t in given)
    if dropout_p != 0 or not alike or not _inside_vmap(*given):
        return NotImplemented
    return once(_attention, query, key, value, attn_mask, is_causal, scale, enable_gqa)


def _attention(
    dims: tuple[Any, ...],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    rank = query.dim() - (dims[0] is not None)
    full = max(rank, 3)  # [..., heads, length, features] of a sample

    def lifted(tensor: Tensor, dim: int | None) -> Tensor:
        """The batch in front, and all dimensions of a sample."""
        front = tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)
        return front.reshape(front.shape[0], *[1] * (full + 1 - front.dim()), *front.shape[1:])

    q, k, v = lifted(query, dims[0]), lifted(key, dims[1]), lifted(value, dims[2])
    lead = torch.broadcast_shapes(*(t.shape[:-3] for t in (q, k, v)))
    if mask is not None:
        mask = lifted(mask, dims[3])
        lead = torch.broadcast_shapes(lead, mask.shape[:-3])
        mask = mask.reshape(1, *mask.shape[-3:]) if mask.shape[:-3].numel() == 1 else _merged(mask, lead)
    q, k, v = (_merged(t, lead) for t in (q, k, v))
    if any(is_batched(t) for t in (q, k, v, mask) if t is not None):
        out: Tensor = once(_attention, q, k, v, mask, is_causal, scale, enable_gqa)
    else:
        out = F.scaled_dot_product_attention(q, k, v, mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa)
    out = out.reshape(*lead, *out.shape[1:])
    return out if rank >= 3 else out.squeeze(-3)


def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """`F.bilinear` of samples with a shared weight, which torch runs sample by sample."""
    shared = [weight] if bias is None else [weight, bias]
    if any(is_batched(tensor) for tensor in shared) or not _inside_vmap(input1, input2):
        return NotImplemented
    return once(_bilinear, input1, input2, weight, bias)


def _bilinear(dims: tuple[Any, ...], left: Tensor, right: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    left, right = _beside((left, dims[0]), (right, dims[1]))
    if is_batched(left) or is_batched(right):
        out: Tensor = once(_bilinear, left, right, weight, bias)
    else:
        out = F.bilinear(left, right, weight, bias)
    return out


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Any:
    """`F.embedding_bag` of bags of one size with a shared weight, which torch runs sample by sample."""
    odd = max_norm is not None or scale_grad_by_freq or offsets is not None or input.dim() != 2
    given = [input] if per_sample_weights is None else [input, per_sample_weights]
    if odd or is_batched(weight) or not _inside_vmap(*given):
        return NotImplemented
    return once(_embedding_bag, input, weight, mode, per_sample_weights, padding_idx)


def _embedding_bag(
    dims: tuple[Any, ...], input: Tensor, weight: Tensor, mode: str, scale: Tensor | None, padding: int | None
) -> Tensor:
    given = [(input, dims[0])] if scale is None else [(input, dims[0]), (scale, dims[3])]
    rows = _beside(*given)
    bags, *scales = (tensor.flatten(0, 1) for tensor in rows)
    scale = scales[0] if scales else None
    if any(is_batched(tensor) for tensor in (bags, *scales)):
        out: Tensor = once(_embedding_bag, bags, weight, mode, scale, padding)
    else:
        out = F.embedding_bag(bags, weight, mode=mode, per_sample_weights=scale, padding_idx=padding)
    found: Tensor = out.unflatten(0, rows[0].shape[:2])
    return found


def _beside(*given: tuple[Tensor, int | None]) -> list[Tensor]:
    """The batch in front of each, repeated where there was none."""
    size = next(tensor.shape[dim] for tensor, dim in given if dim is not None)
    return [tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0) for tensor, dim in given]


def _merged(tensor: Tensor, lead: torch.Size) -> Tensor:
    """Everything before the heads as one dimension."""
    return tensor.expand(*lead, *tensor.shape[-3:]).reshape(-1, *tensor.shape[-3:])


def _inside_vmap(*tensors: Tensor) -> bool:
    """Whether only vmaps run, and one of them over one of these."""
    running = levels()
    return bool(running) and all(running) and any(is_batched(tensor) for tensor in tensors)


def once(run: Callable[..., Any], *args: Any) -> Any:
    """`run(in_dims, *args)` on the whole batch, which it returns in dimension 0 of a tensor or of several."""
    # torch's stubs leave `apply` untyped
    return _Once.apply(run, *args)  # type: ignore[no-untyped-call]


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(run: Callable[..., Any], *args: Any) -> Any:
        raise NotImplementedError("only under vmap")  # callers have looked

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing: torch's operations record themselves."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], run: Callable[..., Any], *args: Any) -> tuple[Any, int]:
        return run(in_dims[1:], *args), 0


HANDLERS: dict[Any, Callable[..., Any]] = {
    F.linear: linear,
    F.bilinear: bilinear,
    F.embedding_bag: embedding_bag,
    F.scaled_dot_product_attention: attention,
}
