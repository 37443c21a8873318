"""`finite_tensors`: entries that are hard on arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from ._arguments import Device, DTypes, dtypes, flag, place, shape_of, sizes
from ._models import cast

ENTRIES = 64  # that are drawn one by one; more are drawn from a seed
Shape = Sequence[int] | st.SearchStrategy[tuple[int, ...]]


def finite_tensors(
    *,
    shape: Shape | None = None,
    min_side: int = 1,
    max_side: int = 4,
    max_dims: int = 3,
    nonnegative: bool = False,
    nonfinite: bool = False,
    dtype: DTypes = torch.float64,
    device: Device = "cpu",
) -> st.SearchStrategy[Tensor]:
    """Tensors of zeros, denormal, tiny, ordinary, huge and repeated numbers, up to the ends of the dtype's range.

    Up to 64 entries are drawn one by one, most of them repeated, and shrink to zeros and ones; larger tensors come
    from a seed, with some such entries among normal ones of one magnitude, and shrink to zeros. Half types are rounded
    from float32. A failing example prints all digits, as a call of `torch.tensor`.

    Args:
        shape: of the tensor, or a strategy that draws it; None for up to `max_dims` dimensions of `min_side` (0: empty
            tensors too) to `max_side`.
        nonnegative: no entry below 0.
        nonfinite: whether inf, -inf and NaN are drawn too.
        dtype: torch.float64, float32, bfloat16 or float16, or a strategy that draws one.
        device: where the tensor is.

    Raises:
        TypeError, ValueError: an argument that is none of these.

    Example:
        >>> from hypothesis import given
        >>> import gradfunc as gf
        >>> @given(x=gf.testing.strategies.finite_tensors(max_side=3, dtype=torch.float32))
        ... def doubled(x):
        ...     assert torch.equal(x + x, 2 * x)
        >>> doubled()
    """
    call = "gf.testing.strategies.finite_tensors()"
    sizes(call, "side", min_side, max_side)
    sizes(call, "dims", 0, max_dims)
    flag(call, "nonnegative", nonnegative)
    flag(call, "nonfinite", nonfinite)
    where = place(call, dtype, device)
    if shape is None:
        shape = hnp.array_shapes(min_dims=0, max_dims=max_dims, min_side=min_side, max_side=max_side)
    shapes = shape if isinstance(shape, st.SearchStrategy) else st.just(shape_of(call, "shape", shape))

    @st.composite
    def drawn(draw: st.DrawFn) -> Tensor:
        return tensor(draw, draw(shapes), draw(dtypes(dtype)), where, nonnegative=nonnegative, nonfinite=nonfinite)

    return drawn()


def tensor(
    draw: st.DrawFn,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
    *,
    nonnegative: bool = False,
    nonfinite: bool = False,
) -> Tensor:
    """One tensor of hard values."""
    numbers = hard(dtype, nonnegative, nonfinite)
    if int(np.prod(shape)) <= ENTRIES:
        kind = np.float64 if dtype == torch.float64 else np.float32
        array = draw(hnp.arrays(kind, shape, elements=numbers, fill=numbers))
        values = torch.from_numpy(np.array(array))  # a copy: what is drawn may be written to
    else:
        values = _large(draw, shape, numbers, nonnegative)
    return cast(values, dtype, device)


def _large(draw: st.DrawFn, shape: tuple[int, ...], numbers: st.SearchStrategy[float], nonnegative: bool) -> Tensor:
    """Normal numbers of one magnitude by a seed, about one entry in eight among a few hard ones."""
    magnitude, few = draw(numbers), draw(st.lists(numbers, max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    values = torch.rand(shape, generator=generator, dtype=torch.float64)  # at most 1, so that none overflows
    values = (values if nonnegative else values * 2 - 1) * magnitude
    for number in few:
        values[torch.rand(shape, generator=generator) < 1 / 8 / len(few)] = number
    return values


def hard(dtype: torch.dtype, nonnegative: bool = False, nonfinite: bool = False) -> st.SearchStrategy[float]:
    """Numbers of this dtype, the simplest first: 0, 1, others of ordinary size, then the ends of its range."""
    info = torch.finfo(dtype)
    least = info.smallest_normal * info.eps  # the smallest denormal number
    ends: list[float] = [info.eps, info.smallest_normal, info.smallest_normal / 2, least, info.max / 2, info.max]
    ends += [] if nonnegative else [-0.0, *(-value for value in ends)]
    widths: dict[torch.dtype, Literal[16, 32, 64]] = {torch.float64: 64, torch.float16: 16}
    width = widths.get(dtype, 32)
    # float32 numbers above bfloat16's largest would round to inf: they are held below it.
    top = float(np.float32(info.max)) if dtype != torch.float64 else info.max
    low = 0.0 if nonnegative else -top
    parts = [
        st.sampled_from([0.0, 1.0] if nonnegative else [0.0, 1.0, -1.0]),
        st.sampled_from([0.5, 2.0, 3.0, 10.0, 0.1]).map(lambda x: float(torch.tensor(x, dtype=dtype))),
        st.sampled_from(ends),
        st.floats(low, top, width=width, allow_nan=False, allow_infinity=False),
    ]
    if nonfinite:
        parts.append(st.sampled_from([float("inf"), float("nan")] + ([] if nonnegative else [-float("inf")])))
    return st.one_of(parts)
