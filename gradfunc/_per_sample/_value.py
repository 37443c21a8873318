"""`PerSampleGrads`: the gradients of a batch as a value, and its queries."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, overload

import torch
from torch import Tensor

from .._capture import Used
from .._engines import KeptSource, SelectedSource, Source, spans
from .._errors import kind_of, message
from .._factors import Entrywise, Projection
from .._tree import At, Tensors, add, at_positions, count, map_tensors, scattered, weighed, wide
from .._weights import ratio, total
from ._chunks import Chunks
from ._differentiable import Differentiable, derives, differentiable
from ._explain import Explanation, lines
from ._indices import RESCALED, ByNorms, coefficients, indices
from ._live import LivePiece, readable, times
from ._mapped import MappedSource
from ._piece import Piece
from ._scales import OfNorms, Scales
from ._versions import Versions, changed


@dataclass(frozen=True, eq=False)
class PerSampleGrads(Differentiable):
    """The gradients of every sample of a batch, as one immutable value. Made by `gf.per_sample_grads`.

    Row i is the gradient of sample i's numerator. Where the rows fit in one chunk they are kept; otherwise each
    query runs the model again, chunk by chunk, and holds a small multiple of one chunk of rows.

    Answers can be differentiated again, to any order, in whatever requires grad of what was given: parameters, batch,
    coefficients, directions. A backward pass then runs the loss again by `vmap(grad)`, or in a loop, and holds B x P;
    until one does, nothing costs more. Where nothing requires grad, or under `torch.no_grad()`, answers have no graph.

    Attributes:
        names: the parameters differentiated, in the order of `params`.
        batch_size: B.
        engine: "factored", "vmap" or "loop"; of joined values that differ, all.

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
    _aux: Any = field(repr=False)
    _source: Source = field(repr=False)
    _shapes: Tensors = field(repr=False)
    # Row i is the source's row i times what these give for it.
    _scales: Scales = field(repr=False)
    _chunks: Chunks = field(repr=False)
    _reason: str = field(repr=False)
    # Of each parameter, where the graph was read.
    _uses: Mapping[str, Sequence[Used]] = field(repr=False)
    # Operators that torch runs sample by sample under vmap; grows as they are met.
    _slow: set[str] = field(repr=False)
    # Tensors that a query reads again, with their versions; none where the rows are kept.
    _watched: Versions = field(repr=False)
    # What kept rows are made of, with versions: some of it may be the user's, such as what the loss closes over.
    _held: Versions = field(repr=False, default=(), kw_only=True)
    # Of a value that shows some of its source's parameters: all of them, with what they look like.
    _outside: tuple[tuple[str, ...], Tensors] | None = field(repr=False, default=None, kw_only=True)
    # Whether a sum is the last thing that is asked, so that it gives up the rows as it goes.
    _spent: bool = field(repr=False, default=False, kw_only=True)

    @property
    @differentiable(rows=False)
    def losses(self) -> Tensor:
        """Numerators, `[B]`."""
        return self._losses.clone()

    @property
    def weights(self) -> Tensor:
        """Weights, `[B]`; all 1 where the loss is a plain scalar."""
        return self._weights.clone()

    @property
    @differentiable(rows=False)
    def aux(self) -> Any:
        """What the loss returned beside its value (`has_aux=True`), the samples in dimension 0; None without."""
        return map_tensors(torch.clone, self._aux)

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
        self._check_unchanged("unused")
        if self._live:
            got, do = "a value made inside a transform of torch.func", "Ask outside of the transform."
            raise RuntimeError(message("g.unused", got=got, expected="one whose loss can be run by autograd", do=do))
        every = self.names if self._outside is None else self._outside[0]
        left = torch.ones(len(every), dtype=torch.bool)
        for at in self._plan():
            left &= self._source.unused(at).all(0)
        none = {name for name, idle in zip(every, left.tolist(), strict=True) if idle}
        return tuple(name for name in self.names if name in none)

    # --- other values from this one ----------------------------------------------------------------

    @derives
    def select(self, index: Tensor | Sequence[int] | slice) -> PerSampleGrads:
        """Some of the samples, in the order of `index`.

        Args:
            index: positions (negative ones count from the end, and may repeat), a mask `[B]` of bools, or a slice.

        Raises:
            TypeError: something else, such as one int.
            IndexError: a position outside of the batch; a mask of another length.
        """
        chosen = indices("g.select(index)", index, self.batch_size)
        return dataclasses.replace(
            self,
            batch_size=len(chosen),
            _losses=self._losses[chosen],
            _weights=self._weights[chosen],
            _aux=map_tensors(lambda t: t[chosen], self._aux),
            _scales=self._scales.select(chosen),
            _source=SelectedSource(self._source, chosen),
        )

    def split(self, size: int) -> list[PerSampleGrads]:
        """Consecutive parts of `size` samples, the last one shorter.

        Raises:
            ValueError: `size` is not a positive int.
        """
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(message("g.split(size)", got=f"{size!r}", expected="a positive int"))
        return [self.select(slice(start, start + size)) for start in range(0, self.batch_size, size)]

    @derives
    def scaled(self, c: Tensor) -> PerSampleGrads:
        """Gradients and losses times `c`, `[B]`; weights as they are. A 0 gives exact zeros, also for a NaN.

        A `c` that requires grad keeps its own derivative, also where it is 0.

        Raises:
            TypeError: `c` is not a tensor.
            ValueError: `c` has another shape, or an entry that is not finite.
        """
        return self._times(coefficients("g.scaled(c)", c, self._losses))

    @derives
    def weighted(self, c: Tensor) -> PerSampleGrads:
        """Gradients, losses and weights times `c >= 0`, `[B]`: importance weights, or a mask. A 0 leaves a sample out.

        Raises:
            TypeError: `c` is not a tensor.
            ValueError: `c` has another shape, or an entry that is negative or not finite.
        """
        factor = coefficients("g.weighted(c)", c, self._losses, negative=False)
        return dataclasses.replace(self._times(factor), _weights=times(self._weights, factor))

    @derives
    def rescaled(self, c: Tensor | Callable[[Tensor], Tensor]) -> PerSampleGrads:
        """Gradients alone times `c`, `[B]`; losses and weights as they are: what a clip does. A 0 gives exact zeros.

        Args:
            c: one number a sample; or a pure function from the norms of some rows, `[b]`, to one number each, `[b]`.
                A function costs no pass of its own: where rows are computed again at each query it waits for them and
                is asked piece by piece, so what it gives a row must not depend on the others. What it closes over is
                a constant; a tensor `c` that requires grad keeps its own derivative, also where it is 0.

        Raises:
            TypeError: `c` is neither; the function gives no tensor.
            ValueError: another shape, or an entry that is not finite. Of a function that waits, when it is asked.

        Example:
            >>> import gradfunc as gf
            >>> f = gf.per_sample_grads(lambda params, x: (params["w"] * x).sum())
            >>> g = f({"w": torch.zeros(2)}, torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
            >>> g.rescaled(torch.tensor([2.0, 0.5])).norms()
            tensor([10.0000,  0.5000])
            >>> smooth = g.rescaled(lambda norms: 1 / (1 + norms))  # every norm below 1, and no corner
            >>> smooth.norms(), torch.equal(smooth.losses, g.losses)
            (tensor([0.8333, 0.5000]), True)
        """
        if isinstance(c, Tensor):
            return self._times_rows(coefficients(RESCALED, c, self._losses))
        if not callable(c):
            expected = f"a tensor of shape [{self.batch_size}], or a function of norms"
            raise TypeError(message(RESCALED, got=kind_of(c), expected=expected))
        return self._times_rows(ByNorms(c))

    def first_chunk(self) -> PerSampleGrads:
        """The samples that are computed first, as a value of their own: cheap to ask, and with the same draws."""
        return self.select(at_positions(self._plan()[0])) if self.batch_size else self

    def _times(self, c: Tensor) -> PerSampleGrads:
        if self._live:
            return dataclasses.replace(self, _losses=times(self._losses, c), _scales=self._scales.times(c))
        c = c.detach()
        return dataclasses.replace(self, _losses=weighed(self._losses, c), _scales=self._scales.times(c))

    @derives
    def _rescaled(self, c: Tensor | OfNorms, given: Tensor | None = None) -> PerSampleGrads:
        """Gradients times `c`, `[B]`, or times a function of the norms `[b]` of any b rows; losses and weights stay.

        The function gets besides what is `given` for these rows, such as their weights, `[b]` in float64; by default
        ones. Where rows are computed again at each query the function waits for them, so that clipping costs no pass of
        its own; it is then asked piece by piece, and must give a row the same whatever rows are beside it.
        """
        return self._times_rows(c, given)

    def _times_rows(self, c: Tensor | OfNorms, given: Tensor | None = None) -> PerSampleGrads:
        if not isinstance(c, Tensor):
            given = torch.ones_like(self._losses) if given is None else given
            given = (given if self._live else given.detach()).to(self._losses.device, torch.float64)
            if self._watched and not self._live:
                return dataclasses.replace(self, _scales=self._scales.deferred(c, given, self._own_names))
            c = c(self.norms(), given)
        c = c.to(self._losses.device, torch.float64)
        scales = self._scales.times(c if self._live else c.detach(), self._own_names)
        return dataclasses.replace(self, _scales=scales)

    @derives
    def _mapped(self, fn: Entrywise) -> PerSampleGrads:
        """Every entry of the rows through a pure function of entries; losses and weights stay.

        Rows are formed at each query, some samples or one parameter at a time; nothing is held. Functions that are
        equal are the same.
        """
        source = MappedSource(self._source, self._scales, self.names, fn, self._live)
        return dataclasses.replace(self, _source=source, _scales=Scales())

    @derives
    def _per_unit(self) -> PerSampleGrads:
        """Numerators over weights, with weights 1; samples of weight 0 stay absent."""
        weights = self._weights.double()
        used = weights > 0
        c = torch.where(used, 1 / torch.where(used, weights, 1.0), 0.0)
        return dataclasses.replace(self._times(c), _weights=used.to(self._weights.dtype))

    @derives
    def _focused(self, names: tuple[str, ...]) -> PerSampleGrads:
        """The value as if there were no other parameters; what is done to it is done to these alone."""
        outside = (self.names, self._shapes) if self._outside is None else self._outside
        return dataclasses.replace(
            self, names=names, _shapes={name: self._shapes[name] for name in names}, _outside=outside
        )

    @derives
    def _unfocused(self, names: tuple[str, ...]) -> PerSampleGrads:
        """With the others again: the value that `_focused` was asked of, which had these names."""
        assert self._outside is not None
        every, shapes = self._outside
        outside = None if names == every else self._outside
        return dataclasses.replace(self, names=names, _shapes={k: shapes[k] for k in names}, _outside=outside)

    @property
    def _own_names(self) -> tuple[str, ...] | None:
        """What a step acts on: None for all parameters."""
        return None if self._outside is None else self.names

    # --- queries -----------------------------------------------------------------------------------

    @overload
    def norms(self, *, per_parameter: Literal[False] = False) -> Tensor: ...
    @overload
    def norms(self, *, per_parameter: Literal[True]) -> Tensors: ...
    @differentiable()
    def norms(self, *, per_parameter: bool = False) -> Tensor | dict[str, Tensor]:
        """Euclidean norm of each sample's gradient: `[B]`, or `{name: [B]}`; safe from overflow.

        Where a gradient is 0 the derivative of its norm is 0, a subgradient.
        """
        if per_parameter:
            parts = [(piece.at, piece.norms_each()) for piece in self._pieces("norms()")]
            return {name: self._joined([(at, part[name]) for at, part in parts]) for name in self.names}
        return self._joined([(piece.at, piece.norms()) for piece in self._pieces("norms()")])

    @overload
    def gram(self, other: PerSampleGrads | None = None, *, per_parameter: Literal[False] = False) -> Tensor: ...
    @overload
    def gram(self, other: PerSampleGrads | None = None, *, per_parameter: Literal[True]) -> Tensors: ...
    @differentiable()
    def gram(self, other: PerSampleGrads | None = None, *, per_parameter: bool = False) -> Tensor | dict[str, Tensor]:
        """Inner products of rows: `[B, B']`, or `{name: [B, B']}`; with `other`, between two batches.

        Streamed rows cost one pass over `other` for each chunk of `self` (half of that without `other`).

        Raises:
            TypeError: `other` is something else.
            ValueError: `other` holds parameters of other names or shapes.
        """
        right = self if other is None else other
        if not isinstance(right, PerSampleGrads):
            raise TypeError(message("g.gram(other)", got=kind_of(right), expected="per-sample gradients"))
        theirs, ours = ({k: tuple(v.shape) for k, v in g._shapes.items()} for g in (right, self))
        if theirs != ours:
            raise ValueError(message("g.gram(other)", got=f"gradients of parameters {theirs}", expected=f"of {ours}"))
        live = (self._live or right._live) and self.batch_size * right.batch_size > 0
        out = self._whole().gram(right._whole()) if live else self._gram(right)
        return out if per_parameter else torch.stack(list(out.values())).sum(0)

    def _gram(self, right: PerSampleGrads) -> Tensors:
        """Inner products with the rows of `right`, perhaps the same, block by block."""
        device = self._losses.device
        out = {
            name: torch.zeros(self.batch_size, right.batch_size, dtype=wide(like.dtype), device=device)
            for name, like in self._shapes.items()
        }
        same, plan = right is self, self._plan()
        for k, chunk in enumerate(plan):
            for rows in self._pieces("gram()", [chunk]):
                i = at_positions(rows.at)
                # Its own Gram is symmetric: blocks left of the chunk's own are there already.
                across = self._from(rows, plan[k:]) if same else right._pieces("gram()")
                for columns in across:
                    j = at_positions(columns.at)
                    for name, block in rows.gram(columns).items():
                        out[name][i[:, None], j] = block
                        if same:
                            out[name][j[:, None], i] = block.T
        return out

    @differentiable()
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
        return self._joined([(piece.at, piece.dots(direction)) for piece in self._pieces("dot()")])

    @differentiable()
    def project(self, projection: Projection) -> Tensor:
        """Each row under a linear map to few numbers: `[B, k]`.

        Args:
            projection: has `size`, k, and `apply(name, factor) -> [b, k]`: a part of the rows of parameter `name`,
                `factor.dense()` being `[b, *shape]`. Parts are added over factors and parameters.

        Raises:
            TypeError: `projection` is something else.

        Example:
            >>> import gradfunc as gf
            >>> class Total:
            ...     size = 1
            ...     def apply(self, name, factor):
            ...         return factor.dense().flatten(1).sum(1, keepdim=True)
            >>> f = gf.per_sample_grads(lambda params, x: (params["w"] * x).sum())
            >>> f({"w": torch.zeros(2)}, torch.tensor([[3.0, 4.0], [0.0, 1.0]])).project(Total())
            tensor([[7.],
                    [1.]])
        """
        size = getattr(projection, "size", None)
        if not isinstance(size, int) or isinstance(size, bool) or not callable(getattr(projection, "apply", None)):
            expected = "an object with an int `size` and apply(name, factor) -> [b, size]"
            raise TypeError(message("g.project(projection)", got=kind_of(projection), expected=expected))
        return self._joined([(piece.at, piece.project(projection)) for piece in self._pieces("project()")], size)

    @differentiable()
    def sum(self, *, wide: bool = False) -> Tensors:
        """Sum of the rows, `{name: tensor}`: the gradient of torch's `reduction="sum"`.

        Args:
            wide: keep the accumulation dtype (float32 for half types).
        """
        return self._summed(None, "sum()", wide)

    @differentiable()
    def weighted_sum(self, c: Tensor, *, wide: bool = False) -> Tensors:
        """Sum of `c[i]` times row i, for c of shape `[B]`. A coefficient 0 leaves its row out, NaN included.

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
        return self._summed(c, "weighted_sum(c)", wide)

    def mean(self, *, on_zero_weight: str = "raise") -> Tensors:
        """Sum of the rows over the total weight: the gradient of torch's `reduction="mean"`.

        Args:
            on_zero_weight: "raise", or "zero" for exact zeros.

        Raises:
            ValueError: the total weight is 0 (an empty batch, or every sample ignored).
        """
        weight, sums = total(self.weights), self.sum(wide=True)
        if self._live and not readable(weight):  # a vmap around the call maps over the weights
            if on_zero_weight != "zero":
                got, expected = "weights that a transform of torch.func maps over", "a total weight known not to be 0"
                raise RuntimeError(message("g.mean()", got=got, expected=expected, do="Pass on_zero_weight='zero'."))
            whole = torch.where(weight == 0, torch.ones_like(weight), weight)
            sums = {k: torch.where(weight == 0, 0, v / whole.to(v.device, v.dtype)) for k, v in sums.items()}
        else:
            sums = ratio("g.mean()", sums, weight, on_zero_weight, owned=not self._live)
        return {name: value.to(self._shapes[name].dtype) for name, value in sums.items()}

    @differentiable()
    def materialize(self) -> Tensors:
        """Every row: `{name: [B, *shape]}`, fresh tensors of B times the parameters' size."""
        parts = [(piece.at, piece.dense()) for piece in self._pieces("materialize()")]
        if len(parts) == 1:
            return parts[0][1]
        return {
            name: scattered([(at, rows[name]) for at, rows in parts]) if parts else like.new_zeros((0, *like.shape))
            for name, like in self._shapes.items()
        }

    def explain(self) -> str:
        """What was chosen, and why, as text: the engine, what is kept, and for each parameter a line of a table.

        The table is of factored rows: the uses of the parameter (operations that read it; "generic" where no rule knows
        one), the kind of factor, the method by which squared norms are computed with its cost in floating-point
        operations and the bytes that the factor holds, and why that method.
        """
        kept = f"computed again at each query, {self._chunks.size} at a time" if self._watched else "kept"
        slow = ", ".join(sorted(self._slow))
        looped = f" torch has no batching rule for {slow} and runs it sample by sample." if slow else ""
        summary = (
            f"engine {self.engine}: {self._reason}. {self.batch_size} rows of {self._chunks.entries:,} entries in "
            f"{len(self.names)} parameters, {kept}.{looped}"
        )
        rows = {} if self._watched or not self._uses else self._source.rows(slice(0, self.batch_size)).grads
        return str(Explanation(self.engine, summary, lines(rows, self._uses)))

    def _summed(self, c: Tensor | None, query: str, keep_wide: bool) -> Tensors:
        sums: Tensors | None = None
        for piece in self._pieces(query):
            if self._spent and isinstance(self._source, KeptSource):
                self._source.kept.grads.clear()  # the piece alone holds them now
            part = piece.weighted_sum(None if c is None else c[piece.at], spent=self._spent)
            sums = part if sums is None else add(sums, part)
        if sums is None:
            sums = {name: torch.zeros_like(like, dtype=wide(like.dtype)) for name, like in self._shapes.items()}
        return sums if keep_wide else {name: sums[name].to(like.dtype) for name, like in self._shapes.items()}

    def _plan(self) -> list[At]:
        """Every sample once, a chunk at a time."""
        return spans(self.batch_size, max(self.batch_size, 1)) if self._live else self._source.plan(self._chunks.size)

    def _pieces(self, query: str, plan: list[At] | None = None) -> Iterator[Piece]:
        """The rows, a chunk at a time; a chunk comes in several pieces where memory is short."""
        self._check_unchanged(query)
        for chunk in self._plan() if plan is None else plan:
            for at, block in self._chunks.computed(f"g.{query}", self._source.rows, chunk, self.batch_size):
                yield (LivePiece if self._live else Piece)(at, block.grads, self._scales, self.names)

    def _whole(self) -> LivePiece:
        """All rows, with their graph where they have one."""
        self._check_unchanged("gram()")
        at = slice(0, self.batch_size)
        return LivePiece(at, self._source.rows(at).grads, self._scales, self.names)

    def _from(self, piece: Piece, plan: list[At]) -> Iterator[Piece]:
        """The pieces of `plan`, given one of its first chunk: that is not computed again where it is all of it."""
        whole = count(piece.at) == count(plan[0])
        return itertools.chain([piece], self._pieces("gram()", plan[1:])) if whole else self._pieces("gram()", plan)

    def _joined(self, parts: list[tuple[At, Tensor]], *shape: int) -> Tensor:
        """`[B, *shape]`."""
        return scattered(parts) if parts else self._losses.new_zeros((0, *shape), dtype=wide(self._losses.dtype))

    def _check_unchanged(self, query: str) -> None:
        if changed(self._held):
            got = (
                "tensors that the rows are made of, such as what the loss closes over, changed in place since the call"
            )
            do = "Query before the change, or change a copy."
            raise RuntimeError(message(f"g.{query}", got=got, expected="the values they had then", do=do))
        if changed(self._watched):
            raise RuntimeError(
                message(
                    f"g.{query}",
                    got="parameters or a batch that were changed in place since the gradients were asked for",
                    expected="the values they were asked for, since this query runs the model again",
                    do="Query before the update, or pass chunk_size=None so that the rows are kept.",
                )
            )
