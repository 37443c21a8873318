"""The Hessian of a batch's mean loss as an operator: its products with vectors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._cotangent import clips
from .._engines import CotangentSource, LoopSource, Traced, VmapSource, gradients, spans
from .._errors import GradfuncWarning, message
from .._per_sample._evaluation import Evaluation
from .._per_sample._function import PerSampleGradsFunction
from .._tree import Tensors, cast, tensors_of
from .._weights import check_weights, total


@dataclass(frozen=True, eq=False)
class MeanHessian:
    """Second derivatives of `sum numerators / sum weights` in the selected parameters, flattened in their order.

    A product is one backward pass through the graph of the gradient, which is kept where the batch is whole. (Against
    forward over reverse it costs less, and it is there for more operations.) Where the batch is in chunks, the graph of
    each is made again for every product, so that one lives at a time.

    Attributes:
        shapes: of the parameters, by name.
        dtype: the precision of the parameters, in which products are computed.
        weight: the total weight.
    """

    shapes: dict[str, torch.Size]
    dtype: torch.dtype
    weight: float
    _parts: Callable[[], Iterator[_Part]]

    @classmethod
    def of(
        cls, call: str, f: PerSampleGradsFunction, given: tuple[Any, Any, Any], dtype: torch.dtype | None
    ) -> MeanHessian:
        """At `(params, args, kwargs)`, computed in `dtype`; by default in float64 if the loss runs in it.

        Raises:
            ValueError: no samples, or none of weight above 0; weights or second derivatives that are not finite; a loss
                with clipped cotangents.
        """
        if dtype is None and any(value.dtype != torch.float64 for value in tensors_of(given[0])):
            try:
                return cls._at(call, f, cast(given, torch.float64))
            except (RuntimeError, TypeError, ValueError):
                pass  # what the loss closes over may be of another type; an error of its own comes again
        return cls._at(call, f, given if dtype is None else cast(given, dtype))

    @classmethod
    def _at(cls, call: str, f: PerSampleGradsFunction, given: tuple[Any, Any, Any]) -> MeanHessian:
        run = f.evaluation(*given)
        params = run.calls[0].params
        shapes = {name: value.shape for name, value in params.items()}
        kept: list[_Part] = []
        looped = f.options.engine == "loop"
        keeps = f.options.batched or not isinstance(f.options.chunk_size, int)
        try:
            weight = _weigh(call, _parts(call, run, looped), kept if keeps else None)
        except Exception as error:
            if looped or run.options.batched or (limit := run.limit(error)) is None:
                raise
            looped = True
            kept.clear()
            weight = _weigh(call, _parts(call, run, looped), kept if keeps else None)
            do = "Pass engine='loop' to say that this is meant."
            text = f"{call}: torch.func cannot run this loss ({limit}); running it sample by sample. {do}"
            warnings.warn(text, GradfuncWarning, stacklevel=5)
        if weight == 0:
            do = "The batch is empty, or every sample is ignored."
            raise ValueError(message(call, got="a total weight of 0", expected="a sample of weight > 0", do=do))
        dtype = next(iter(params.values())).dtype
        return cls(shapes, dtype, weight, lambda: iter(kept) if keeps else _parts(call, run, looped))

    @property
    def size(self) -> int:
        """P, the number of entries."""
        return sum(shape.numel() for shape in self.shapes.values())

    def product(self, vector: Tensor) -> Tensor:
        """`H v`, `[P]` in float64 on the CPU."""
        out = torch.zeros(self.size, dtype=torch.float64)
        for part in self._parts():
            found = part.product(self.named(vector))
            out += torch.cat([value.detach().to("cpu", torch.float64).flatten() for value in found.values()])
        return out / self.weight

    def named(self, vector: Tensor) -> Tensors:
        """A vector of `[P]` as `{name: tensor}`."""
        pieces = vector.split([shape.numel() for shape in self.shapes.values()])
        return {name: piece.reshape(shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)}


@dataclass(frozen=True, eq=False)
class _Part:
    """The gradient of some samples' summed numerators, with a graph behind it."""

    traced: Traced
    grads: Tensors

    @classmethod
    def of(cls, call: str, traced: Traced) -> _Part:
        if clips(traced.losses):
            got = "a loss with clipped cotangents, whose gradient is that of no function"
            do = "Ask it of the loss without gf.clip_cotangent."
            raise ValueError(message(call, got=got, expected="one that has a Hessian", do=do))
        with torch.enable_grad(), traced.swap.backward():
            found = gradients(traced.losses.sum(), traced.leaves, create_graph=True)
        return cls(traced, {name: grad for name, grad in found.items() if grad is not None and grad.requires_grad})

    def product(self, direction: Mapping[str, Tensor]) -> Tensors:
        leaves = self.traced.leaves
        out = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        if not self.grads:
            return out
        inner = torch.zeros((), dtype=self.traced.losses.dtype, device=self.traced.losses.device)
        with torch.enable_grad():
            for name, grad in self.grads.items():
                inner = inner + (grad * direction[name].to(grad)).sum().to(inner)
        with self.traced.swap.backward():
            found = gradients(inner, leaves)
        return out | {name: value for name, value in found.items() if value is not None}


def _parts(call: str, run: Evaluation, looped: bool) -> Iterator[_Part]:
    """Of the whole batch where it runs as one, else of stretches of it."""
    size = run.options.chunk_size
    for one in run.calls:
        if run.options.batched:
            source = CotangentSource.run(one, vmapped=False, scan="plain")
            yield _Part.of(call, source.traced(slice(0, source.size)))
            continue
        # of plain operations: fused ones have no second derivative
        forward = LoopSource(one, "plain") if looped else VmapSource(one, scan="plain")
        for at in spans(one.size, size if isinstance(size, int) else max(one.size, 1)):
            yield _Part.of(call, forward.traced(at))


def _weigh(call: str, parts: Iterator[_Part], kept: list[_Part] | None) -> float:
    """The total weight; parts are kept in the list."""
    weight = 0.0
    for part in parts:
        check_weights(call, part.traced.weights)
        weight += float(total(part.traced.weights))
        if kept is not None:
            kept.append(part)
    return weight
