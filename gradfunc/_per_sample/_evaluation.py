"""One call of a per-sample gradient function, by whichever engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .._capture import Plans, capture
from .._engines import (
    Block,
    Call,
    CotangentSource,
    FactoredSource,
    JoinedSource,
    KeptSource,
    Limit,
    LoopSource,
    Noticed,
    Source,
    Traceable,
    Traced,
    VmapSource,
    factored,
    gathered,
    limit_of,
    limitation,
    live,
    out_of_memory,
    spans,
)
from .._errors import message
from .._factors import Gradients, select, tensors
from .._swap import Scans
from .._tree import At, Selection, Tensors, at_positions, count, wide
from .._weights import Weighted, check_weights
from ._chunks import Chunks
from ._live import readable
from ._scales import Scales
from ._value import PerSampleGrads
from ._versions import Versions, versions


@dataclass(frozen=True)
class Options:
    """The keyword options of `gf.per_sample_grads`."""

    wrt: Selection | None
    engine: str
    chunk_size: str | int | None
    has_aux: bool
    randomness: str
    seed: int
    verify: str | bool
    loss_scale: float | None
    batched: bool


@dataclass(frozen=True)
class Evaluation:
    """One call, by whichever engine."""

    options: Options
    call: str
    calls: list[Call]
    given: Tensors  # the parameters, not detached
    positions: list[Tensor]
    watched: list[Tensor]
    noticed: Noticed
    plans: Plans
    slow: set[str] = field(default_factory=set)

    def value(self, engine: str, reason: str) -> PerSampleGrads:
        """The gradients by this engine."""
        source = self._source(engine)
        params = self.calls[0].params
        chunks = Chunks.choose(self.options.chunk_size, params, source.size, whole=engine == "factored")
        whole = slice(0, source.size)
        parts: list[tuple[At, Block]] = []
        # Rows of the first chunk are computed to learn whether they can be; they are kept if they are all.
        for at in [whole] if 0 < source.size <= chunks.size else source.plan(chunks.size):
            compute = source.values if parts else source.rows
            parts += chunks.computed(self.call, compute, at, source.size)
            if count(parts[-1][0]) < source.size:
                parts = [(piece, block._replace(grads={})) for piece, block in parts]
        values = _values(parts, params)
        check_weights(self.call, values.weights)
        kept = bool(values.grads)
        held = KeptSource(values, source if values.unused is None else None) if kept else source
        watched = () if kept else versions(self.watched)
        made = self._made(engine, reason, values, held, chunks, watched)
        return replace(made, _held=versions(tensors(values.grads)))

    def losses(self, engine: str) -> Weighted:
        """Losses and weights alone, by forward passes in chunks."""
        # under no_grad, but where the loss may differentiate inside
        source = self._native(engine, graph=engine == "loop") if self.options.batched else self._source(engine)
        chunks = Chunks.choose(self.options.chunk_size, self.calls[0].params, source.size)
        whole = slice(0, source.size)
        parts: list[tuple[At, Block]] = []
        for at in [whole] if 0 < source.size <= chunks.size else source.plan(chunks.size):
            parts += chunks.computed(self.call, source.values, at, source.size)
        values = _values(parts, self.calls[0].params)
        check_weights(self.call, values.weights)
        return Weighted(values.losses, values.weights)

    def live(self, engine: str, reason: str, chunk: int, *, rows: bool = True) -> PerSampleGrads:
        """The gradients with the derivative that the tensors given to the call carry; without `rows`, losses alone.

        Chunks are those of a value that was computed before, since what torch alone can draw belongs to them.
        """
        given = self.given
        calls = [replace(call, params={name: given[name] for name in call.params}, fixed=given) for call in self.calls]
        parts: list[tuple[At, Block]] = []
        for call, positions in zip(calls, self.positions, strict=True):
            compute = live(call, batched=self.options.batched, looped=engine == "loop")
            if self.options.batched:
                block = compute(slice(0, 0), rows)
                parts.append((slice(0, len(block.losses)), block))
            else:
                parts += [(positions[at], compute(at, rows)) for at in spans(call.size, chunk)]
        values = _values(parts, calls[0].params)
        if readable(values.weights):
            check_weights(self.call, values.weights.detach())
        size = len(values.losses)
        chunks = Chunks.choose(None, calls[0].params, size, whole=True)
        made = self._made(engine, reason, values, KeptSource(values, None), chunks, ())
        return replace(made, _live=True)

    def _made(
        self,
        engine: str,
        reason: str,
        values: Block,
        held: Source,
        chunks: Chunks,
        watched: Versions,
    ) -> PerSampleGrads:
        scales, unscaling = Scales(), self.options.loss_scale
        if unscaling is not None:
            shape, device = values.losses.shape, values.losses.device  # not full_like, which a vmap around would follow
            scales = scales.times(torch.full(shape, 1 / unscaling, dtype=torch.float64, device=device))
        params = self.calls[0].params
        return PerSampleGrads(
            names=tuple(params),
            batch_size=len(values.losses),
            engine=engine,
            _losses=values.losses,
            _weights=values.weights,
            _aux=values.aux,
            _source=held,
            _shapes=params,
            _scales=scales,
            _chunks=chunks,
            _reason=reason,
            _uses=self.noticed.uses,
            _slow=self.slow,
            _watched=watched,
        )

    def live_or_looped(self, engine: str, chunk: int, *, rows: bool) -> PerSampleGrads:
        """The same as `engine` answered, for a backward pass: by torch.func where it can."""
        if engine != "loop":
            try:
                return self.live("vmap", "run again", chunk, rows=rows)
            except Exception as error:
                if self.limit(error) is None:
                    raise
        return self.live("loop", "run again", chunk, rows=rows)

    def limit(self, error: Exception) -> Limit | None:
        """Why torch.func cannot run the loss; None for the user's own error.

        What torch says of itself is known by its words, and else by trying: an error that sample 0 alone does not raise
        outside of vmap is a limitation.
        """
        if (known := limitation(error)) is not None or not isinstance(error, (RuntimeError, NotImplementedError)):
            return known
        if out_of_memory(error):  # one sample would fit: no limitation, and a loop no answer
            return None
        try:
            self._source("loop").rows(slice(0, 1))
        except Exception:
            return None
        return limit_of(error, " ".join(str(error).split())[:200])

    def alone(self) -> Tensors:
        """The row of sample 0 by one autograd call."""
        first = self._source("loop").rows(slice(0, 1))
        scale = 1 / (self.options.loss_scale or 1.0)
        return {name: scale * gradient.dense()[0] for name, gradient in first.grads.items()}

    def graphs(self, value: PerSampleGrads) -> Iterator[tuple[Tensor, Traced]]:
        """The losses of `value` again, a chunk at a time, with an ordinary graph behind them, and whose they are.

        Those of the engine "vmap" by the loop: a loss that differentiates inside, or registers hooks, runs under
        `vmap(grad)` and not under vmap alone. What torch alone can draw is a chunk's, which the loop would not draw.
        """
        looped = value.engine == "vmap" and not self.options.batched and not self.noticed.drew_otherwise
        for source, positions in zip(self._forwards("loop" if looped else value.engine), self.positions, strict=True):
            own = torch.arange(source.size) if self.options.batched else positions
            for at in source.plan(value._chunks.size):
                yield own[at], source.traced(at)

    def factors(self) -> Iterator[tuple[Gradients, Tensor, float]]:
        """Rows as factors, none formed, with their weights and what the rows were multiplied by; a chunk at a time.

        Whose an entry is can be told of two samples at least, so one that is alone in its chunk is run twice. A chunk
        without weight is left out.
        """
        chunk, batched = self.options.chunk_size, self.options.batched
        for source in self._forwards("factored"):
            size = chunk if isinstance(chunk, int) and not batched else max(source.size, 1)
            for at in source.plan(size):
                traced, kept = source.traced(at), slice(0, count(at) if not batched else source.size)
                check_weights(self.call, traced.weights)
                counted = (traced.weights > 0).nonzero()[:, 0].cpu()
                if not len(counted):
                    continue
                if len(counted) == 1 and not batched:
                    traced, kept = source.traced(at_positions(at)[counted].repeat(2)), slice(0, 1)
                backward, scale = traced.swap.backward, traced.scale
                found = capture(
                    traced.losses, traced.leaves, Plans(), backward, scale=scale, vmapped=not batched, form=False
                )
                yield select(found.gradients, kept), traced.weights[kept], scale

    def _source(self, engine: str) -> Source:
        parts = [self._differentiated(engine, *pair) for pair in zip(self.calls, self._forwards(engine), strict=True)]
        return parts[0] if len(parts) == 1 else JoinedSource(parts, self.positions)

    def _differentiated(self, engine: str, call: Call, forward: Traceable) -> Source:
        if engine != "factored":
            return forward
        if self.options.batched:  # the forward pass has been run, and is run once
            return KeptSource(factored(call, forward.traced(slice(0, forward.size)), self.plans, vmapped=False), None)
        return FactoredSource(call, forward, self.plans)

    def _forwards(self, engine: str) -> Sequence[Traceable]:
        if self.options.batched:
            return [self._native(engine)]
        scan = _SCANS[engine]
        return [LoopSource(call) if engine == "loop" else VmapSource(call, self.slow, scan) for call in self.calls]

    def _native(self, engine: str, *, graph: bool = True) -> Traceable:
        try:
            return CotangentSource.run(self.calls[0], vmapped=engine != "loop", scan=_SCANS[engine], graph=graph)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            got = "out of memory in the forward pass of the whole batch, which batched=True runs as one"
            do = "Pass a smaller batch and join with gf.concatenate or gf.Accumulator, or write the loss of one sample."
            text = message(self.call, got=got, expected="a batch that fits", do=do)
            raise torch.OutOfMemoryError(text) from error


# The factored engine reads the graph of a scan by hand; torch.func differentiates plain operations.
_SCANS: dict[str, Scans] = {"factored": "fast", "vmap": "plain", "loop": None}


def _values(parts: list[tuple[At, Block]], params: Tensors) -> Block:
    """The parts in the order of the samples; gradients only where one part is all."""
    if not parts:
        like = next(iter(params.values()))
        return Block({}, like.new_zeros(0), like.new_zeros(0, dtype=wide(like.dtype)))
    return parts[0][1] if len(parts) == 1 else gathered(parts)
