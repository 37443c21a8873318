"""The multilayer perceptron, and what every small model is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .._errors import message
from .._tree import Tensors


@dataclass(frozen=True)
class Pure:
    """A model as two functions. Made by the functions of this module."""

    init: Callable[[], Tensors]
    apply: Callable[..., Tensor]


def mlp(
    sizes: Sequence[int],
    *,
    activation: Callable[[Tensor], Tensor] = torch.relu,
    bias: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Pure:
    """A multilayer perceptron: linear layers with `activation` between them.

    Args:
        sizes: widths from the input to the output, at least two: `[64, 32, 10]` has two layers.
        activation: applied after every layer but the last.
        bias: whether the layers have biases.
        seed: of the parameters, drawn as `nn.Linear` draws them (uniform within `1 / sqrt(fan_in)`).
        dtype: of the parameters.

    Raises:
        ValueError: fewer than two sizes, or one that is not positive.

    Example:
        >>> import gradfunc as gf
        >>> model = gf.stateless(gf.models.mlp([64, 32, 10]))
        >>> list(model.params), model(model.params, torch.zeros(5, 64)).shape
        (['fc1.weight', 'fc1.bias', 'fc2.weight', 'fc2.bias'], torch.Size([5, 10]))
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(
            message(f"gf.models.mlp({list(sizes)})", got=f"{list(sizes)}", expected="two or more positive widths")
        )

    def init() -> Tensors:
        generator = torch.Generator().manual_seed(seed)
        params: Tensors = {}
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes), start=1):
            params.update(linear_params(f"fc{i}", fan_in, fan_out, bias, dtype, generator))
        return params

    def apply(params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        last = len(sizes) - 1
        for i in range(1, last + 1):
            x = F.linear(x, params[f"fc{i}.weight"], params.get(f"fc{i}.bias"))
            x = activation(x) if i < last else x
        return x

    return Pure(init, apply)


def linear_params(
    name: str, fan_in: int, fan_out: int, bias: bool, dtype: torch.dtype, generator: torch.Generator
) -> Tensors:
    """Parameters as `nn.Linear` draws them: uniform within `1 / sqrt(fan_in)`."""
    shapes = {"weight": (fan_out, fan_in), **({"bias": (fan_out,)} if bias else {})}
    bound = 1 / math.sqrt(fan_in)
    return {
        f"{name}.{key}": torch.empty(shape, dtype=dtype).uniform_(-bound, bound, generator=generator)
        for key, shape in shapes.items()
    }
