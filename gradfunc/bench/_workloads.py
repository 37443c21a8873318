"""The workloads by name."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..losses import cross_entropy
from ._gpt import GPT
from ._workload import Workload


def mlp(sizes: Sequence[int] = (784, 1024, 1024, 10), *, batch_size: int = 256, name: str = "mlp") -> Workload:
    """A perceptron with ReLU and cross entropy.

    Args:
        sizes: widths from the input to the classes.
        batch_size: B.
        name: of the workload.

    Example:
        >>> import gradfunc as gf
        >>> gf.bench.mlp([4, 8, 3], batch_size=5).about
        'perceptron 4-8-3, B=5'
    """

    def module() -> nn.Module:
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def batch() -> tuple[Tensor, ...]:
        return torch.randn(batch_size, sizes[0]), torch.randint(sizes[-1], (batch_size,))

    about = f"perceptron {'-'.join(map(str, sizes))}, B={batch_size}"
    return Workload(name, about, module, batch, _cross_entropy, cross_entropy)


def gpt(
    *,
    layers: int = 4,
    width: int = 256,
    heads: int = 4,
    length: int = 128,
    vocabulary: int = 1000,
    batch_size: int = 16,
    tied: bool = False,
    name: str | None = None,
) -> Workload:
    """A small GPT with cross entropy of the next token; a sample's weight is its number of tokens.

    Args:
        layers: number of blocks.
        width: of the residual stream.
        heads: of attention; they divide the width.
        length: tokens in a sample, T.
        vocabulary: number of tokens to choose from.
        batch_size: B.
        tied: whether the head is the token embedding.
        name: of the workload; "gpt" or "gpt-tied" by default.

    Example:
        >>> import gradfunc as gf
        >>> gf.bench.gpt(layers=1, width=8, heads=2, length=4, vocabulary=11, batch_size=3, tied=True).about
        'GPT of 1 layer, width 8, 2 heads, T=4, vocabulary 11, tied head, B=3'
    """

    def module() -> nn.Module:
        return GPT(layers=layers, width=width, heads=heads, length=length, vocabulary=vocabulary, tied=tied)

    def batch() -> tuple[Tensor, ...]:
        tokens = torch.randint(vocabulary, (batch_size, length + 1))
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    about = (
        f"GPT of {layers} layer{'s' * (layers > 1)}, width {width}, {heads} heads, T={length}, "
        f"vocabulary {vocabulary}, {'tied head, ' * tied}B={batch_size}"
    )
    return Workload(name or "gpt" + "-tied" * tied, about, module, batch, _cross_entropy, cross_entropy)


def _cross_entropy(output: Tensor, target: Tensor, *, reduction: str) -> Tensor:
    """torch's own, over every position."""
    loss = F.cross_entropy(output.flatten(0, -2), target.flatten(), reduction=reduction)
    return loss.view_as(target) if reduction == "none" else loss


WORKLOADS = {workload.name: workload for workload in (mlp(), gpt(), gpt(tied=True))}
