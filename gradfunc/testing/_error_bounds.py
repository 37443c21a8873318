"""Bounds of rounding and error scales; what they are derived from is in `gradfunc.testing.rounding`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .._errors import check_int, kind_of, message
from .._per_sample import PerSampleGrads
from .._rounding import gamma, unit_roundoff
from .._tree import cast, norm, row_norms, tensors_of, wide
from ._claims import Asked, Claim


def sum_bound(terms: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """How far two sums of `terms` over dimension 0, in whatever orders, are apart at most: shape `terms.shape[1:]`.

    `2 gamma_{n-1} sum |x_i|`, in float64 (Higham, section 4.2).

    Args:
        terms: `[n, ...]`.
        dtype: in which they are added; default: that of `terms`, float32 for the half types, as torch adds them.

    Example:
        >>> x = torch.tensor([1e8, 1.0, -1e8])
        >>> abs(float(x.flip(0).cumsum(0)[-1] - x.cumsum(0)[-1])) <= float(sum_bound(x))
        True
    """
    call = "gf.testing.rounding.sum_bound(terms)"
    if not isinstance(terms, Tensor) or not terms.is_floating_point() or not terms.dim():
        got = f"a tensor of {terms.dtype}, {terms.dim()}-d" if isinstance(terms, Tensor) else kind_of(terms)
        raise TypeError(message(call, got=got, expected="a floating tensor [n, ...]"))
    if dtype is not None:
        _check(call, 0, dtype)
    u = unit_roundoff(wide(terms.dtype) if dtype is None else dtype)
    return 2 * gamma(max(len(terms) - 1, 0), u) * terms.double().abs().sum(0)


def norm_factor(entries: int, dtype: torch.dtype) -> float:
    """How far the norm of so many entries is off, relatively, computed in `dtype`: `gamma_{n+8}`.

    Example:
        >>> x = torch.full((1000,), 0.1)
        >>> abs(float(x.norm()) / float(x.double().norm()) - 1) <= norm_factor(1000, torch.float32)
        True
    """
    _check("gf.testing.rounding.norm_factor(entries, dtype)", entries, dtype)
    return gamma(entries + 8, unit_roundoff(dtype))


def clip_factor(entries: int, dtype: torch.dtype) -> float:
    """By how much a row of so many entries that was scaled to a bound may exceed it, relatively.

    `(1 + gamma_{2n+18}(u_wide)) (1 + gamma_2(u)) - 1`, u_wide that of the accumulation type; inf where a bound is void.
    A worst case: all roundings of a sum push one way. For large rows in float32 it is lax (0.14 at a million entries,
    in fact 1e-5 off, and no bound above eight million): ask in float64, where a million entries leave 2.3e-10.

    Example:
        >>> row = torch.randn(1000)
        >>> clipped = row * (0.5 / row.norm())
        >>> float(clipped.double().norm()) <= 0.5 * (1 + clip_factor(1000, torch.float32))
        True
    """
    _check("gf.testing.rounding.clip_factor(entries, dtype)", entries, dtype)
    return (1 + gamma(2 * entries + 18, unit_roundoff(wide(dtype)))) * (1 + gamma(2, unit_roundoff(dtype))) - 1


def _check(call: str, entries: object, dtype: object) -> None:
    """Raise unless these are an int >= 0 and a floating dtype."""
    check_int(call, "entries", entries, 0)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(message(call, got=f"dtype={dtype!r}", expected="a floating torch.dtype"))


# --- error scales ---------------------------------------------------------------------------------------------------


def row_scale(rows: Mapping[str, Tensor]) -> Tensor:
    """The scale of each sample's gradient, and of its norm: its whole norm, `[B]` in float64.

    Example:
        >>> row_scale({"w": torch.tensor([[3.0], [0.0]]), "b": torch.tensor([[4.0], [1.0]])})
        tensor([5., 1.], dtype=torch.float64)
    """
    if not isinstance(rows, Mapping) or not all(isinstance(value, Tensor) for value in rows.values()):
        do = "Pass g.materialize()." if isinstance(rows, PerSampleGrads) else ""
        expected = "{name: [B, ...]}"
        raise TypeError(message("gf.testing.rounding.row_scale(rows)", got=kind_of(rows), expected=expected, do=do))
    return row_norms({name: value.double() for name, value in rows.items()})


def sum_scale(rows: Mapping[str, Tensor], c: Tensor | None = None) -> float:
    """The scale of a sum of rows, or of `c[i]` times row i: `sum |c_i| |g_i|`.

    Example:
        >>> sum_scale({"w": torch.tensor([[3.0, 4.0], [0.0, -1.0]])}, torch.tensor([1.0, -2.0]))
        7.0
    """
    norms = row_scale(rows)
    return float((norms if c is None else c.double().abs() * norms).sum())


def dot_scale(rows: Mapping[str, Tensor], direction: Mapping[str, Tensor]) -> Tensor:
    """The scale of the inner product of each row with a direction: `|g_i| |v|`, `[B]`.

    Example:
        >>> dot_scale({"w": torch.tensor([[3.0, 4.0]])}, {"w": torch.tensor([0.0, 2.0])})
        tensor([10.], dtype=torch.float64)
    """
    return row_scale(rows) * norm(dict(direction))


def gram_scale(rows: Mapping[str, Tensor], other: Mapping[str, Tensor] | None = None) -> Tensor:
    """The scale of a Gram matrix: `|g_i| |g_j|`, `[B, B']`.

    Example:
        >>> gram_scale({"w": torch.tensor([[3.0, 4.0], [1.0, 0.0]])})
        tensor([[25.,  5.],
                [ 5.,  1.]], dtype=torch.float64)
    """
    left = row_scale(rows)
    return left[:, None] * (left if other is None else row_scale(other))


# --- by precision ---------------------------------------------------------------------------------------------------


def assert_equal_up_to_rounding(
    one: Callable[..., Any], other: Callable[..., Any], *inputs: Any, scale: float | None = None
) -> None:
    """Assert that two functions give the same numbers up to rounding, told by precision.

    Both run on `inputs`, and again with every floating tensor of them cast: float64 to float32, what is coarser to
    float64. A difference that shrinks with the unit roundoff is rounding, one that stays is not (`is_rounding`). Where
    they do not run there, half of the digits must agree (`sqrt(u)` of the scale).

    Args:
        one, other: from `inputs` to a nest of tensors, both of one structure.
        inputs: nests of tensors; the coarsest floating dtype among them is the one asked for.
        scale: the error scale, such as `sum_scale(rows)`; default: the largest entry of either side, tensor by tensor,
            which is too strict where terms cancel.

    Raises:
        AssertionError: they differ by more, or in number, shape or finiteness.
        TypeError: something that is no function; inputs without a floating tensor.
        ValueError: a scale that is no positive finite number.

    Example:
        >>> x = torch.randn(1000)
        >>> assert_equal_up_to_rounding(lambda x: x.var(correction=0), lambda x: (x - x.mean()).square().mean(), x)
        >>> try:
        ...     assert_equal_up_to_rounding(lambda x: x.var(), lambda x: (x - x.mean()).square().mean(), x)
        ... except AssertionError as error:
        ...     print(str(error).splitlines()[0])
        gf.testing.rounding.assert_equal_up_to_rounding(one, other, *inputs): broken: one gives what other gives.
    """
    call = "gf.testing.rounding.assert_equal_up_to_rounding(one, other, *inputs)"
    for name, fn in (("one", one), ("other", other)):
        if not callable(fn):
            raise TypeError(message(call, got=f"{kind_of(fn)} as {name}", expected="a function of the inputs"))
    if scale is not None and (not isinstance(scale, (int, float)) or isinstance(scale, bool)):
        raise TypeError(message(call, got=f"scale={scale!r}", expected="a number > 0, or None"))
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(message(call, got=f"scale={scale!r}", expected="a finite number > 0, or None"))
    floating = [tensor.dtype for tensor in tensors_of(inputs) if tensor.is_floating_point()]
    if not floating:
        raise TypeError(message(call, got="inputs without a floating tensor", expected="at least one"))
    dtype = max(floating, key=unit_roundoff)

    def claims(dtype: torch.dtype | None) -> Iterator[Claim]:
        given = inputs if dtype is None else cast(inputs, dtype)
        left, right = tensors_of(one(*given)), tensors_of(other(*given))
        if len(left) != len(right):
            raise AssertionError(f"{len(left)} tensors, and {len(right)}")
        for k, (got, want) in enumerate(zip(left, right, strict=True)):
            got, want = got.detach(), want.detach()
            largest = torch.maximum(_largest(got), _largest(want))
            yield Claim(f"tensor {k}", got, want, largest if scale is None else torch.full_like(largest, scale))

    Asked(call, dtype, "call it again with the same inputs").hold("one gives what other gives", claims)


def _largest(value: Tensor) -> Tensor:
    return value.double().abs().max() if value.numel() else torch.zeros((), dtype=torch.float64, device=value.device)
