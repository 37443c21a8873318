"""A case: everything that makes one call, in a form that a person can read; and the problem it stands for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..._per_sample import PerSampleGrads, per_sample_grads
from ..._per_sample._function import PerSampleGradsFunction
from ..._stateless import Stateless
from ..._tree import Tensors, cast
from ..._weights import Weighted
from ._batches import Batch
from ._losses import Loss
from ._models import Model
from ._readable import Readable

STEP = 3


@dataclass(frozen=True, kw_only=True, repr=False)
class Case(Readable):
    """One call of `gf.per_sample_grads(loss)(params, *batch)`. Drawn by `cases`; `build()` is its problem.

    Attributes:
        model: a kind of model, as in `models`.
        loss: a name of `gf.losses`, as in `losses`.
        options: of the loss.
        size: B.
        seed: of parameters, inputs, targets, sample ids and of whatever else a test draws.
        engine: "factored", "vmap", "loop" or "auto"; one of the first three behind "batched " for a loss that runs the
            batch as one.
        sample_weights: "none", "positive", "some 0" or "all 0": factors of numerator and weight in the batch.
        wrt: "all" parameters, or every other one of them: "half".
        values: of the inputs: "normal", "zeros", "repeated" (every sample the same), "huge" or "denormal".
        ragged: whether the lengths of sequences differ.
        frozen: whether the first parameter that is used is frozen.
        unused: whether there is a parameter that nothing uses.
    """

    model: str = "linear"
    loss: str = "mse"
    options: dict[str, Any] = field(default_factory=dict)
    size: int = 1
    seed: int = 0
    engine: str = "vmap"
    chunk_size: int | str | None = None
    dtype: torch.dtype = torch.float64
    sample_weights: str = "none"
    wrt: str = "all"
    values: str = "normal"
    dropout: float = 0.0
    ragged: bool = False
    frozen: bool = False
    unused: bool = False
    device: str = "cpu"

    @property
    def batched(self) -> bool:
        """Whether the loss runs the batch as one."""
        return self.engine.startswith("batched")

    def build(self, *, device: str | None = None, dtype: torch.dtype | None = None) -> Problem:
        """What the case stands for, on a device; with `dtype`, the same values in a wider type than the case's."""
        place: dict[str, Any] = {"dtype": self.dtype, "device": device or self.device, "wide": dtype}
        model = Model(kind=self.model, seed=self.seed, dropout=self.dropout, frozen=self.frozen, unused=self.unused)
        model = Model(**{**vars(model), **place})
        loss = Loss(name=self.loss, options=self.options, seed=self.seed + 1000, **place)
        batch = Batch(
            model=model,
            loss=loss,
            size=self.size,
            seed=self.seed + 2000,
            values=self.values,
            ragged=self.ragged,
            sample_weights=self.sample_weights,
        )
        return Problem(self, model, loss, batch)


@dataclass(frozen=True, eq=False, repr=False)
class Problem:
    """A loss, parameters and a batch that fit together: `loss, params, batch = problem`. Drawn by `problems`.

    Attributes:
        case: the choices it is made of.
        drawn: the model.
        criterion: the loss of an output.
        data: the batch.
    """

    case: Case
    drawn: Model
    criterion: Loss
    data: Batch

    def __post_init__(self) -> None:
        self.model  # noqa: B018  # now, since the loss may be called inside a transform of torch.func

    def __iter__(self) -> Iterator[Any]:
        return iter((self.loss, self.params, self.batch()))

    def __repr__(self) -> str:
        return f"{self.case!r}.build()"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    @property
    def module(self) -> nn.Module:
        """The model as a module."""
        return self.drawn.module

    @property
    def model(self) -> Stateless:
        """The model as a function, of the whole batch."""
        return self.drawn.stateless

    @functools.cached_property
    def params(self) -> Tensors:
        """Trainable parameters, selected or not."""
        return self.drawn.params

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that are differentiated."""
        return tuple(self.params)[:: 2 if self.case.wrt == "half" else 1]

    @property
    def samples(self) -> list[tuple[Tensor, ...]]:
        """Of one sample each: the input, the targets, then the sample's weight if there is one."""
        return self.data.samples

    @property
    def like(self) -> tuple[Tensor, ...]:
        """A sample that stands in for the shapes of none."""
        return self.data.like

    @functools.cached_property
    def ids(self) -> list[int]:
        """Of the samples, distinct integers."""
        order = torch.randperm(100 + self.case.size, generator=self.generator(999))[: self.case.size]
        ids: list[int] = ((order - 50) * 2**33).tolist()
        return ids

    @property
    def size(self) -> int:
        """B."""
        return len(self.samples)

    @property
    def separable(self) -> bool:
        """Samples are not coupled but by draws of a whole batch, of which no part is asked."""
        return True

    @property
    def factored(self) -> bool:
        """Whether a sum may be of factors, which no row has rounded."""
        return self.case.engine in ("factored", "auto", "batched factored")

    @property
    def everyone(self) -> list[int]:
        """Positions of all samples."""
        return list(range(len(self.samples)))

    def generator(self, stream: int) -> torch.Generator:
        """For what a test draws besides the case."""
        return torch.Generator().manual_seed(self.case.seed * 1000 + stream)

    def batch(self, index: Sequence[int] | None = None) -> list[Any]:
        """The arguments of some of the samples, by default of all."""
        return self.data.args if index is None else self.data.of(index)

    def loss(self, params: Tensors, *args: Tensor) -> Weighted:
        """Of one sample, or of the batch if the case is batched."""
        return self.read(self.output(params, args[0]), *args[1:])

    def output(self, params: Tensors, x: Tensor) -> Tensor:
        """The model's output, of one sample or of the batch."""
        dtype = next(value.dtype for value in params.values())
        if dtype != (self.drawn.wide or self.drawn.dtype):  # asked at another precision, what is held goes with it
            params = {**cast({**self.model.frozen, **self.model.buffers}, dtype), **params}
        out: Tensor = self.model(params, x) if self.case.batched else self.model.sample(params, x)
        return out

    def read(self, output: Tensor, *rest: Tensor) -> Weighted:
        """The loss of an output."""
        targets, factor = (rest, None) if self.case.sample_weights == "none" else (rest[:-1], rest[-1])
        out = self.criterion(output, *targets, batched=self.case.batched)
        return out if factor is None else Weighted(out.numerator * factor, out.weight * factor)

    def plain(self, params: Tensors, *args: Tensor) -> Tensor:
        """The numerator alone, as a loss without a weight."""
        return self.loss(params, *args).numerator

    def function(self, loss: Callable[..., Any] | None = None, **changes: Any) -> PerSampleGradsFunction:
        """`gf.per_sample_grads` of the case's loss, or of another one, under the case's options but for `changes`."""
        engine = self.case.engine.removeprefix("batched ")
        own = {"wrt": self.names, "engine": engine, "chunk_size": self.case.chunk_size, "batched": self.case.batched}
        return per_sample_grads(self.loss if loss is None else loss, **{**own, **changes})

    def grads(
        self,
        index: Sequence[int] | None = None,
        loss: Callable[..., Any] | None = None,
        params: Tensors | None = None,
        **changes: Any,
    ) -> PerSampleGrads:
        """Of some of the samples, their ids with them; by default of all."""
        index = self.everyone if index is None else index
        f = self.function(loss, **changes)
        f = f.at(STEP) if self.case.batched else f.at(STEP, index=[self.ids[i] for i in index])
        return f(self.params if params is None else params, *self.batch(index))

    def weights(self) -> Tensor:
        """The samples' weights as the loss says them, `[B]`, in float64."""
        each = []
        for sample in self.samples:
            args = [t[None] if self.case.batched else t for t in sample]
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                each.append(torch.as_tensor(self.loss(self.params, *args).weight).reshape(()))
        empty = torch.zeros(0, dtype=torch.float64, device=self.like[0].device)
        return torch.stack(each).double() if each else empty
