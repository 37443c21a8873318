"""`losses`: a loss of `gf.losses` with its options, and the targets it takes."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from ..._weights import Weighted
from ._arguments import Device, DTypes, dtypes, flag, place, some_of
from ._criteria import CRITERIA, evaluate, tensors
from ._kinds import CLASSES
from ._models import SEEDS, cast
from ._readable import Readable


@dataclass(frozen=True, kw_only=True, repr=False)
class Loss(Readable):
    """A loss of `gf.losses`: `loss(output, *targets, batched=False) -> Weighted`. Drawn by `losses`.

    Attributes:
        name: of `gf.losses`.
        options: of that function. A string "per class" stands for a tensor of one weight a class; `target`, of cross
            entropy, says which targets are drawn.
        seed: of tensors among the options.
        classes: C, the last dimension of the output.
        wide: as `Model.wide`.
    """

    name: str = "mse"
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    classes: int = CLASSES
    dtype: torch.dtype = torch.float64
    device: str = "cpu"
    wide: torch.dtype | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.filled  # noqa: B018  # now, since a loss may be called inside a transform of torch.func

    def __call__(self, output: Tensor, *targets: Tensor, batched: bool = False) -> Weighted:
        """Of one sample's output, `[C]` or `[T, C]`, or of a batch of them: numerator and weight."""
        own = {
            key: value.to(output.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
            for key, value in self.filled.items()
        }  # so that what is asked at another precision runs there
        return evaluate(self.name, own, output, targets, batched)

    @functools.cached_property
    def filled(self) -> dict[str, Any]:
        """The options with their tensors."""
        drawn = tensors(self.options, self.classes, torch.Generator().manual_seed(self.seed))
        return {
            key: cast(value, self.dtype, self.device, self.wide) if isinstance(value, Tensor) else value
            for key, value in drawn.items()
        }

    def targets(self, shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        """What one sample's output of this shape is compared with, on the CPU; numbers in float64."""
        return CRITERIA[self.name].targets(generator, shape, self.options)


def losses(
    *,
    names: Sequence[str] | None = None,
    sequence: bool = False,
    dtype: DTypes = torch.float64,
    device: Device = "cpu",
) -> st.SearchStrategy[Loss]:
    """Losses of `gf.losses` under any of their options.

    Class weights, some of them 0, label smoothing, ignored labels, per element or per sample, margins, and so on. Such
    a loss takes outputs `[3]` of one sample (or `[T, 3]`) and the targets of `Loss.targets`. Shrinks to `Loss()`, the
    mean squared error.

    Args:
        names: of losses to draw from; None for all that fit.
        sequence: whether outputs are `[T, C]`: then losses of sequences (CTC, causal language modelling) are drawn too.
        dtype: of tensors among the options, or a strategy that draws it.
        device: where they are.

    Raises:
        TypeError: an argument of another kind.
        ValueError: a name that is not known, or is of sequences; a dtype that is not floating.

    Example:
        >>> from hypothesis import given
        >>> import gradfunc as gf
        >>> @given(loss=gf.testing.strategies.losses())
        ... def never_negative_weights(loss):
        ...     targets = loss.targets((3,), torch.Generator().manual_seed(0))
        ...     assert loss(torch.full((3,), 0.5, dtype=torch.float64), *targets).weight >= 0
        >>> never_negative_weights()
    """
    call = "gf.testing.strategies.losses()"
    flag(call, "sequence", sequence)
    where = place(call, dtype, device)
    return drawn(some_of(call, "names", names, fitting(sequence)), sequence, dtypes(dtype), where)


def fitting(sequence: bool) -> list[str]:
    """Names of the losses of outputs `[C]`; of a sequence, `[T, C]`, all."""
    return [name for name, criterion in CRITERIA.items() if sequence or not criterion.sequence]


@st.composite
def drawn(
    draw: st.DrawFn, names: list[str], sequence: bool, dtype: st.SearchStrategy[torch.dtype], device: str
) -> Loss:
    """One of these losses."""
    name = draw(st.sampled_from(names))
    return Loss(name=name, options=options(draw, name, sequence), seed=draw(SEEDS), dtype=draw(dtype), device=device)


def options(draw: st.DrawFn, name: str, sequence: bool) -> dict[str, Any]:
    """Options of a loss, as they go together."""
    known = CRITERIA[name].options
    every = list(itertools.product(*known.values()))
    # One choice whatever the loss, also where there is none: hypothesis prefers fewer choices to simpler ones.
    chosen = dict(zip(known, draw(st.sampled_from(every if len(every) > 1 else every * 2)), strict=True))
    if chosen.get("target") == "probabilities":
        del chosen["ignore_index"]  # torch has it for indices only
    if not sequence and "dim" in chosen:
        chosen["dim"] = -1
    return chosen
