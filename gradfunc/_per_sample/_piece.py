"""Some samples' rows, as one query holds them, and what they are multiplied by."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from .. import _factors
from .._factors import Gradients, Projection
from .._tree import At, Tensors, weighed
from ._scales import Scales


@dataclass(frozen=True, eq=False)
class Piece:
    """Rows as the source has them, of the samples `at`, and the scales of the value that is asked.

    Answers about rows are multiplied, never the rows: clipping, masking and unscaling touch none of them until a sum.
    """

    at: At
    rows: Gradients
    scales: Scales

    @functools.cached_property
    def coefficients(self) -> Tensor | None:
        """What each row is multiplied by, `[b]` in float64; None for nothing."""
        return self.scales.at(self.at, lambda: self._norms)

    def scaled(self, values: Tensor, dim: int = 0) -> Tensor:
        """`values`, one a sample along `dim`, times the coefficients."""
        return values if self.coefficients is None else weighed(values, self.coefficients, dim)

    def norms(self) -> Tensor:
        """Of the rows times their coefficients, `[b]`."""
        return self._sized(self._norms)

    def norms_each(self) -> Tensors:
        """The same of each parameter."""
        return {name: self._sized(value) for name, value in _factors.norms_each(self.rows).items()}

    def gram(self, other: Piece) -> Tensors:
        """Inner products with the rows of another piece, `{name: [b, b']}`."""
        return {
            name: self.scaled(other.scaled(products, dim=1))
            for name, products in _factors.gram(self.rows, other.rows).items()
        }

    def dots(self, direction: Mapping[str, Tensor]) -> Tensor:
        """Inner products with a direction, `[b]`."""
        return self.scaled(_factors.dots(self.rows, direction))

    def project(self, projection: Projection) -> Tensor:
        """The rows under a linear map, `[b, k]`."""
        return self.scaled(_factors.project(self.rows, projection))

    def dense(self) -> Tensors:
        """The rows times their coefficients, `{name: [b, *shape]}`, in storage of their own."""
        held = {tensor.untyped_storage().data_ptr() for tensor in _factors.tensors(self.rows)}
        values = {name: self.scaled(value) for name, value in _factors.dense(self.rows).items()}
        return {k: v.clone() if v.untyped_storage().data_ptr() in held else v for k, v in values.items()}

    def weighted_sum(self, c: Tensor | None, *, spent: bool = False) -> Tensors:
        """Sum of `c[i]` times row i times its coefficient, in the accumulation dtype; `c` is `[b]`, None for all 1.

        With `spent` the piece holds no rows afterwards.
        """
        own = self.coefficients
        if own is not None:
            c = own if c is None else weighed(own, c)
        return _factors.weighted_sum(self.rows, c, spent=spent)

    @functools.cached_property
    def _norms(self) -> Tensor:
        return _factors.norms(self.rows)

    def _sized(self, norms: Tensor) -> Tensor:
        return norms if self.coefficients is None else weighed(norms, self.coefficients.abs())
