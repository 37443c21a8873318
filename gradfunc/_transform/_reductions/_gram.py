"""Weighted sums of rows whose coefficients are read off the Gram matrix: no row is ever formed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ..._errors import kind_of, message
from ..._per_sample import PerSampleGrads
from ..._tree import Tensors
from .._numbers import shown
from .._protocol import State
from .._said import Facts
from ._per_unit import OverRows, check_options

Weighting = Callable[[Tensor], Tensor]  # from the Gram matrix [n, n] to coefficients [n]


@dataclass(frozen=True, repr=False, kw_only=True)
class OfGram(OverRows):
    """Two queries: the Gram matrix, and one weighted sum."""

    def reduced(self, call: str, g: PerSampleGrads, state: State) -> tuple[Tensors, Callable[[], Facts]]:
        """`sum_i c_i g_i / w_i`."""
        gram = g.gram()
        if not bool(gram.isfinite().all()):
            got = f"a Gram matrix that overflows, of rows of norm up to {float(g.norms().max().detach()):.1e}"
            do = "Scale the loss down, or compute in float64."
            raise ValueError(message(call, got=got, expected=f"squared norms that {gram.dtype} holds", do=do))
        c, facts = self.coefficients(call, gram)
        return g.weighted_sum(c), facts

    @abstractmethod
    def coefficients(self, call: str, gram: Tensor) -> tuple[Tensor, Callable[[], Facts]]:
        """`[n]`, and what is to be said of them."""


@dataclass(frozen=True, repr=False, kw_only=True)
class FromGram(OfGram):
    """Made by `gf.from_gram`, which has the meanings."""

    weighting: Weighting
    name = "from_gram"

    def coefficients(self, call: str, gram: Tensor) -> tuple[Tensor, Callable[[], Facts]]:
        """What the function says."""
        c = self.weighting(gram)
        n = len(gram)
        if not isinstance(c, Tensor) or c.shape != (n,) or c.is_complex():
            got = f"coefficients of shape {tuple(c.shape)}" if isinstance(c, Tensor) else kind_of(c)
            expected = f"a tensor of shape [{n}], one number a sample"
            raise ValueError(message(call, got=f"{got} from the weighting", expected=expected))
        if not bool(c.isfinite().all()):
            got = "coefficients from the weighting that are not finite"
            raise ValueError(message(call, got=got, expected="finite numbers"))
        c = c.to(gram.device, gram.dtype)
        return c, partial(_facts, c.detach())

    def __repr__(self) -> str:
        return f"from_gram({', '.join([shown(self.weighting), *self.options()])})"


def from_gram(weighting: Weighting, *, nonfinite: str = "raise", on_zero_weight: str = "raise") -> FromGram:
    """The weighted sum of rows with coefficients made of their Gram matrix: from per-sample gradients to gradients.

    With `K_ij = <g_i / w_i, g_j / w_j>` over the n samples of weight > 0 it is `sum_i c_i g_i / w_i` for
    `c = weighting(K)`. `gf.weightings` has some; those of `torchjd.aggregation` (`MGDAWeighting()`, ...) plug in as
    they are. No row is formed. The matrix is held in float32 or wider; it is looked at on the host.

    Args:
        weighting: a pure function from the Gram matrix, `[n, n]`, to coefficients, `[n]`, in the order of the samples.
        nonfinite: for a row whose norm is inf or NaN: "raise", or "skip", which leaves the sample out.
        on_zero_weight: where no sample is left: "raise", or "zero" for exact zeros.

    Raises:
        TypeError: `weighting` is not callable.
        ValueError: another option; in an update: a row that is not finite; no sample with weight > 0; a Gram matrix
            that overflows; coefficients of another shape, or not finite.

    Example:
        >>> import torch, gradfunc as gf
        >>> p = {"w": torch.ones(2)}
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
        >>> g = gf.per_sample_grads(lambda p, x: (p["w"] * x).sum())(p, x)
        >>> gf.from_gram(gf.weightings.mgda()).update(g, ())[0]["w"]
        tensor([0.8000, 0.4000])
    """
    call = "gf.from_gram(weighting)"
    if not callable(weighting):
        expected, do = "a function from the Gram matrix [n, n] to coefficients [n]", "Such as gf.weightings.mgda()."
        raise TypeError(message(call, got=kind_of(weighting), expected=expected, do=do))
    check_options(call, nonfinite, on_zero_weight)
    return FromGram(weighting=weighting, nonfinite=nonfinite, on_zero_weight=on_zero_weight)


def _facts(c: Tensor) -> Facts:
    return {"coefficients_min": c.min(), "coefficients_max": c.max(), "coefficients_sum": c.sum()}
