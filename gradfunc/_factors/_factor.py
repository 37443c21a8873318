"""What every kind of factor can be asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from .._tree import At


class Terms(NamedTuple):
    """A sum, and how far it may be trusted.

    `value` is off by about `magnitude` units of roundoff at most: the magnitudes of what was summed, plus what may have
    underflowed. None where rounding stays on the scale of the rows' norms, whatever the values.
    """

    value: Tensor
    magnitude: Tensor | None = None


class Method(NamedTuple):
    """How squared norms will be computed: `name` is "gram", "direct", "rows" or "dense"; costs are of all samples."""

    name: str
    flops: int
    bytes: int
    why: str


class Factor(Protocol):
    """The gradient of every sample with respect to one value, in whatever form it came.

    Answers are in the accumulation dtype of the factor. `scratch` bounds, in entries, what is allocated beside the
    answer; one sample's own block is always allowed.
    """

    @property
    def kind(self) -> str:
        """What `explain()` calls it."""

    @property
    def size(self) -> int:
        """Number of samples, B."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The value's."""

    @property
    def features(self) -> tuple[object, ...]:
        """What must agree for two factors of a kind to be joined."""

    @property
    def dtype(self) -> torch.dtype:
        """The accumulation dtype: float32 for the half types."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What it holds."""

    @property
    def reads(self) -> int:
        """Entries that are read to form one row."""

    def select(self, at: At) -> Self:
        """Some of the samples: views for a stretch, copies for positions."""

    def mapped(self, fn: Callable[[Tensor], Tensor]) -> Self:
        """The same on other tensors."""

    def dense(self) -> Tensor:
        """Every row, `[B, *shape]`."""

    def pieces(self, width: int) -> Iterator[tuple[slice | Tensor, Tensor]]:
        """Rows `[B, n]` at some n <= `width` entries at a time; entries that no piece names are 0 in every row."""

    def method(self, scratch: int) -> Method:
        """What `squares` will do, and why."""

    def squares(self, scratch: int) -> Terms:
        """Squared norms `[B]`; may overflow, and round below 0."""

    def gram(self, other: Self, scratch: int, *, by_rows: bool = False) -> Terms:
        """Inner products with the rows of another factor of this kind and these features: `[B, B']`.

        With `by_rows`, from entries of the rows rather than in a form that can cancel.
        """

    def dots(self, directions: Tensor, scratch: int) -> Tensor:
        """Inner products with k directions `[k, *shape]`: `[B, k]`."""

    def weighted_sum(self, c: Tensor | None, scratch: int) -> Tensor:
        """Sum of `c[i]` times row i, `[*shape]`; of the rows where `c` is None. No coefficient is 0."""
