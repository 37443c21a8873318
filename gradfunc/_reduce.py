"""`PerSampleGrads -> Grads`: the reductions by name."""

from __future__ import annotations

from ._errors import kind_of, message, one_of
from ._per_sample import PerSampleGrads
from ._tree import Tensors


def reduce(g: PerSampleGrads, reduction: str, *, on_zero_weight: str = "raise") -> Tensors:
    """Reduce per-sample gradients as torch's losses do.

    Args:
        g: per-sample gradients.
        reduction: "none" gives every row, `{name: [B, *shape]}`; "sum" their sum; "mean" that over the total weight.
        on_zero_weight: what "mean" does when the total weight is 0: "raise", or "zero" for exact zeros.

    Raises:
        TypeError: `g` is something else.
        ValueError: an unknown reduction; a mean of total weight 0.

    Example:
        >>> import torch, gradfunc as gf
        >>> f = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())
        >>> g = f({"w": torch.ones(2)}, torch.arange(6.0).reshape(3, 2))
        >>> gf.reduce(g, "sum")["w"], gf.reduce(g, "mean")["w"]
        (tensor([6., 9.]), tensor([2., 3.]))
    """
    if not isinstance(g, PerSampleGrads):
        raise TypeError(message("gf.reduce(g, reduction)", got=kind_of(g), expected="per-sample gradients"))
    one_of("gf.reduce(g, reduction)", "reduction", reduction, ("none", "sum", "mean"))
    if reduction == "none":
        return g.materialize()
    return g.sum() if reduction == "sum" else g.mean(on_zero_weight=on_zero_weight)
