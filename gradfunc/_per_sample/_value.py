"""`PerSampleGrads`: the gradients of a batch as a value, and its queries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, overload

import torch
from torch import Tensor

from .._engines import Rows, Source, VmapSource
from .._errors import kind_of, message
from .._tree import Tensors, row_dots, row_norms, row_sum, wide
from .._weights import ratio, total


@dataclass(frozen=True, eq=False)
class PerSampleGrads:
    """The gradients of every sample of a batch, as one immutable value. Made by `gf.per_sample_grads`.

    Row i is the gradient of sample i's numerator. Where the rows fit in one chunk they are kept; otherwise each
    query runs the model again, chunk by chunk, and holds a small multiple of one chunk of rows.

    Attributes:
        names: the parameters differentiated, in the order of `params`.
        batch_size: B.
        engine: "vmap" or "loop".

    Example:
        >>> import gradfunc as gf
        >>> f = gf.per_sample_grads(lambda params, x: (params["w"] * x).sum())
        >>> g = f({"w": torch.zeros(2)}, torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        >>> g.norms(), g.mean()["w"], g.materialize()["w"].shape
        (tensor([5., 1.]), tensor([1.5000, 2.5000]), torch.Size([2, 2]))
    """

    names: tuple[str, ...]
    batch_size: int
    engine: str
    _losses: Tensor = field(repr=False)
    _weights: Tensor = field(repr=False)
    _source: Source | None = field(repr=False)
    _shapes: Tensors = field(repr=False)
    _kept: Rows | None = field(repr=False)
    _chunk: int
    _reason: str
    _watched: tuple[tuple[Tensor, int], ...] = field(repr=False)

    @property
    def losses(self) -> Tensor:
        """Numerators, `[B]`."""
        return self._losses.clone()

    @property
    def weights(self) -> Tensor:
        """Weights, `[B]`; all 1 where the loss is a plain scalar."""
        return self._weights.clone()

    @property
    def mean_loss(self) -> Tensor:
        """Sum of numerators over sum of weights: `[]`; NaN for a total weight of 0."""
        weight = total(self.weights)
        mean = self.losses.sum(dtype=torch.float64) / weight
        return torch.where(weight > 0, mean, torch.full_like(mean, torch.nan)).to(self.losses.dtype)

    @property
    def unused(self) -> tuple[str, ...]:
        """Parameters that no sample's loss depends on; their gradients are exact zeros.

        Known where rows are kept by the loop; else it costs one forward and backward pass of one sample under vmap, of
        every sample in a loop. An empty batch uses nothing.
        """
        if self._kept is not None and self._kept.unused is not None:
            return self._kept.unused
        assert self._source is not None
        if self._kept is None:
            self._check_unchanged("unused")
        return self._source.unused()

    @overload
    def norms(self, *, per_parameter: Literal[False] = False) -> Tensor: ...
    @overload
    def norms(self, *, per_parameter: Literal[True]) -> Tensors: ...
    def norms(self, *, per_parameter: bool = False) -> Tensor | dict[str, Tensor]:
        """Euclidean norm of each sample's gradient: `[B]`, or `{name: [B]}`; safe from overflow."""
        if per_parameter:
            parts = [{name: row_norms({name: v}) for name, v in rows.items()} for _, rows in self._chunks("norms()")]
            return {name: self._joined([part[name] for part in parts]) for name in self.names}
        return self._joined([row_norms(rows) for _, rows in self._chunks("norms()")])

    @overload
    def gram(self, other: PerSampleGrads | None = None, *, per_parameter: Literal[False] = False) -> Tensor: ...
    @overload
    def gram(self, other: PerSampleGrads | None = None, *, per_parameter: Literal[True]) -> Tensors: ...
    def gram(self, other: PerSampleGrads | None = None, *, per_parameter: bool = False) -> Tensor | dict[str, Tensor]:
        """Inner products of rows: `[B, B']`, or `{name: [B, B']}`; with `other`, between two batches.

        Streamed rows cost one pass over `other` for each chunk of `self` (half of that without `other`).

        Raises:
            TypeError: `other` is something else.
            ValueError: `other` holds other parameters.
        """
        right = self if other is None else other
        if not isinstance(right, PerSampleGrads):
            raise TypeError(message("g.gram(other)", got=kind_of(right), expected="per-sample gradients"))
        if set(right.names) != set(self.names):
            raise ValueError(message("g.gram(other)", got=f"parameters {right.names}", expected=f"{self.names}"))
        out = {
            name: torch.zeros(
                self.batch_size, right.batch_size, dtype=wide(self._shapes[name].dtype), device=self.losses.device
            )
            for name in self.names
        }
        for (a, b), rows in self._chunks("gram()"):
            for (c, d), columns in right._chunks("gram()", start=a if other is None else 0):
                for name, block in out.items():
                    left = rows[name].reshape(b - a, -1).to(block.dtype)
                    block[a:b, c:d] = left @ columns[name].reshape(d - c, -1).to(block.dtype).T
                    if other is None and c > a:
                        block[c:d, a:b] = block[a:b, c:d].T
        if per_parameter:
            return out
        return torch.stack(list(out.values())).sum(0)

    def dot(self, direction: Mapping[str, Tensor]) -> Tensor:
        """Inner product of each row with `direction`, `{name: tensor}` of the parameters' shapes: `[B]`.

        Raises:
            TypeError: `direction` is not a dictionary.
            ValueError: `direction` lacks a parameter or has other shapes.
        """
        if not isinstance(direction, Mapping):
            raise TypeError(message("g.dot(direction)", got=kind_of(direction), expected="a dict {name: tensor}"))
        for name, like in self._shapes.items():
            given = direction.get(name)
            if not isinstance(given, Tensor) or given.shape != like.shape:
                came = f"shape {tuple(given.shape)}" if isinstance(given, Tensor) else "nothing"
                expected = f"shape {tuple(like.shape)}, the parameter's"
                raise ValueError(message("g.dot(direction)", got=f"{came} for '{name}'", expected=expected))
        return self._joined([row_dots(rows, direction) for _, rows in self._chunks("dot()")])

    def sum(self, *, wide: bool = False) -> Tensors:
        """Sum of the rows, `{name: tensor}`: the gradient of torch's `reduction="sum"`.

        Args:
            wide: keep the accumulation dtype (float32 for half types).
        """
        return self._summed(None, "sum()", wide)

    def weighted_sum(self, c: Tensor, *, wide: bool = False) -> Tensors:
        """Sum of `c[i]` times row i, for constants c of shape `[B]`. A coefficient 0 leaves its row out, NaN included.

        Raises:
            TypeError: `c` is not a tensor.
            ValueError: `c` has another shape.
        """
        if not isinstance(c, Tensor):
            raise TypeError(
                message("g.weighted_sum(c)", got=kind_of(c), expected=f"a tensor of shape [{self.batch_size}]")
            )
        if c.shape != (self.batch_size,):
            raise ValueError(
                message("g.weighted_sum(c)", got=f"c of shape {tuple(c.shape)}", expected=f"[{self.batch_size}]")
            )
        return self._summed(c.detach(), "weighted_sum(c)", wide)

    def mean(self, *, on_zero_weight: str = "raise") -> Tensors:
        """Sum of the rows over the total weight: the gradient of torch's `reduction="mean"`.

        Args:
            on_zero_weight: "raise", or "zero" for exact zeros.

        Raises:
            ValueError: the total weight is 0 (an empty batch, or every sample ignored).
        """
        sums = ratio("g.mean()", self.sum(wide=True), total(self.weights), on_zero_weight)
        return {name: value.to(self._shapes[name].dtype) for name, value in sums.items()}

    def materialize(self) -> Tensors:
        """Every row: `{name: [B, *shape]}`, fresh tensors of B times the parameters' size."""
        parts = [rows for _, rows in self._chunks("materialize()")]
        if len(parts) == 1:
            return {name: value.clone() for name, value in parts[0].items()}
        return {
            name: torch.cat([part[name] for part in parts]) if parts else like.new_zeros((0, *like.shape))
            for name, like in self._shapes.items()
        }

    def explain(self) -> str:
        """The engine and why it was chosen, and what is kept, in words."""
        entries = sum(value.numel() for value in self._shapes.values())
        kept = "kept" if self._kept is not None else f"computed again at each query, {self._chunk} at a time"
        slow = sorted(self._source.slow) if isinstance(self._source, VmapSource) else []
        looped = f" torch has no batching rule for {', '.join(slow)} and runs it sample by sample." if slow else ""
        return (
            f"engine {self.engine}: {self._reason}. {self.batch_size} rows of {entries:,} entries in "
            f"{len(self.names)} parameters, {kept}.{looped}"
        )

    def _summed(self, c: Tensor | None, query: str, keep_wide: bool) -> Tensors:
        sums = {name: torch.zeros_like(like, dtype=wide(like.dtype)) for name, like in self._shapes.items()}
        for (a, b), rows in self._chunks(query):
            part = row_sum(rows, None if c is None else c[a:b])
            sums = {name: value + part[name] for name, value in sums.items()}
        return sums if keep_wide else {name: sums[name].to(like.dtype) for name, like in self._shapes.items()}

    def _chunks(self, query: str, start: int = 0) -> Iterator[tuple[tuple[int, int], Tensors]]:
        if self._kept is not None:
            yield (0, self.batch_size), self._kept.grads
            return
        self._check_unchanged(query)
        assert self._source is not None
        for a, b in spans(self.batch_size, self._chunk):
            if a >= start:
                yield (a, b), self._source.rows(a, b).grads

    def _joined(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts) if parts else torch.zeros_like(self.losses, dtype=wide(self.losses.dtype))

    def _check_unchanged(self, query: str) -> None:
        if any(tensor._version != version for tensor, version in self._watched):
            raise RuntimeError(
                message(
                    f"g.{query}",
                    got="parameters or a batch that were changed in place since the gradients were asked for",
                    expected="the values they were asked for, since this query runs the model again",
                    do="Query before the update, or pass chunk_size=None so that the rows are kept.",
                )
            )


def spans(size: int, chunk: int) -> list[tuple[int, int]]:
    return [(start, min(start + chunk, size)) for start in range(0, size, chunk)]
