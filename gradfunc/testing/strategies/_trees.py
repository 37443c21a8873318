"""`parameter_trees`: parameters, gradients or updates by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from ..._errors import message
from ..._tree import Tensors
from ._arguments import Device, DTypes, dtypes, flag, mapping, place, shape_of, sizes
from ._tensors import tensor

# As modules name theirs, the simplest first.
NAMES = ("w", "b", "fc1.weight", "fc1.bias", "layers.0.weight", "layers.10.weight", "norm.weight", "head.bias")


def parameter_trees(
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    min_parameters: int = 1,
    max_parameters: int = 3,
    min_side: int = 1,
    max_side: int = 3,
    nonfinite: bool = False,
    dtype: DTypes = torch.float64,
    device: Device = "cpu",
) -> st.SearchStrategy[dict[str, Tensor]]:
    """Parameters, gradients or updates: a dictionary of tensors by name, with entries as of `finite_tensors`.

    All have one dtype and one device. Shrinks to `{"w": torch.tensor(0.0)}`.

    Args:
        shapes: `{name: shape}`, of the parameters of a model for example; None to draw names and shapes.
        min_parameters, max_parameters: how many of them, at most 8.
        min_side, max_side: of shapes of up to three dimensions, scalars among them; 0 for empty ones too.
        nonfinite: whether inf, -inf and NaN are drawn too.
        dtype: of all tensors, or a strategy that draws it.
        device: where they are.

    Raises:
        TypeError, ValueError: an argument that is none of these.

    Example:
        >>> from hypothesis import given
        >>> import gradfunc as gf
        >>> @given(grads=gf.testing.strategies.parameter_trees())
        ... def clipped(grads):
        ...     out, _ = gf.clip_by_value(1.0).update(grads, ())
        ...     assert all((value.abs() <= 1).all() for value in out.values())
        >>> clipped()
    """
    call = "gf.testing.strategies.parameter_trees()"
    sizes(call, "parameters", min_parameters, max_parameters)
    if max_parameters > len(NAMES):
        raise ValueError(message(call, got=f"max_parameters={max_parameters}", expected=f"at most {len(NAMES)}"))
    sizes(call, "side", min_side, max_side)
    flag(call, "nonfinite", nonfinite)
    where = place(call, dtype, device)
    fixed = None
    if shapes is not None:
        given = mapping(call, "shapes", shapes)
        fixed = {name: shape_of(call, f"shapes[{name!r}]", shape) for name, shape in given.items()}
    any_shape = hnp.array_shapes(min_dims=0, max_dims=3, min_side=min_side, max_side=max_side)

    @st.composite
    def drawn(draw: st.DrawFn) -> Tensors:
        if fixed is None:
            names = st.lists(st.sampled_from(NAMES), min_size=min_parameters, max_size=max_parameters, unique=True)
            own = {name: draw(any_shape) for name in draw(names)}
        else:
            own = fixed
        kind = draw(dtypes(dtype))
        return {name: tensor(draw, shape, kind, where, nonfinite=nonfinite) for name, shape in own.items()}

    return drawn()
