"""How rows of the per-sample gradient are computed: `vmap(grad)`, one autograd call a sample, or rows of cotangents.

A *source* answers `rows(start, stop)` with the gradients, losses and weights of those samples. It holds the
parameters and the batch (or, for a batched loss, the graph of one forward pass) and keeps nothing else: asked
twice, it computes twice and draws the same random numbers.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ._random import RefuseDraws, forked
from ._tree import Batch, Tensors
from ._weights import Weighted, as_weighted

# What torch.func says of itself when it cannot run a function that autograd can. Anything else is the user's
# own error and passes untouched. Collected from torch 2.13.
_LIMITATIONS = re.compile(
    r"data-dependent control flow"
    r"|vmap: It looks like you're"
    r"|vmap: inplace arithmetic"
    r"|vmap: We do not support batching"
    r"|inside of a function being transformed by a functorch|inside a functorch transform"
    r"|Batch norm got a batched tensor"
    r"|'Sparse\w+' backend"
    r"|Cannot access storage of"
    r"|vmap: aten::"
    r"|Batching rule not implemented"
    r"|could not generate (a )?fallback"
    r"|doesn't match the broadcast shape"
    r"|setup_context"
    r"|generate_vmap_rule"
    r"|saved tensor hooks"
    r"|torch\.func.* (don't|doesn't|do not|does not) yet support"
    r"|not (yet )?supported (under|in|inside|with) (vmap|functorch|torch\.func)"
    r"|Cannot access data pointer of Tensor|data_ptr"
    r"|does not support .*functorch|functorch.*does not support"
    r"|compiled backward function within vmap"
)


def limitation(error: Exception) -> str | None:
    """The first line of `error` if it is a limitation of torch.func, None if it is the user's own error."""
    text = str(error)
    known = isinstance(error, (RuntimeError, NotImplementedError)) and _LIMITATIONS.search(text)
    return text.strip().splitlines()[0][:200] if known else None


class Rows(NamedTuple):
    """Gradients `{name: [b, *shape]}`, numerators `[b]` and weights `[b]` of some samples.

    `unused` names the parameters that none of these losses depends on, where computing the rows told; else None.
    """

    grads: Tensors
    losses: Tensor
    weights: Tensor
    unused: tuple[str, ...] | None = None


class Source(Protocol):
    """Where the rows come from."""

    @property
    def size(self) -> int:
        """Number of samples."""

    def rows(self, start: int, stop: int) -> Rows:
        """Compute the rows of samples start to stop."""

    def losses(self, start: int, stop: int) -> Weighted:
        """Only their numerators and weights."""

    def unused(self) -> tuple[str, ...]:
        """Names of the parameters that no sample's loss depends on."""


@dataclass(frozen=True)
class Call:
    """One call `f(params, *args, **kwargs)`: what every source needs.

    `params` are the selected ones, detached; `fixed` is the whole dictionary as it was given.
    """

    call: str
    loss: Callable[..., Any]
    params: Tensors
    fixed: Tensors
    batch: Batch
    randomness: str
    seed: int

    def value(self, params: Tensors, tensors: list[Tensor], *, batched: bool) -> Weighted:
        """The user's loss on some tensors of the batch."""
        args, kwargs = self.batch.rebuild(tensors)
        return as_weighted(self.call, self.loss({**self.fixed, **params}, *args, **kwargs), batched=batched)

    def leaves(self) -> Tensors:
        """Fresh leaves on the parameters' storage."""
        return {name: value.detach().requires_grad_() for name, value in self.params.items()}

    def draws(self, stream: int) -> AbstractContextManager[None]:
        """Random numbers of one run: one stream a sample or chunk, or the same for all."""
        devices = {tensor.device for tensor in (*self.params.values(), *self.batch.tensors)}
        return forked(self.seed, 0 if self.randomness == "same" else stream, devices)

    def unaliased(self, rows: Rows) -> Rows:
        """`rows`, detached, with copies of what shares storage with parameters or batch: results are fresh."""
        inputs = {t.untyped_storage().data_ptr() for t in (*self.fixed.values(), *self.batch.tensors)}

        def fresh(tensor: Tensor) -> Tensor:
            tensor = tensor.detach()
            return tensor.clone() if tensor.untyped_storage().data_ptr() in inputs else tensor

        grads = {name: fresh(value) for name, value in rows.grads.items()}
        return Rows(grads, fresh(rows.losses), fresh(rows.weights))

    def guard(self) -> AbstractContextManager[Any]:
        """What `randomness="error"` means outside vmap."""
        return RefuseDraws(self.call) if self.randomness == "error" else nullcontext()


@dataclass(frozen=True)
class VmapSource:
    """`vmap(grad(loss))` over a chunk of samples.

    `slow` collects the operators for which torch has no batching rule, so that it runs them sample by sample.
    """

    call: Call
    slow: set[str] = field(default_factory=set)

    @property
    def size(self) -> int:
        """Number of samples."""
        return self.call.batch.size or 0

    def rows(self, start: int, stop: int) -> Rows:
        """One vmapped call."""

        def numerator(params: Tensors, *tensors: Tensor) -> tuple[Tensor, Weighted]:
            out = self.call.value(params, list(tensors), batched=False)
            return out.numerator, out

        grad = torch.func.grad(numerator, has_aux=True)
        grads, (losses, weights) = self._vmapped(grad, start, stop)
        return self.call.unaliased(Rows(grads, losses, weights))

    def losses(self, start: int, stop: int) -> Weighted:
        """One vmapped forward pass."""
        with torch.no_grad():
            out: Weighted = self._vmapped(lambda p, *t: self.call.value(p, list(t), batched=False), start, stop)
        rows = self.call.unaliased(Rows({}, *out))
        return Weighted(rows.losses, rows.weights)

    def unused(self) -> tuple[str, ...]:
        """Asked of sample 0: under vmap every sample runs the same graph."""
        return LoopSource(self.call).unused_by(range(min(1, self.size)))

    def _vmapped(self, fn: Callable[..., Any], start: int, stop: int) -> Any:
        tensors = [tensor[start:stop].clone() for tensor in self.call.batch.tensors]  # a loss may write to its input
        in_dims = (None, *[0] * len(tensors))
        mapped = torch.func.vmap(fn, in_dims=in_dims, randomness=self.call.randomness)
        with self.call.draws(start), _noted_fallbacks(self.slow):
            return mapped(self.call.params, *tensors)


@dataclass(frozen=True)
class LoopSource:
    """One autograd call a sample: works for whatever autograd can differentiate."""

    call: Call

    @property
    def size(self) -> int:
        """Number of samples."""
        return self.call.batch.size or 0

    def rows(self, start: int, stop: int) -> Rows:
        """One forward and one backward pass a sample."""
        grads, values = [], []
        for i in range(start, stop):
            leaves, out = self._run(i)
            grads.append(gradients(out.numerator, leaves))
            values.append(Weighted(out.numerator.detach(), out.weight))
        return _rows_of(_stacked_grads(grads, leaves), leaves, stop - start, _stacked(values))

    def losses(self, start: int, stop: int) -> Weighted:
        """One forward pass a sample."""
        return _stacked([self._run(i)[1] for i in range(start, stop)])

    def unused(self) -> tuple[str, ...]:
        """Asked of every sample, since each may take its own branch."""
        return self.unused_by(range(self.size))

    def unused_by(self, samples: range) -> tuple[str, ...]:
        """Parameters that none of these samples' losses depends on."""
        left = dict(self.call.params)
        for i in samples:
            leaves, out = self._run(i)
            grads = gradients(out.numerator, leaves)
            left = {name: value for name, value in left.items() if grads[name] is None}
        return tuple(left)

    def _run(self, i: int) -> tuple[Tensors, Weighted]:
        leaves = self.call.leaves()
        # Always with a graph: a loss may differentiate inside (a gradient penalty).
        with torch.enable_grad(), self.call.draws(i), self.call.guard():
            return leaves, self.call.value(leaves, [t[i].clone() for t in self.call.batch.tensors], batched=False)


@dataclass(frozen=True)
class CotangentSource:
    """A batch run natively once, then one vjp a row: the gradient of `losses[i]`, coupling included."""

    leaves: Tensors
    out: Weighted
    vmapped: bool

    @classmethod
    def run(cls, call: Call, *, vmapped: bool) -> CotangentSource:
        """Run the loss on the whole batch."""
        leaves = call.leaves()
        with torch.enable_grad(), call.draws(0), call.guard():
            return cls(leaves, call.value(leaves, [t.clone() for t in call.batch.tensors], batched=True), vmapped)

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.out.numerator)

    def rows(self, start: int, stop: int) -> Rows:
        """One vjp a row, vmapped or in a loop."""
        losses = self.out.numerator
        cotangents = torch.zeros(stop - start, len(losses), dtype=losses.dtype, device=losses.device)
        cotangents[:, start:stop].fill_diagonal_(1.0)
        if self.vmapped:
            grads = gradients(losses, self.leaves, cotangents, is_grads_batched=True)
        else:
            each = [gradients(losses, self.leaves, cotangent) for cotangent in cotangents]
            grads = _stacked_grads(each, self.leaves)
        return _rows_of(grads, self.leaves, stop - start, self.losses(start, stop))

    def losses(self, start: int, stop: int) -> Weighted:
        """Read off the one forward pass."""
        return Weighted(self.out.numerator[start:stop].detach().clone(), self.out.weight[start:stop].clone())

    def unused(self) -> tuple[str, ...]:
        """Parameters with no path to the losses."""
        grads = gradients(self.out.numerator, self.leaves, torch.ones_like(self.out.numerator))
        return tuple(name for name, value in grads.items() if value is None)


@contextmanager
def _noted_fallbacks(slow: set[str]) -> Iterator[None]:
    """Turn torch's warnings of a missing batching rule into entries of `slow`; other warnings pass."""
    pattern = "There is a performance drop because we have not yet implemented the batching rule for"
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message=pattern)
        try:
            yield
        finally:
            for warning in caught:
                text = str(warning.message)
                if text.startswith(pattern):
                    slow.add(text.removeprefix(pattern).split()[0].rstrip("."))
                else:
                    warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def gradients(
    loss: Tensor, leaves: Tensors, cotangent: Tensor | None = None, *, is_grads_batched: bool = False
) -> dict[str, Tensor | None]:
    """`autograd.grad` by name: dense, None where `loss` does not depend on a leaf. The graph is retained."""
    if not loss.requires_grad:
        return dict.fromkeys(leaves)
    grads = torch.autograd.grad(
        loss,
        list(leaves.values()),
        cotangent,
        retain_graph=True,
        allow_unused=True,
        is_grads_batched=is_grads_batched,
    )
    dense = [None if g is None else g.to_dense() if g.layout != torch.strided else g for g in grads]
    return dict(zip(leaves, dense, strict=True))


def _stacked_grads(each: list[dict[str, Tensor | None]], leaves: Tensors) -> dict[str, Tensor | None]:
    """One gradient a sample, stacked by name; None where no sample has one."""
    used = {name for grads in each for name, grad in grads.items() if grad is not None}
    return {
        name: torch.stack([torch.zeros_like(leaf) if (g := grads[name]) is None else g for grads in each])
        if name in used
        else None
        for name, leaf in leaves.items()
    }


def _rows_of(grads: dict[str, Tensor | None], leaves: Tensors, size: int, values: Weighted) -> Rows:
    """Rows with zeros for what is unused."""
    unused = tuple(name for name, grad in grads.items() if grad is None)
    full = {
        name: torch.zeros((size, *leaf.shape), dtype=leaf.dtype, device=leaf.device)
        if (g := grads[name]) is None
        else g
        for name, leaf in leaves.items()
    }
    return Rows(full, *values, unused)


def _stacked(values: list[Weighted]) -> Weighted:
    return Weighted(torch.stack([v.numerator.detach() for v in values]), torch.stack([v.weight for v in values]))
