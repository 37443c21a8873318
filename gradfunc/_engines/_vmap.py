"""`vmap(grad(loss))` over a chunk of samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._factors import Gradients, from_rows
from .._swap import Scans, Swap
from .._tree import At, Tensors, at_positions, count, map_tensors
from ._call import Call
from ._loop import LoopSource
from ._source import Block, Traced, spans


@dataclass(frozen=True)
class VmapSource:
    """`vmap(grad(loss))` over a chunk of samples.

    `slow` collects the operators for which torch has no batching rule, so that it runs them sample by sample; `scan` is
    what recurrent operators become.
    """

    call: Call
    slow: set[str] = field(default_factory=set)
    scan: Scans = "plain"

    @property
    def size(self) -> int:
        """Number of samples."""
        return self.call.size

    def plan(self, chunk: int) -> list[At]:
        """Stretches."""
        return spans(self.size, chunk)

    def rows(self, at: At) -> Block:
        """One vmapped call."""
        grads, value = self._vmapped(lambda loss: torch.func.grad(loss, has_aux=True), at, self.call.params)
        return self.call.unaliased(_block(from_rows(grads), value))

    def values(self, at: At) -> Block:
        """One vmapped forward pass."""
        with torch.no_grad():
            value = self._vmapped(_aux_only, at, self.call.params)
        return self.call.unaliased(_block({}, value))

    def unused(self, at: At) -> Tensor:
        """Asked of one sample: under vmap every sample runs the same graph."""
        return LoopSource(self.call).unused(at_positions(at)[:1]).expand(count(at), -1)

    def live(self, at: At, rows: bool) -> Block:
        """With the derivative that parameters and batch carry, of torch.func or of autograd."""
        if not rows:
            return _block({}, self._vmapped(_aux_only, at, self.call.params))
        grads, value = self._vmapped(lambda loss: torch.func.grad(loss, has_aux=True), at, self.call.params)
        return _block(from_rows(grads), value)

    def traced(self, at: At) -> Traced:
        """A vmapped forward pass leaves an ordinary graph behind."""
        leaves, swap = self.call.leaves(), self.call.swap(self.scan)
        with torch.enable_grad():
            losses, weights, *aux = self._vmapped(_aux_only, at, leaves, swap)
        detached = map_tensors(torch.Tensor.detach, aux[0]) if aux else None
        return Traced(leaves, losses, weights.detach(), detached, swap, self.call.loss_scale)

    def _vmapped(
        self,
        transform: Callable[[Callable[..., Any]], Callable[..., Any]],
        at: At,
        params: Tensors,
        swap: Swap | None = None,
    ) -> Any:
        """`transform(loss)` mapped over samples; the loss returns what is differentiated, and its value beside it."""
        call = self.call
        swap = swap or call.swap(self.scan)
        # a loss may write to its input: a selection is a copy, a stretch is not
        tensors = [tensor[at].clone() if isinstance(at, slice) else tensor[at] for tensor in call.batch.tensors]
        ids = call.draws.ids[at]
        same = call.draws.randomness == "same"
        with call.running(swap, int(ids[0]), vmapped=True), _noted_fallbacks(self.slow):

            def loss(params: Tensors, sample: Tensor, *tensors: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
                swap.begin(sample)
                value = call.value(params, list(tensors), batched=False)
                return call.scaled(value.numerator), value if call.has_aux else value[:2]

            in_dims = (None, None if same else 0, *[0] * len(tensors))
            mapped = torch.func.vmap(transform(loss), in_dims=in_dims, randomness=call.draws.randomness)
            return mapped(params, ids.new_zeros(()) if same else ids.to(call.device), *tensors)


def _aux_only(loss: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given: loss(*given)[1]


def _block(grads: Gradients, value: tuple[Any, ...]) -> Block:
    numerator, weight, *aux = value
    return Block(grads, numerator, weight, None, aux[0] if aux else None)


@contextmanager
def _noted_fallbacks(slow: set[str]) -> Iterator[None]:
    """Turn torch's warnings of a missing batching rule into entries of `slow`; other warnings pass."""
    pattern = "There is a performance drop because we have not yet implemented the batching rule for"
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.filterwarnings("always", message=pattern)
            yield
    finally:  # outside of the recording, which would record them again
        for warning in caught:
            text = str(warning.message)
            if text.startswith(pattern):
                slow.add(text.removeprefix(pattern).split()[0].rstrip("."))
            else:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
