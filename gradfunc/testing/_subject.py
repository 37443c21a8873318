"""What laws of gradients are asked of: a loss, parameters and a batch; any part of it, at any precision."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .._errors import kind_of, message
from .._per_sample import PerSampleGrads, per_sample_grads
from .._per_sample._function import PerSampleGradsFunction
from .._random import RefuseDraws
from .._tree import Tensors, cast, read_batch, read_groups, rows_of, splatted
from .._weights import Weighted
from ._oracle import Arguments, Truth, truth, truth_batched

Loss = Callable[..., Any]


class Subject(Protocol):
    """What a law asks for."""

    @property
    def size(self) -> int:
        """B."""

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that are differentiated."""

    @property
    def params(self) -> Tensors:
        """Parameters."""

    @property
    def loss(self) -> Loss:
        """Of one sample, or of the batch."""

    @property
    def separable(self) -> bool:
        """Whether some of the samples alone have the losses that they have in the batch."""

    @property
    def factored(self) -> bool:
        """Whether a sum may be of factors, which no row has rounded."""

    def grads(self, index: Sequence[int] | None = None, loss: Loss | None = None, **changes: Any) -> PerSampleGrads:
        """Of some of the samples, their ids with them, by default of all; with other options or another loss."""

    def weights(self) -> Tensor:
        """The samples' weights as the loss itself states them, `[B]` in float64."""

    def generator(self, stream: int) -> torch.Generator:
        """For what a law draws."""


def function_of(call: str, loss: Any, options: Mapping[str, Any]) -> PerSampleGradsFunction:
    """The function that was given, or one of the loss with these options.

    Raises:
        TypeError: options beside a function that has its own, or what `gf.per_sample_grads` refuses.
    """
    if not isinstance(loss, PerSampleGradsFunction):
        if not callable(loss):
            expected = "a loss(params, *sample), or a function of gf.per_sample_grads"
            raise TypeError(message(call, got=kind_of(loss), expected=expected))
        return per_sample_grads(loss, **options)
    if options:
        got, do = f"options {sorted(options)} beside a function that has its own", "Give them to gf.per_sample_grads."
        raise TypeError(message(call, got=got, expected="none", do=do))
    return loss


@dataclass(frozen=True, eq=False)
class Given:
    """A subject of what a user has."""

    call: str
    f: PerSampleGradsFunction
    params: Tensors
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, call: str, loss: Any, params: Any, batch: Any, options: Mapping[str, Any]) -> Given:
        """Read the call.

        Raises:
            TypeError: no function, no dictionary of tensors, or what `gf.per_sample_grads` refuses.
        """
        f = function_of(call, loss, options)
        if not isinstance(params, Mapping) or not all(isinstance(value, Tensor) for value in params.values()):
            raise TypeError(message(call, got=f"{kind_of(params)} as params", expected="a dict {name: tensor}"))
        args, kwargs = splatted(batch)
        return cls(call, f, dict(params), args, kwargs)

    @property
    def loss(self) -> Loss:
        """As it was given."""
        return self.f.loss

    @property
    def separable(self) -> bool:
        """A loss of one sample knows no other."""
        return not self.f.options.batched

    @functools.cached_property
    def value(self) -> PerSampleGrads:
        """The gradients of the whole batch."""
        return self.grads()

    @property
    def size(self) -> int:
        """B."""
        return self.value.batch_size

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that are differentiated."""
        return self.value.names

    @property
    def factored(self) -> bool:
        """Whether the engine that answered holds factors."""
        return "factored" in self.value.engine

    @property
    def dtype(self) -> torch.dtype:
        """The coarsest of the parameters differentiated."""
        return max((self.params[name].dtype for name in self.names), key=lambda dtype: torch.finfo(dtype).eps)

    @property
    def device(self) -> str:
        """The type of device."""
        return self.value.losses.device.type

    def to(self, dtype: torch.dtype | None) -> Given:
        """Parameters and batch cast; None for as they are."""
        if dtype is None:
            return self
        params, args, kwargs = cast((self.params, self.args, self.kwargs), dtype)
        return dataclasses.replace(self, params=params, args=args, kwargs=kwargs)

    def grads(self, index: Sequence[int] | None = None, loss: Loss | None = None, **changes: Any) -> PerSampleGrads:
        """As the protocol says; no engine verifies itself, since laws are what it is asked by."""
        options = dataclasses.replace(self.f.options, verify=False, **changes)
        f = PerSampleGradsFunction(self.loss if loss is None else loss, options, call=self.f.call)
        args, kwargs = self.args, self.kwargs
        step = self.f.step or 0
        if index is None:
            f = f.at(step, index=self.f.index)
        else:
            chosen = torch.as_tensor(index, dtype=torch.int64)
            args, kwargs = rows_of((args, kwargs), chosen)
            ids = None
            if not options.batched:
                own = torch.arange(self.size) if self.f.index is None else torch.as_tensor(self.f.index)
                ids = own[chosen]
            f = f.at(step, index=ids)
        return f(self.params, *args, **kwargs)

    def weights(self) -> Tensor:
        """As the loss states them, sample by sample; under draws of its own."""
        device = self.value.losses.device
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            found = self._truth({})
        return found.weights.to(device)

    def truth(self) -> Truth:
        """One plain autograd call a sample.

        Raises:
            ValueError: a loss that draws: plain autograd would draw other numbers.
        """
        self.value  # noqa: B018  # B comes from it; an engine may draw, which is no draw of the loss
        with torch.random.fork_rng(devices=[]):
            try:
                with torch.no_grad(), RefuseDraws(self.call):
                    self._truth({})
            except RuntimeError as error:
                if "draws random numbers" not in str(error):
                    raise
                do = "Use .eval(), or gf.testing.certify, which keeps the draws."
                expected = "one whose plain autograd gives the same numbers"
                raise ValueError(message(self.call, got="a loss that draws", expected=expected, do=do)) from None
            with torch.enable_grad():
                return self._truth({name: self.params[name] for name in self.names})

    def _truth(self, chosen: Tensors) -> Truth:
        """The oracle, differentiated in the chosen parameters."""

        def loss(leaves: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
            out = self.loss({**self.params, **leaves}, *args, **kwargs)
            return out[0] if self.f.options.has_aux else out

        if not self.separable:
            batch = read_batch(self.call, self.args, self.kwargs, rows=False)
            args, kwargs = batch.rebuild(list(batch.tensors))
            return truth_batched(loss, chosen, args, kwargs)
        return truth(loss, chosen, self._samples())

    def _samples(self) -> Iterator[Arguments]:
        """The arguments of each sample, without the dimension of samples."""
        for i in range(self.size):
            one = rows_of((self.args, self.kwargs), torch.tensor([i]))
            batch = read_groups(self.call, *one)[0].batch
            yield batch.rebuild([tensor[0] for tensor in batch.tensors])

    def generator(self, stream: int) -> torch.Generator:
        """Seeded by the function's seed."""
        return torch.Generator().manual_seed(self.f.options.seed * 1000 + stream)

    def check_rows(self) -> None:
        """Raise ValueError where a tensor of a natively run batch does not carry its samples in dimension 0."""
        if self.separable:
            return
        for tensor in read_batch(self.call, self.args, self.kwargs, rows=False).tensors:
            if not tensor.dim() or len(tensor) != self.size:
                got = f"a tensor of shape {tuple(tensor.shape)} in a batch of {self.size} samples"
                do = "Mark what all samples share with gf.static(...)."
                raise ValueError(message(self.call, got=got, expected="samples in dimension 0", do=do))


def times(loss: Loss, factor: float) -> Loss:
    """A loss times a number, its weight as it is."""

    def scaled(*args: Any, **kwargs: Any) -> Any:
        out = loss(*args, **kwargs)
        value, rest = (out[0], out[1:]) if isinstance(out, tuple) and not isinstance(out, Weighted) else (out, None)
        value = Weighted(value.numerator * factor, value.weight) if isinstance(value, Weighted) else value * factor
        return value if rest is None else (value, *rest)

    return scaled
