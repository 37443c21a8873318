"""What every kind of factor can be asked."""

from __future__ import annotations

from typing import Protocol, Self

from torch import Tensor

from .._tree import At


class Factor(Protocol):
    """The gradient of every sample with respect to one value, in whatever form it came.

    Answers are in the accumulation dtype of the factor (`wide`). `scratch` bounds, in entries, what is allocated beside
    the answer; one sample's own block is always allowed.
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
    def tensors(self) -> tuple[Tensor, ...]:
        """What it holds."""

    def select(self, at: At) -> Self:
        """Some of the samples: views for a stretch, copies for positions."""

    def dense(self) -> Tensor:
        """Every row, `[B, *shape]`."""

    def squared_norms(self, scratch: int) -> Tensor:
        """`[B]`; may overflow, and round below 0."""

    def gram(self, other: Self, scratch: int) -> Tensor:
        """Inner products with the rows of another factor of this kind: `[B, B']`."""

    def dots(self, directions: Tensor, scratch: int) -> Tensor:
        """Inner products with k directions `[k, *shape]`: `[B, k]`."""

    def weighted_sum(self, c: Tensor | None) -> Tensor:
        """Sum of `c[i]` times row i, `[*shape]`; of the rows where `c` is None. No coefficient is 0."""
