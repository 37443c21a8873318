"""One call of a per-sample gradient function: what every source needs to run the user's loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._capture import Used
from .._errors import kind_of, message
from .._factors import mapped
from .._random import RefuseDraws, forked
from .._swap import Scans, Swap
from .._tree import Batch, Tensors, map_tensors, others_of, tensors_of
from .._weights import Weighted, as_weighted
from ._source import Block


@dataclass
class Noticed:
    """What running the loss has shown: whether it draws random numbers, and what its graph is."""

    drew: bool = False
    drew_otherwise: bool = False  # without a key: by torch itself
    uses: dict[str, list[Used]] = field(default_factory=dict)  # of each parameter, where the graph was read
    graphs: set[int] = field(default_factory=set)  # which graphs were


@dataclass(frozen=True)
class Draws:
    """What random numbers are a function of, besides the ordinal of a draw: seed, step and the samples' ids `[B]`."""

    randomness: str
    seed: int
    step: int
    ids: Tensor
    noticed: Noticed


class Value(NamedTuple):
    """What a loss returned: its numerator and weight, and the auxiliary nest (None if there is none)."""

    numerator: Tensor
    weight: Tensor
    aux: Any


@dataclass(frozen=True)
class Call:
    """One call `f(params, *args, **kwargs)`.

    Attributes:
        call: how messages repeat it.
        params: the selected parameters, detached.
        fixed: the whole dictionary as it was given.
        loss_scale: what numerators are multiplied by before they are differentiated; rows are gradients of that.
    """

    call: str
    loss: Callable[..., Any]
    params: Tensors
    fixed: Tensors
    batch: Batch
    draws: Draws
    has_aux: bool = False
    loss_scale: float = 1.0

    @property
    def size(self) -> int:
        """Number of samples, 0 where the batch does not say (a natively batched loss)."""
        return self.batch.size or 0

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self.params.values())).device

    def value(self, params: Tensors, tensors: list[Tensor], *, batched: bool) -> Value:
        """The user's loss on some tensors of the batch."""
        args, kwargs = self.batch.rebuild(tensors)
        out = self.loss({**self.fixed, **params}, *args, **kwargs)
        aux = None
        if self.has_aux:
            out, aux = self._with_aux(out)
        weighted = as_weighted(self.call, out, batched=batched)
        if batched and (
            lost := [t.shape for t in tensors_of(aux) if t.dim() == 0 or len(t) != len(weighted.numerator)]
        ):
            got = f"auxiliary values of shape {tuple(lost[0])} beside {len(weighted.numerator)} losses"
            raise ValueError(message(self.call, got=got, expected="the samples in dimension 0 of every tensor of aux"))
        return Value(*weighted, aux)

    def scaled(self, numerator: Tensor) -> Tensor:
        """What is differentiated."""
        if self.loss_scale > torch.finfo(numerator.dtype).max:
            got, expected = f"loss_scale={self.loss_scale} for a loss of {numerator.dtype}", "a finite number there"
            raise ValueError(message(self.call, got=got, expected=expected, do="Scale less, or return a float32 loss."))
        return numerator if self.loss_scale == 1 else numerator * self.loss_scale

    def leaves(self) -> Tensors:
        """Fresh leaves on the parameters' storage."""
        return {name: value.detach().requires_grad_() for name, value in self.params.items()}

    def swap(self, scan: Scans = None) -> Swap:
        """What makes draws a function of seed, step, sample and ordinal, and recurrences scans."""
        return Swap(self.call, self.draws.seed, self.draws.step, randomness=self.draws.randomness, scan=scan)

    @contextmanager
    def running(self, swap: Swap, first: int, *, vmapped: bool) -> Iterator[None]:
        """Random numbers of one forward pass, whose first sample has the id `first`.

        Keyed draws depend on seed, step, sample and ordinal; all others come from a generator seeded here.
        """
        draws = self.draws
        devices = {tensor.device for tensor in (*self.params.values(), *self.batch.tensors)}
        # Outside vmap, which refuses by itself.
        refuse = draws.randomness == "error" and not vmapped
        guard: AbstractContextManager[Any] = RefuseDraws(self.call) if refuse else nullcontext()
        with forked(draws.seed, draws.step, 0 if draws.randomness == "same" else first, devices=devices), guard, swap:
            yield
            draws.noticed.drew |= swap.drew
            draws.noticed.drew_otherwise |= swap.drew_otherwise

    def unaliased(self, block: Block) -> Block:
        """`block`, detached, with copies of what shares storage with parameters or batch: results are fresh."""
        given = tensors_of(self.batch.rebuild(self.batch.tensors))  # static ones too
        inputs = {t.untyped_storage().data_ptr() for t in (*self.fixed.values(), *given)}

        def is_input(tensor: Tensor) -> bool:
            return tensor.untyped_storage().data_ptr() in inputs

        def fresh(tensor: Tensor) -> Tensor:
            tensor = tensor.detach()
            return tensor.clone() if is_input(tensor) else tensor

        changed = any(
            t.requires_grad or t.device != gradient.like.device or is_input(t)
            for gradient in block.grads.values()
            for factor in gradient.factors
            for t in factor.tensors
        )
        return block._replace(
            grads=mapped(block.grads, fresh) if changed else block.grads,
            losses=fresh(block.losses),
            weights=fresh(block.weights),
            aux=map_tensors(fresh, block.aux),
        )

    def _with_aux(self, out: Any) -> tuple[Any, Any]:
        if not isinstance(out, tuple) or isinstance(out, Weighted) or len(out) != 2:
            raise TypeError(
                message(self.call, got=f"{kind_of(out)} from the loss", expected="(loss, aux), as has_aux=True says")
            )
        loss, aux = out
        if others := others_of(aux):
            do = "Return tensors only, such as torch.as_tensor(number)."
            raise TypeError(message(self.call, got=f"{kind_of(others[0])} in aux", expected="a nest of tensors", do=do))
        return loss, aux
