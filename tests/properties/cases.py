"""A case: everything that makes one call, in a form that a person can read; and the call it stands for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from criteria import CRITERIA, evaluate, tensors
from models import CLASSES, KINDS, Net
from torch import Tensor, nn

import gradfunc as gf

F64 = torch.float64
STEP = 3
# What multiplies the inputs of "huge" and "denormal" cases: squares and their products stay finite in either type.
HUGE = {F64: 1e60, torch.float32: 1e8, torch.bfloat16: 1e8}
DENORMAL = {F64: 1e-310, torch.float32: 1e-40, torch.bfloat16: 1e-40}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call of `gf.per_sample_grads(loss)`.

    Attributes:
        model: of `models.KINDS`.
        loss: of `criteria.CRITERIA`.
        options: of the loss.
        size: B.
        seed: of parameters, inputs, targets, sample ids and of whatever else a law draws.
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
    size: int = 3
    seed: int = 0
    engine: str = "vmap"
    chunk_size: int | str | None = None
    dtype: torch.dtype = F64
    sample_weights: str = "none"
    wrt: str = "all"
    values: str = "normal"
    dropout: float = 0.0
    ragged: bool = False
    frozen: bool = False
    unused: bool = False

    @property
    def batched(self) -> bool:
        """Whether the loss runs the batch as one."""
        return self.engine.startswith("batched")


@dataclass(frozen=True, eq=False)
class Built:
    """What a case stands for.

    Attributes:
        model: of the whole batch.
        params: trainable ones, selected or not.
        samples: of one sample each: the input, the targets, then the sample's weight if there is one.
        like: a sample that stands in for the shapes of none.
        ids: of the samples, distinct integers.
        options: of the loss, with their tensors.
    """

    case: Case
    module: nn.Module
    model: gf.Stateless
    params: dict[str, Tensor]
    samples: list[tuple[Tensor, ...]]
    like: tuple[Tensor, ...]
    ids: list[int]
    options: dict[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that are differentiated."""
        return tuple(self.params)[:: 2 if self.case.wrt == "half" else 1]

    @property
    def everyone(self) -> list[int]:
        """Positions of all samples."""
        return list(range(len(self.samples)))

    @property
    def size(self) -> int:
        """B."""
        return len(self.samples)

    @property
    def separable(self) -> bool:
        """Samples are never coupled here, but by draws that belong to the batch, of which no part is asked."""
        return True

    @property
    def factored(self) -> bool:
        """Whether a sum may be of factors, which no row has rounded."""
        return self.case.engine in ("factored", "auto", "batched factored")

    def generator(self, stream: int) -> torch.Generator:
        """For what a law draws besides the case."""
        return torch.Generator().manual_seed(self.case.seed * 1000 + stream)

    def batch(self, index: Sequence[int]) -> list[Any]:
        """The arguments of some of the samples."""
        columns = [[self.samples[i][k] for i in index] for k in range(len(self.like))]
        return [self._stacked(column, like) for column, like in zip(columns, self.like, strict=True)]

    def _stacked(self, column: list[Tensor], like: Tensor) -> Any:
        if self.case.ragged and like.dim():
            return gf.ragged(column)
        return torch.stack(column) if column else torch.stack([like])[:0]

    def loss(self, params: dict[str, Tensor], *args: Tensor) -> gf.Weighted:
        """Of one sample, or of the batch if the case is batched."""
        return self.read(self.output(params, args[0]), *args[1:])

    def output(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        """The model's output, of one sample or of the batch."""
        return self.model(params, x) if self.case.batched else self.model.sample(params, x)

    def read(self, output: Tensor, *rest: Tensor) -> gf.Weighted:
        """The loss of an output."""
        targets, factor = (rest, None) if self.case.sample_weights == "none" else (rest[:-1], rest[-1])
        out = evaluate(self.case.loss, self.options, output, targets, self.case.batched)
        return out if factor is None else gf.Weighted(out.numerator * factor, out.weight * factor)

    def plain(self, params: dict[str, Tensor], *args: Tensor) -> Tensor:
        """The numerator alone, as a loss without a weight."""
        return self.loss(params, *args).numerator

    def function(self, loss: Callable[..., Any] | None = None, **changes: Any) -> gf.PerSampleGradsFunction:
        """`gf.per_sample_grads` of the case's loss, or of another one, under the case's options but for `changes`."""
        engine = self.case.engine.removeprefix("batched ")
        own = {"wrt": self.names, "engine": engine, "chunk_size": self.case.chunk_size, "batched": self.case.batched}
        return gf.per_sample_grads(self.loss if loss is None else loss, **{**own, **changes})

    def grads(
        self,
        index: Sequence[int] | None = None,
        loss: Callable[..., Any] | None = None,
        params: dict[str, Tensor] | None = None,
        **changes: Any,
    ) -> gf.PerSampleGrads:
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
                each.append(self.loss(self.params, *args).weight.reshape(()))
        return torch.stack(each).double() if each else torch.zeros(0, dtype=F64, device=self.like[0].device)


def built(case: Case, device: str = "cpu", dtype: torch.dtype | None = None) -> Built:
    """The case on a device; with `dtype`, the same values in a wider type than the case's."""
    generator = torch.Generator().manual_seed(case.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        module = Net(KINDS[case.model].body(), case.dropout, case.unused)

    def cast(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value.to(device) if isinstance(value, Tensor) else value
        return value.to(case.dtype).to(device, dtype or case.dtype)

    module.to(case.dtype).to(device, dtype or case.dtype)
    next(module.body.parameters()).requires_grad_(not case.frozen)
    options = {key: cast(value) for key, value in tensors(case.options, generator).items()}
    lengths = torch.randint(1, 5, (max(case.size, 1),), generator=generator).tolist()
    samples = [_sample(case, generator, lengths[i if case.ragged else 0]) for i in range(len(lengths))]
    samples = [tuple(cast(t) for t in sample) for sample in samples]
    if case.values == "repeated":
        samples = [tuple(t.clone() for t in samples[0]) for _ in samples]
    ids = ((torch.randperm(100, generator=generator)[: case.size] - 50) * 2**33).tolist()
    model = gf.stateless(module)
    return Built(case, module, model, dict(model.params), samples[: case.size], samples[0], ids, options)


def _sample(case: Case, generator: torch.Generator, length: int) -> tuple[Tensor, ...]:
    """The input, the targets, and the weight if there is one."""
    kind = KINDS[case.model]
    shape = [length if size == "T" else size for size in kind.shape]
    if kind.tokens:
        x = torch.randint(kind.tokens, shape, generator=generator)
    else:
        factor = {"zeros": 0.0, "huge": HUGE[case.dtype], "denormal": DENORMAL[case.dtype]}.get(case.values, 1.0)
        x = torch.randn(shape, generator=generator, dtype=F64) * factor
    output = (length, CLASSES) if kind.sequence else (CLASSES,)
    sample = (x, *CRITERIA[case.loss].targets(generator, output, case.options))
    quarters = torch.randint(1, 12, (), generator=generator).double() / 4
    some = torch.rand((), generator=generator) < {"some 0": 0.5, "all 0": 1.0}.get(case.sample_weights, 0.0)
    return sample if case.sample_weights == "none" else (*sample, quarters * ~some)
