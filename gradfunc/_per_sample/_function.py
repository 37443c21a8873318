"""`per_sample_grads`: reading the call, the choice of engine."""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._engines import (
    Call,
    CotangentSource,
    Draws,
    JoinedSource,
    KeptSource,
    LoopSource,
    Noticed,
    Rows,
    Source,
    VmapSource,
    limitation,
    out_of_memory,
)
from .._errors import GradfuncWarning, kind_of, message, one_of
from .._tree import At, Group, Tensors, count, map_nests, read_batch, read_groups, scattered, tensors_of, wide
from .._weights import check_weights
from ._chunks import Chunks
from ._indices import sample_ids
from ._value import PerSampleGrads

Selection = str | Sequence[str] | Callable[[str, Tensor], bool]


@dataclass
class _Learnt:
    """What calls of one function have shown; shared by `f.at(...)`."""

    refused: str | None = None  # why vmap could not run the loss: later calls go to the loop at once, without a warning
    warned_of_draws: bool = False


@dataclass(frozen=True)
class Options:
    """The keyword options of `gf.per_sample_grads`."""

    wrt: Selection | None = None
    engine: str = "auto"
    chunk_size: str | int | None = "auto"
    has_aux: bool = False
    randomness: str = "different"
    seed: int = 0
    loss_scale: float | None = None
    batched: bool = False


@dataclass(frozen=True, eq=False)
class PerSampleGradsFunction:
    """`f(params, *args, **kwargs) -> PerSampleGrads`. Made by `gf.per_sample_grads`."""

    loss: Callable[..., Any]
    options: Options
    step: int | None = None
    index: Any = None
    call: str = "gf.per_sample_grads(loss)"
    _learnt: _Learnt = field(default_factory=_Learnt, repr=False)

    def at(self, step: int, index: Tensor | Sequence[int] | None = None) -> PerSampleGradsFunction:
        """The same function with its random draws named: they depend on (seed, step, sample id) and nothing else.

        Args:
            step: of the training, or whatever tells one evaluation from another.
            index: `[B]` integers that identify the samples, such as their positions in the data set; by default their
                positions in the batch. A sample draws the same numbers in whichever batch, chunk or order it comes.

        Raises:
            TypeError: `step` is not an int.
            ValueError: a negative step; an index beside `batched=True`, where draws belong to the batch.

        Example:
            >>> import torch, gradfunc as gf
            >>> f = gf.per_sample_grads(lambda p, x: torch.nn.functional.dropout(p["w"] * x).sum())
            >>> p, x = {"w": torch.ones(4)}, torch.ones(3, 4)
            >>> a = f.at(0, index=[7, 8, 9])(p, x)
            >>> b = f.at(0, index=[9])(p, x[:1])
            >>> torch.equal(a.select([2]).norms(), b.norms())
            True
        """
        call = f"{self.call}.at(step, index)"
        if not isinstance(step, int) or isinstance(step, bool):
            raise TypeError(message(call, got=f"step={step!r}", expected="an int"))
        if not 0 <= step < 2**63:
            raise ValueError(message(call, got=f"step={step}", expected="0 <= step < 2**63"))
        if index is not None and self.options.batched:
            do = "The batch runs as one, so its draws depend on seed and step alone."
            raise ValueError(message(call, got="an index beside batched=True", expected="index=None", do=do))
        return dataclasses.replace(self, step=step, index=index)

    def __call__(self, params: Mapping[str, Tensor], /, *args: Any, **kwargs: Any) -> PerSampleGrads:
        """The gradients of every sample of the batch `args, kwargs` at `params`."""
        call = f"{self.call}(params, ...)"
        _check_modes(call, params, args, kwargs)
        selected = _selected(call, params, self.options.wrt)
        fixed = {name: value.detach() for name, value in params.items()}
        if self.options.batched:
            batch = read_batch(call, args, kwargs, rows=False)
            groups = [Group(torch.arange(1), batch)]
        else:
            groups = read_groups(call, args, kwargs)
        size = sum(len(group.positions) for group in groups)
        ids = sample_ids(call, self.index, size)
        noticed = Noticed()
        calls = [
            Call(
                call,
                self.loss,
                {name: fixed[name] for name in selected},
                fixed,
                group.batch,
                Draws(self.options.randomness, self.options.seed, self.step or 0, ids[group.positions], noticed),
                self.options.has_aux,
                self.options.loss_scale or 1.0,
            )
            for group in groups
        ]
        watched = [*fixed.values(), *tensors_of((args, kwargs))]
        run = _Evaluation(self.options, call, calls, [group.positions for group in groups], watched)
        value = self._chosen(run)
        self._warn_of_draws(call, noticed)
        return value

    def _chosen(self, run: _Evaluation) -> PerSampleGrads:
        if self.options.engine != "auto":
            return run.value(self.options.engine, "as asked")
        if self._learnt.refused:
            return run.value("loop", self._learnt.refused)
        try:
            return run.value("vmap", "torch.func runs this loss")
        except Exception as error:
            if (limit := run.limit(error)) is None:
                raise
        reason = f"torch.func cannot run this loss ({limit})"
        value = run.value("loop", reason)  # the user's own error, if it is one, passes here
        self._learnt.refused = reason
        do = "Results are exact but cost one backward pass a sample; pass engine='loop' to say that this is meant."
        warnings.warn(f"{run.call}: {reason}; using one autograd call a sample. {do}", GradfuncWarning, stacklevel=3)
        return value

    def _warn_of_draws(self, call: str, noticed: Noticed) -> None:
        if not noticed.drew or self.step is not None or self._learnt.warned_of_draws:
            return
        self._learnt.warned_of_draws = True
        do = "Name the draws with f.at(step, index=ids)(params, ...), or use .eval()."
        text = f"{call}: the loss draws random numbers, and without a step every call draws the same. {do}"
        warnings.warn(text, GradfuncWarning, stacklevel=3)


@dataclass(frozen=True)
class _Evaluation:
    """One call, by whichever engine."""

    options: Options
    call: str
    calls: list[Call]
    positions: list[Tensor]
    watched: list[Tensor]
    slow: set[str] = field(default_factory=set)

    def value(self, engine: str, reason: str) -> PerSampleGrads:
        """The gradients by this engine."""
        source = self._source(engine)
        params = self.calls[0].params
        chunks = Chunks.choose(self.options.chunk_size, params, source.size)
        whole = slice(0, source.size)
        parts: list[tuple[At, Rows]] = []
        # Rows of the first chunk are computed to learn whether they can be; they are kept if they are all.
        for at in [whole] if 0 < source.size <= chunks.size else source.plan(chunks.size):
            compute = source.values if parts else source.rows
            parts += chunks.computed(self.call, compute, at, source.size)
            if count(parts[-1][0]) < source.size:
                parts = [(piece, rows._replace(grads={})) for piece, rows in parts]
        values = _values(parts, params)
        check_weights(self.call, values.weights)
        kept = bool(values.grads)
        scale = self.options.loss_scale
        held = KeptSource(values, source if values.unused is None else None) if kept else source
        return PerSampleGrads(
            names=tuple(params),
            batch_size=source.size,
            engine=engine,
            _losses=values.losses,
            _weights=values.weights,
            _aux=values.aux,
            _source=held,
            _shapes=params,
            _scale=None if scale is None else torch.full_like(values.losses, 1 / scale, dtype=torch.float64),
            _chunks=chunks,
            _reason=reason,
            _slow=self.slow,
            _watched=() if kept else tuple((tensor, tensor._version) for tensor in self.watched),
        )

    def limit(self, error: Exception) -> str | None:
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
        return " ".join(str(error).split())[:200]

    def _source(self, engine: str) -> Source:
        if self.options.batched:
            return self._native(vmapped=engine == "vmap")
        parts = [VmapSource(call, self.slow) if engine == "vmap" else LoopSource(call) for call in self.calls]
        return parts[0] if len(parts) == 1 else JoinedSource(parts, self.positions)

    def _native(self, *, vmapped: bool) -> Source:
        try:
            return CotangentSource.run(self.calls[0], vmapped=vmapped)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            got = "out of memory in the forward pass of the whole batch, which batched=True runs as one"
            do = "Pass a smaller batch and join with gf.concatenate or gf.Accumulator, or write the loss of one sample."
            text = message(self.call, got=got, expected="a batch that fits", do=do)
            raise torch.OutOfMemoryError(text) from error


def _values(parts: list[tuple[At, Rows]], params: Tensors) -> Rows:
    """The parts in the order of the samples; gradients only where one part is all."""
    if not parts:
        like = next(iter(params.values()))
        return Rows({}, like.new_zeros(0), like.new_zeros(0, dtype=wide(like.dtype)))
    if len(parts) == 1:
        return parts[0][1]
    where = [at for at, _ in parts]

    def joined(values: list[Tensor]) -> Tensor:
        return scattered(list(zip(where, values, strict=True)))

    rows = [rows for _, rows in parts]
    aux = None if rows[0].aux is None else map_nests(joined, [r.aux for r in rows])
    return Rows({}, joined([r.losses for r in rows]), joined([r.weights for r in rows]), None, aux)


def per_sample_grads(
    loss: Callable[..., Any],
    *,
    wrt: Selection | None = None,
    engine: str = "auto",
    chunk_size: str | int | None = "auto",
    has_aux: bool = False,
    randomness: str = "different",
    seed: int = 0,
    loss_scale: float | None = None,
    batched: bool = False,
) -> PerSampleGradsFunction:
    """The gradient of every sample: a function `f(params, *args, **kwargs) -> PerSampleGrads`.

    Row i is `grad(loss)(params, *sample_i)`, that is `vmap(grad(loss))`, of the numerator where the loss is
    `Weighted`. Arguments reach `loss` as they are; tensors (in any nest) carry the samples in dimension 0, other
    leaves are the same for every sample, as is what `gf.static` marks; `gf.ragged` lists samples of different shapes.

    Args:
        loss: `loss(params, *sample, **sample) -> scalar | Weighted` of ONE sample, without batch dimension.
        wrt: which parameters: a regex (`re.fullmatch`), exact names, or a predicate(name, tensor); default: every
            floating one.
        engine: "vmap" (`vmap(grad)`), "loop" (one autograd call a sample: whatever autograd can differentiate), or
            "auto": vmap, and the loop where torch.func says that it cannot.
        chunk_size: samples computed at once; None for all; "auto" keeps rows within 1/16 of the machine's memory, and
            halves its choice where memory runs out all the same.
        has_aux: the loss returns `(value, aux)`, aux a nest of tensors; `g.aux` has the samples in dimension 0.
        randomness: "different" draws for each sample, the "same" for all, or an "error" if the loss draws at all.
            Dropout and the like are a function of (seed, step, sample id, ordinal of the draw), on every engine, device
            and chunk size; `f.at(step, index=ids)` names step and ids. Draws that torch does by itself (such as
            `torch.multinomial`) come from a generator seeded by them. Global generators stay as they are.
        seed: of those draws.
        loss_scale: multiply each numerator by this before differentiating, so that half types do not underflow; the
            factor is taken out again in the accumulation dtype. A power of two is exact.
        batched: `loss` runs the whole batch natively and returns one loss a sample, `[B]` or `Weighted` of two.
            Row i is then the gradient of `losses[i]`, coupling between samples included.

    Raises:
        TypeError: `loss` is not callable; params is not `{name: tensor}`; the loss returns something else.
        ValueError: an unknown option; tensors that disagree in B; a loss of another shape; no differentiable
            parameter, or none that `wrt` matches; negative weights.
        RuntimeError: inference mode; a query that must run the model again after something changed in place.
        torch.OutOfMemoryError: not even one sample fits, or not `chunk_size` of them.

    Example:
        >>> import gradfunc as gf
        >>> model = gf.stateless(torch.nn.Linear(4, 3))
        >>> def loss(params, x, y):
        ...     return gf.losses.cross_entropy(model.sample(params, x), y)
        >>> g = gf.per_sample_grads(loss)(model.params, torch.ones(5, 4), torch.tensor([0, 1, 2, 0, 1]))
        >>> g.norms().shape, g.mean()["weight"].shape
        (torch.Size([5]), torch.Size([3, 4]))
    """
    options = Options(wrt, engine, chunk_size, has_aux, randomness, seed, loss_scale, batched)
    call = "gf.per_sample_grads(loss)"
    check_options(call, loss, options)
    return PerSampleGradsFunction(loss, options, call=call)


def check_options(call: str, loss: Any, options: Options) -> None:
    if not callable(loss):
        raise TypeError(message(call, got=kind_of(loss), expected="a function loss(params, *sample)"))
    one_of(call, "engine", options.engine, ("auto", "vmap", "loop"))
    one_of(call, "randomness", options.randomness, ("different", "same", "error"))
    if not isinstance(options.seed, int) or isinstance(options.seed, bool):
        raise TypeError(message(call, got=f"seed={options.seed!r}", expected="an int"))
    for name in ("has_aux", "batched"):
        if not isinstance(getattr(options, name), bool):
            raise TypeError(message(call, got=f"{name}={getattr(options, name)!r}", expected="True or False"))
    wrt, chunk, scale = options.wrt, options.chunk_size, options.loss_scale
    if not (wrt is None or isinstance(wrt, (str, Sequence)) or callable(wrt)):
        expected = "a regex, a sequence of names, or a predicate(name, tensor)"
        raise TypeError(message(call, got=f"wrt={wrt!r}", expected=expected))
    good = chunk in (None, "auto") or (isinstance(chunk, int) and chunk >= 1)
    if not good or isinstance(chunk, bool):
        expected = "a positive int, None (all at once) or 'auto'"
        raise ValueError(message(call, got=f"chunk_size={chunk!r}", expected=expected))
    if scale is not None and not (isinstance(scale, (int, float)) and 0 < scale < math.inf):
        expected = "a positive finite number, or None"
        raise ValueError(message(call, got=f"loss_scale={scale!r}", expected=expected, do="Such as 2.0**16."))


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
