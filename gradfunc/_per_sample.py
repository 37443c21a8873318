"""`per_sample_grads(loss)` and its value, `PerSampleGrads`; the choice of engine."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

from ._engines import Call, CotangentSource, LoopSource, Rows, Source, VmapSource, limitation
from ._errors import GradfuncWarning, kind_of, message, one_of
from ._tree import Batch, Tensors, read_batch, row_dots, row_norms, row_sum, tensors_of, wide
from ._weights import Weighted, check_weights, ratio, total

Selection = str | Sequence[str] | Callable[[str, Tensor], bool]


@dataclass(frozen=True, eq=False)
class PerSampleGrads:
    """The gradients of every sample of a batch, as one immutable value. Made by `gf.per_sample_grads`.

    Example:
        >>> import gradfunc as gf
        >>> f = gf.per_sample_grads(lambda params, x: (params["w"] * x).sum())
        >>> g = f({"w": torch.zeros(2)}, torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        >>> g.norms(), g.mean()["w"], g.materialize()["w"].shape
        (tensor([5., 1.]), tensor([1.5000, 2.5000]), torch.Size([2, 2]))

    Row i is the gradient of sample i's numerator. Where the rows fit in one chunk they are kept; otherwise each
    query runs the model again, chunk by chunk, and holds a small multiple of one chunk of rows.

    Attributes:
        names: the parameters differentiated, in the order of `params`.
        batch_size: B.
        engine: "vmap" or "loop".
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
        for a, b in _spans(self.batch_size, self._chunk):
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


@dataclass(frozen=True, eq=False)
class PerSampleGradsFunction:
    """`f(params, *args, **kwargs) -> PerSampleGrads`. Made by `gf.per_sample_grads`."""

    loss: Callable[..., Any]
    wrt: Selection | None
    engine: str
    chunk_size: str | int | None
    randomness: str
    seed: int
    batched: bool
    # Why vmap could not run this loss, once known: later calls go to the loop at once, and do not warn again.
    _refused: list[str] = field(default_factory=list, repr=False)

    def __call__(self, params: Mapping[str, Tensor], /, *args: Any, **kwargs: Any) -> PerSampleGrads:
        """The gradients of every sample of the batch `args, kwargs` at `params`."""
        call = "gf.per_sample_grads(loss)(params, ...)"
        _check_modes(call, params, args, kwargs)
        selected = _selected(call, params, self.wrt)
        batch = read_batch(call, args, kwargs, rows=not self.batched)
        fixed = {name: value.detach() for name, value in params.items()}
        detached = {name: fixed[name] for name in selected}
        made = Call(call, self.loss, detached, fixed, batch, self.randomness, self.seed)
        return self._evaluated(made, call, batch)

    def _evaluated(self, made: Call, call: str, batch: Batch) -> PerSampleGrads:
        engine, reason = ("loop", self._refused[0]) if self._refused else (self.engine, "as asked")
        if engine == "auto":
            try:
                return self._value(made, "vmap", "torch.func runs this loss", call, batch)
            except Exception as error:
                if (limit := self._limit(error, made)) is None:
                    raise
            reason = f"torch.func cannot run this loss ({limit})"
            value = self._value(made, "loop", reason, call, batch)  # the user's own error, if it is one, passes here
            self._refused.append(reason)
            do = "Results are exact but cost one backward pass a sample; pass engine='loop' to say that this is meant."
            warnings.warn(f"{call}: {reason}; using one autograd call a sample. {do}", GradfuncWarning, stacklevel=3)
            return value
        return self._value(made, engine, reason, call, batch)

    def _limit(self, error: Exception, made: Call) -> str | None:
        """Why torch.func cannot run the loss; None for the user's own error.

        What torch says of itself is known by its words, and else by trying: an error that sample 0 alone does not raise
        outside of vmap is a limitation.
        """
        if (known := limitation(error)) is not None or not isinstance(error, (RuntimeError, NotImplementedError)):
            return known
        try:
            self._source(made, "loop").rows(0, 1)
        except Exception:
            return None
        return " ".join(str(error).split())[:200]

    def _value(self, made: Call, engine: str, reason: str, call: str, batch: Batch) -> PerSampleGrads:
        source = self._source(made, engine)
        size = source.size
        chunk = _chunk_size(self.chunk_size, made.params, size)
        kept = source.rows(0, size) if 0 < size <= chunk else None
        values = kept if kept is not None else _streamed_losses(source, chunk, made)
        check_weights(call, values.weights)
        watched = [*made.fixed.values(), *batch.tensors]
        return PerSampleGrads(
            names=tuple(made.params),
            batch_size=size,
            engine=engine,
            _losses=values.losses,
            _weights=values.weights,
            # Rows that are kept answer for themselves: a batched loss would hold its graph for nothing.
            _source=source if kept is None or kept.unused is None else None,
            _shapes=made.params,
            _kept=kept,
            _chunk=chunk,
            _reason=reason,
            _watched=tuple((tensor, tensor._version) for tensor in watched),
        )

    def _source(self, made: Call, engine: str) -> Source:
        if self.batched:
            return CotangentSource.run(made, vmapped=engine == "vmap")
        return VmapSource(made) if engine == "vmap" else LoopSource(made)


def per_sample_grads(
    loss: Callable[..., Any],
    *,
    wrt: Selection | None = None,
    engine: str = "auto",
    chunk_size: str | int | None = "auto",
    randomness: str = "different",
    seed: int = 0,
    batched: bool = False,
) -> PerSampleGradsFunction:
    """The gradient of every sample: a function `f(params, *args, **kwargs) -> PerSampleGrads`.

    Row i is `grad(loss)(params, *sample_i)`, that is `vmap(grad(loss))`, of the numerator where the loss is
    `Weighted`. Arguments reach `loss` as they are; tensors (in any nest) carry the samples in dimension 0, other
    leaves are the same for every sample.

    Args:
        loss: `loss(params, *sample, **sample) -> scalar | Weighted` of ONE sample, without batch dimension.
        wrt: which parameters: a regex (`re.fullmatch`), exact names, or a predicate(name, tensor); default: every
            floating one.
        engine: "vmap" (`vmap(grad)`), "loop" (one autograd call a sample: whatever autograd can differentiate), or
            "auto": vmap, and the loop where torch.func says that it cannot.
        chunk_size: samples computed at once; None for all; "auto" keeps rows within 1/16 of the machine's memory.
        randomness: "different" draws for each sample, the "same" for all, or an "error" if the loss draws at all.
            Draws are seeded by `seed` alone and repeat at each query; which sample gets which depends on the engine
            and on chunk_size. Global generators stay as they are.
        seed: of those draws.
        batched: `loss` runs the whole batch natively and returns one loss a sample, `[B]` or `Weighted` of two.
            Row i is then the gradient of `losses[i]`, coupling between samples included.

    Raises:
        TypeError: `loss` is not callable; params is not `{name: tensor}`; the loss returns something else.
        ValueError: an unknown option; tensors that disagree in B; a loss of another shape; no differentiable
            parameter, or none that `wrt` matches; negative weights.
        RuntimeError: inference mode; a query that must run the model again after something changed in place.

    Example:
        >>> import gradfunc as gf
        >>> model = gf.stateless(torch.nn.Linear(4, 3))
        >>> def loss(params, x, y):
        ...     return gf.losses.cross_entropy(model.sample(params, x), y)
        >>> g = gf.per_sample_grads(loss)(model.params, torch.ones(5, 4), torch.tensor([0, 1, 2, 0, 1]))
        >>> g.norms().shape, g.mean()["weight"].shape
        (torch.Size([5]), torch.Size([3, 4]))
    """
    call = "gf.per_sample_grads(loss)"
    if not callable(loss):
        raise TypeError(message(call, got=kind_of(loss), expected="a function loss(params, *sample)"))
    one_of(call, "engine", engine, ("auto", "vmap", "loop"))
    one_of(call, "randomness", randomness, ("different", "same", "error"))
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(message(call, got=f"seed={seed!r}", expected="an int"))
    if not (wrt is None or isinstance(wrt, (str, Sequence)) or callable(wrt)):
        expected = "a regex, a sequence of names, or a predicate(name, tensor)"
        raise TypeError(message(call, got=f"wrt={wrt!r}", expected=expected))
    good = chunk_size in (None, "auto") or (isinstance(chunk_size, int) and chunk_size >= 1)
    if not good or isinstance(chunk_size, bool):
        expected = "a positive int, None (all at once) or 'auto'"
        raise ValueError(message(call, got=f"chunk_size={chunk_size!r}", expected=expected))
    return PerSampleGradsFunction(loss, wrt, engine, chunk_size, randomness, seed, batched)


def _check_modes(call: str, params: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if not isinstance(params, Mapping) or not all(isinstance(value, Tensor) for value in params.values()):
        do = "Pass model.params, or dict(module.named_parameters())."
        raise TypeError(message(call, got=f"{kind_of(params)} as params", expected="a dict {name: tensor}", do=do))
    inference = torch.is_inference_mode_enabled()
    if inference or any(tensor.is_inference() for tensor in tensors_of((dict(params), args, kwargs))):
        raise RuntimeError(
            message(
                call,
                got="inference mode" if inference else "a tensor made under inference mode",
                expected="tensors that autograd can record",
                do="Leave torch.inference_mode() (no_grad is fine), and clone tensors that were made in it.",
            )
        )


def _selected(call: str, params: Mapping[str, Tensor], wrt: Selection | None) -> list[str]:
    if complex_ones := [name for name, value in params.items() if value.is_complex()]:
        do = "Keep real and imaginary parts as two parameters (torch.view_as_complex joins them)."
        raise ValueError(message(call, got=f"complex parameters {complex_ones}", expected="real ones", do=do))
    floating = [name for name, value in params.items() if value.is_floating_point()]
    if not floating:
        do = "Parameters must be floating tensors."
        raise ValueError(message(call, got="no differentiable parameter", expected="at least one", do=do))
    if wrt is None:
        return floating
    if isinstance(wrt, str):
        try:
            chosen = [name for name in floating if re.fullmatch(wrt, name)]
        except re.error as error:
            raise ValueError(message(call, got=f"wrt={wrt!r} ({error})", expected="a regular expression")) from error
    elif callable(wrt):
        chosen = [name for name in floating if wrt(name, params[name])]
    else:
        if unknown := [name for name in wrt if name not in floating]:
            got = f"wrt with {unknown}"
            raise ValueError(message(call, got=got, expected=f"names of floating parameters: {floating}"))
        chosen = [name for name in floating if name in set(wrt)]
    if not chosen:
        do = "A string is a regular expression for the whole name (re.fullmatch)."
        got = f"wrt={wrt!r}, which matches nothing"
        raise ValueError(message(call, got=got, expected=f"a match among {floating}", do=do))
    return chosen


def _chunk_size(asked: str | int | None, params: Tensors, size: int) -> int:
    """How many rows at once: a function of shapes, dtypes and the machine's total memory, never of free memory."""
    if asked is None:
        return max(size, 1)
    if isinstance(asked, int):
        return asked
    device = next(iter(params.values())).device
    on_gpu = device.type == "cuda"
    memory = torch.cuda.get_device_properties(device).total_memory if on_gpu else _machine_memory()
    row = sum(value.numel() * value.element_size() for value in params.values())
    return max(1, min(size or 1, memory // 16 // max(row, 1)))


def _machine_memory() -> int:
    """Total bytes, or the limit of the container; 8 GiB where the system does not say."""
    total = 2**33
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdigit() else total


def _spans(size: int, chunk: int) -> list[tuple[int, int]]:
    return [(start, min(start + chunk, size)) for start in range(0, size, chunk)]


def _streamed_losses(source: Source, chunk: int, made: Call) -> Rows:
    """Losses and weights without keeping rows; the first chunk's rows are computed to learn whether they can be."""
    parts: list[Weighted] = []
    for start, stop in _spans(source.size, chunk):
        rows = source.rows(start, stop) if start == 0 else None
        parts.append(Weighted(rows.losses, rows.weights) if rows else source.losses(start, stop))
    if not parts:
        like = next(iter(made.params.values()))
        return Rows({}, like.new_zeros(0), like.new_zeros(0, dtype=wide(like.dtype)))
    return Rows({}, torch.cat([p.numerator for p in parts]), torch.cat([p.weight for p in parts]))
