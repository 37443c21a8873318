"""`models`: a small model, by its kind and its seed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from ..._random import forked
from ..._stateless import Stateless, stateless
from ..._tree import Tensors
from ._arguments import Device, DTypes, dtypes, flag, place, some_of
from ._kinds import CLASSES, KINDS, Kind, Net
from ._readable import Readable

SEEDS = st.integers(0, 999)


@dataclass(frozen=True, kw_only=True, repr=False)
class Model(Readable):
    """A small model: the choices that make it, and what they make. Drawn by `models`.

    Attributes:
        kind: what it is made of, such as "linear", "conv1d", "tied", "lstm".
        seed: of its parameters, which are drawn as torch draws them.
        dropout: probability of it, behind the body.
        frozen: whether the first parameter requires no gradient.
        unused: whether there is a parameter that nothing uses.
        wide: a wider dtype for the values that were rounded to `dtype`, so that a result can be asked for again.
    """

    kind: str = "linear"
    seed: int = 0
    dropout: float = 0.0
    frozen: bool = False
    unused: bool = False
    dtype: torch.dtype = torch.float64
    device: str = "cpu"
    wide: torch.dtype | None = field(default=None, repr=False)

    @functools.cached_property
    def module(self) -> nn.Module:
        """A module that takes `[B, *input_shape]`."""
        with forked(0, self.seed, devices=[]):
            net = Net(self.about.body(), self.dropout, self.unused)
        net.to(self.dtype).to(self.device, self.wide or self.dtype)
        next(net.body.parameters()).requires_grad_(not self.frozen)
        return net

    @functools.cached_property
    def stateless(self) -> Stateless:
        """The module as a function of parameters."""
        return stateless(self.module)

    @property
    def params(self) -> Tensors:
        """Its trainable parameters by name."""
        return dict(self.stateless.params)

    @property
    def about(self) -> Kind:
        """What is known of this kind."""
        return KINDS[self.kind]

    @property
    def sequence(self) -> bool:
        """Whether input and output of one sample have a dimension of T positions, of any T."""
        return self.about.sequence

    def input_shape(self, length: int = 1) -> tuple[int, ...]:
        """Of one sample; `length` is T."""
        return tuple(length if size == "T" else int(size) for size in self.about.shape)

    def output_shape(self, length: int = 1) -> tuple[int, ...]:
        """Of one sample: `(C,)`, or `(T, C)` of a sequence; C is 3."""
        return (length, CLASSES) if self.sequence else (CLASSES,)

    def placed(self, value: Tensor) -> Tensor:
        """On the model's device; numbers in its dtype."""
        return cast(value, self.dtype, self.device, self.wide)


def cast(value: Tensor, dtype: torch.dtype, device: str, wide: torch.dtype | None = None) -> Tensor:
    """On a device; numbers rounded to `dtype`, and then held in a wider one if there is one."""
    return value.to(dtype).to(device, wide or dtype) if value.is_floating_point() else value.to(device)


def models(
    *,
    kinds: Sequence[str] | None = None,
    dropout: bool = False,
    frozen: bool = False,
    unused: bool = False,
    dtype: DTypes = torch.float64,
    device: Device = "cpu",
) -> st.SearchStrategy[Model]:
    """Small models, one for each way in which samples meet a parameter.

    A kind is a linear layer, a multilayer perceptron, one with layer norm, convolutions (strided; grouped, dilated and
    padded; of a large kernel), embeddings (with a padding index; tied to the head; a large table), recurrences (written
    out; torch's own), layers wide enough for their rows to stay factors, a matrix a position, an `autograd.Function`, a
    weight that is normalised before use. Outputs have three classes, `[B, 3]` or `[B, T, 3]`. Shrinks to `Model()`,
    one linear layer 2 -> 3.

    Args:
        kinds: names of kinds to draw from; None for all.
        dropout: whether a model may drop half of its outputs, so that its forward pass draws random numbers.
        frozen: whether the first parameter may require no gradient.
        unused: whether a parameter may be there that nothing uses.
        dtype: of parameters and inputs, or a strategy that draws it.
        device: where they are.

    Raises:
        TypeError, ValueError: an argument that is none of these.

    Example:
        >>> from hypothesis import given
        >>> import gradfunc as gf
        >>> @given(model=gf.testing.strategies.models(kinds=["linear", "lstm"]))
        ... def names_agree(model):
        ...     assert list(model.params) == [name for name, _ in model.module.named_parameters()]
        >>> names_agree()
    """
    call = "gf.testing.strategies.models()"
    names = some_of(call, "kinds", kinds, KINDS)
    for name, value in (("dropout", dropout), ("frozen", frozen), ("unused", unused)):
        flag(call, name, value)
    where = place(call, dtype, device)
    return st.builds(
        Model,
        kind=st.sampled_from(names),
        seed=SEEDS,
        dropout=st.sampled_from([0.0, 0.5] if dropout else [0.0]),
        frozen=st.booleans() if frozen else st.just(False),
        unused=st.booleans() if unused else st.just(False),
        dtype=dtypes(dtype),
        device=st.just(where),
    )
