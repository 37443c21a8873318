"""`weights`: one number >= 0 a sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from ..._errors import check_int
from ._arguments import Device, DTypes, dtypes, flag, place, sizes, some_of
from ._tensors import tensor

KINDS = ("ones", "quarters", "some 0", "all 0", "hard")


def weights(
    *,
    size: int | None = None,
    min_size: int = 0,
    max_size: int = 8,
    kinds: Sequence[str] | None = None,
    positive_total: bool = False,
    dtype: DTypes = torch.float64,
    device: Device = "cpu",
) -> st.SearchStrategy[Tensor]:
    """Weights of samples, `[B]`: finite, never negative, some of them 0.

    Shrinks to ones.

    Args:
        size: B; None for any from `min_size` to `max_size`.
        kinds: some of "ones", "quarters" (k / 4, whose sums are exact), "some 0" of them, "all 0", and "hard" (any
            finite numbers >= 0, denormal and huge ones too, whose sum may overflow); None for all but "hard".
        positive_total: no weights that are 0 throughout, and at least one sample.
        dtype: of the weights, or a strategy that draws it.
        device: where they are.

    Raises:
        TypeError, ValueError: an argument that is none of these.

    Example:
        >>> from hypothesis import given
        >>> import gradfunc as gf
        >>> @given(w=gf.testing.strategies.weights(size=4, positive_total=True))
        ... def a_mean_of_ones_is_one(w):
        ...     assert (w * torch.ones(4)).sum() / w.sum() == 1
        >>> a_mean_of_ones_is_one()
    """
    call = "gf.testing.strategies.weights()"
    flag(call, "positive_total", positive_total)
    if size is not None:
        check_int(call, "size", size, int(positive_total))
        min_size = max_size = size
    sizes(call, "size", min_size, max_size)
    sizes(call, "size", max(min_size, int(positive_total)), max_size)
    names = some_of(call, "kinds", KINDS[:4] if kinds is None else kinds, KINDS)
    names = [name for name in names if not (positive_total and name == "all 0")] or ["ones"]
    where = place(call, dtype, device)
    of_size = st.integers(max(min_size, int(positive_total)), max_size)

    @st.composite
    def drawn(draw: st.DrawFn) -> Tensor:
        n, kind, own = draw(of_size), draw(st.sampled_from(names)), draw(dtypes(dtype))
        if kind == "hard":
            out = tensor(draw, (n,), own, where, nonnegative=True)
        else:
            entries = {
                "ones": st.just(1.0),
                "quarters": st.sampled_from(QUARTERS[1:]),
                "some 0": st.sampled_from(QUARTERS),
                "all 0": st.just(0.0),
            }[kind]
            values = draw(st.lists(entries, min_size=n, max_size=n))
            out = torch.tensor(values, dtype=torch.float64).to(own).to(where)
        if positive_total and not bool((out > 0).any()):
            out[draw(st.integers(0, n - 1))] = 1.0
        return out

    return drawn()


QUARTERS = [0.0, 1.0, *(k / 4 for k in (2, 8, 1, 3, 5, 6, 7, 9, 10, 11))]
