"""`batches`: what a model and a loss take, sample by sample."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from ..._errors import message
from ..._tree import ragged
from ._arguments import flag, instance, sizes, some_of
from ._criteria import CRITERIA
from ._kinds import Kind
from ._losses import Loss
from ._models import SEEDS, Model
from ._readable import Readable

F64 = torch.float64
# What multiplies the inputs of "huge" and "denormal" batches: squares and their products stay finite in either type.
HUGE = {F64: 1e60, torch.float32: 1e8, torch.bfloat16: 1e8, torch.float16: 1e2}
DENORMAL = {F64: 1e-310, torch.float32: 1e-40, torch.bfloat16: 1e-40, torch.float16: 1e-6}
VALUES = ("normal", "repeated", "zeros", "denormal", "huge")
SAMPLE_WEIGHTS = ("none", "positive", "some 0", "all 0")
LONGEST = 4  # sequence


@dataclass(frozen=True, kw_only=True, repr=False)
class Batch(Readable):
    """Inputs and targets of a model and a loss. Drawn by `batches`.

    Attributes:
        model, loss: what takes them.
        size: B.
        seed: of inputs, targets, weights and lengths.
        values: of the inputs: "normal", "zeros", "repeated" (every sample the same), "huge" or "denormal".
        ragged: whether the lengths of sequences differ.
        sample_weights: "none", "positive", "some 0" or "all 0": one number a sample, the last argument.
    """

    model: Model = field(default_factory=Model)
    loss: Loss = field(default_factory=Loss)
    size: int = 1
    seed: int = 0
    values: str = "normal"
    ragged: bool = False
    sample_weights: str = "none"

    @property
    def args(self) -> list[Any]:
        """Inputs, targets and weights with the samples in dimension 0: `f(params, *batch.args)`."""
        return self.of(range(self.size))

    @property
    def samples(self) -> list[tuple[Tensor, ...]]:
        """The same, each sample by itself."""
        return self._made[: self.size]

    @property
    def like(self) -> tuple[Tensor, ...]:
        """A sample that stands in for the shapes of none."""
        return self._made[0]

    def of(self, index: Sequence[int]) -> list[Any]:
        """The arguments of some of the samples."""
        columns = [[self.samples[i][k] for i in index] for k in range(len(self.like))]
        return [self._stacked(column, like) for column, like in zip(columns, self.like, strict=True)]

    def _stacked(self, column: list[Tensor], like: Tensor) -> Any:
        if self.ragged and like.dim():
            return ragged(column)
        return torch.stack(column) if column else torch.stack([like])[:0]

    @functools.cached_property
    def _made(self) -> list[tuple[Tensor, ...]]:
        """All samples; of an empty batch, one."""
        generator = torch.Generator().manual_seed(self.seed)
        lengths = torch.randint(1, LONGEST + 1, (max(self.size, 1),), generator=generator).tolist()
        each = [self._sample(generator, lengths[i if self.ragged else 0]) for i in range(len(lengths))]
        made = [tuple(self.model.placed(tensor) for tensor in sample) for sample in each]
        return [tuple(t.clone() for t in made[0]) for _ in made] if self.values == "repeated" else made

    def _sample(self, generator: torch.Generator, length: int) -> tuple[Tensor, ...]:
        shape, tokens, dtype = self.model.input_shape(length), self.model.about.tokens, self.model.dtype
        if tokens:
            x = torch.randint(tokens, shape, generator=generator)
        else:
            factor = {"zeros": 0.0, "huge": HUGE[dtype], "denormal": DENORMAL[dtype]}.get(self.values, 1.0)
            x = torch.randn(shape, generator=generator, dtype=F64) * factor
        sample = (x, *self.loss.targets(self.model.output_shape(length), generator))
        quarters = torch.randint(1, 12, (), generator=generator).double() / 4
        some = torch.rand((), generator=generator) < {"some 0": 0.5, "all 0": 1.0}.get(self.sample_weights, 0.0)
        return sample if self.sample_weights == "none" else (*sample, quarters * ~some)


def values_of(kind: Kind, loss: str, *, huge: bool = True) -> list[str]:
    """Which inputs say something of a model under a loss: huge and tiny ones of what is linear, zeros of numbers."""
    scales = kind.homogeneous and CRITERIA[loss].linear
    left_out = {"zeros": bool(kind.tokens), "denormal": not scales, "huge": not (scales and huge)}
    return [value for value in VALUES if not left_out.get(value)]


def batches(
    *,
    model: Model,
    loss: Loss,
    min_size: int = 0,
    max_size: int = 8,
    values: Sequence[str] | None = None,
    ragged: bool = False,
    sample_weights: Sequence[str] = ("none",),
) -> st.SearchStrategy[Batch]:
    """Batches for a model and a loss: `f(params, *batch.args)`.

    Shrinks to the smallest size, seed 0 and normal inputs. Dtype and device are the model's.

    Args:
        model, loss: as drawn by `models` and `losses`; see `problems` for all three at once.
        min_size, max_size: of B.
        values: of the inputs: some of "normal", "repeated", "zeros", "denormal" and "huge"; None for those that say
            something of this model and loss.
        ragged: whether the lengths of sequences may differ from sample to sample (`gf.ragged`).
        sample_weights: what to draw from, of "none", "positive", "some 0" and "all 0": one number a sample, an
            argument behind the targets.

    Raises:
        TypeError, ValueError: an argument that is none of these; a loss of sequences for a model without.

    Example:
        >>> from hypothesis import given
        >>> import gradfunc as gf
        >>> strategies = gf.testing.strategies
        >>> model, loss = strategies.Model(kind="mlp"), strategies.Loss()
        >>> @given(batch=strategies.batches(model=model, loss=loss, max_size=3))
        ... def as_many_outputs_as_samples(batch):
        ...     x, target = batch.args
        ...     assert model.module(x).shape == target.shape == (batch.size, 3)
        >>> as_many_outputs_as_samples()
    """
    call = "gf.testing.strategies.batches()"
    instance(call, "model", model, Model, "a Model, as drawn by models()")
    instance(call, "loss", loss, Loss, "a Loss, as drawn by losses()")
    if CRITERIA[loss.name].sequence and not model.sequence:
        do = "Take a model whose output is [T, C]."
        raise ValueError(message(call, got=f"{loss} and {model}", expected="a loss of outputs [C]", do=do))
    sizes(call, "size", min_size, max_size)
    known = [v for v in VALUES if v != "zeros" or not model.about.tokens]
    chosen = values_of(model.about, loss.name) if values is None else some_of(call, "values", values, known)
    flag(call, "ragged", ragged)
    weighing = some_of(call, "sample_weights", sample_weights, SAMPLE_WEIGHTS)
    return st.builds(
        Batch,
        model=st.just(model),
        loss=st.just(loss),
        size=st.integers(min_size, max_size),
        seed=SEEDS,
        values=st.sampled_from(chosen),
        ragged=st.booleans() if ragged and model.sequence else st.just(False),
        sample_weights=st.sampled_from(weighing),
    )
