"""`per_sample_grads`: reading the call, the choice of engine and of chunks."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._engines import Call, CotangentSource, LoopSource, Rows, Source, VmapSource, limitation
from .._errors import GradfuncWarning, kind_of, message, one_of
from .._tree import Batch, Tensors, read_batch, tensors_of, wide
from .._weights import Weighted, check_weights
from ._value import PerSampleGrads, spans

Selection = str | Sequence[str] | Callable[[str, Tensor], bool]


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
        if isinstance(error, torch.OutOfMemoryError):  # one sample would fit: no limitation, and a loop no answer
            return None
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


def _streamed_losses(source: Source, chunk: int, made: Call) -> Rows:
    """Losses and weights without keeping rows; the first chunk's rows are computed to learn whether they can be."""
    parts: list[Weighted] = []
    for start, stop in spans(source.size, chunk):
        rows = source.rows(start, stop) if start == 0 else None
        parts.append(Weighted(rows.losses, rows.weights) if rows else source.losses(start, stop))
    if not parts:
        like = next(iter(made.params.values()))
        return Rows({}, like.new_zeros(0), like.new_zeros(0, dtype=wide(like.dtype)))
    return Rows({}, torch.cat([p.numerator for p in parts]), torch.cat([p.weight for p in parts]))
