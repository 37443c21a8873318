"""What all weightings have in common: a Gram matrix that is checked, and coefficients like it."""

from __future__ import annotations

import torch
from torch import Tensor

from .._errors import kind_of, message


def checked(call: str, gram: object) -> Tensor:
    """The matrix in float64 on the CPU, symmetric.

    Raises:
        TypeError: no floating tensor.
        ValueError: not square, or not finite.
    """
    if not isinstance(gram, Tensor) or not gram.is_floating_point():
        got = f"dtype {gram.dtype}" if isinstance(gram, Tensor) else kind_of(gram)
        raise TypeError(message(call, got=got, expected="a Gram matrix, a floating tensor [n, n]"))
    if gram.dim() != 2 or gram.shape[0] != gram.shape[1]:
        raise ValueError(message(call, got=f"shape {tuple(gram.shape)}", expected="a Gram matrix [n, n]"))
    k = gram.detach().to("cpu", torch.float64)
    if not bool(k.isfinite().all()):
        raise ValueError(message(call, got="entries that are not finite", expected="a Gram matrix of finite rows"))
    return (k + k.T) / 2


def given(c: Tensor, like: Tensor) -> Tensor:
    return c.to(like.device, like.dtype)
