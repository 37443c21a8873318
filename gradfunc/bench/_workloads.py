"""The workloads by name."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..losses import cross_entropy
from . import _networks
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


def cnn(
    channels: Sequence[int] = (32, 64, 64, 128, 128), *, image: int = 32, batch_size: int = 64, name: str = "cnn"
) -> Workload:
    """Convolutions 3 x 3 with ReLU, pooled after every second one, and cross entropy of ten classes.

    Args:
        channels: of each convolution.
        image: height and width.
        batch_size: B.
        name: of the workload.

    Example:
        >>> import gradfunc as gf
        >>> gf.bench.cnn([4, 8], image=8, batch_size=2).about
        'CNN of 4, 8 channels, 8 x 8, B=2'
    """
    about = f"CNN of {', '.join(map(str, channels))} channels, {image} x {image}, B={batch_size}"
    return _images(name, about, lambda: _networks.cnn(tuple(channels), 10), image, batch_size)


def resnet(
    widths: Sequence[int] = (32, 64, 128),
    *,
    blocks: int = 2,
    groups: int = 8,
    image: int = 32,
    batch_size: int = 64,
    name: str = "resnet",
) -> Workload:
    """A residual network with group norm and cross entropy of ten classes.

    Args:
        widths: channels of each stage; all but the first begin by halving the resolution.
        blocks: in each stage.
        groups: of the norms; they divide the widths.
        image: height and width.
        batch_size: B.
        name: of the workload.

    Example:
        >>> import gradfunc as gf
        >>> gf.bench.resnet([4, 8], blocks=1, groups=2, image=8, batch_size=2).about
        'ResNet of 4, 8 channels, group norm, 8 x 8, B=2'
    """
    about = f"ResNet of {', '.join(map(str, widths))} channels, group norm, {image} x {image}, B={batch_size}"
    return _images(name, about, lambda: _networks.resnet(tuple(widths), blocks, groups, 10), image, batch_size)


def vit(
    *,
    layers: int = 12,
    width: int = 192,
    heads: int = 3,
    image: int = 224,
    patch: int = 16,
    batch_size: int = 8,
    name: str = "vit",
) -> Workload:
    """A vision transformer with cross entropy of ten classes; the default sizes are those of ViT-Ti/16.

    Args:
        layers: number of blocks.
        width: of the residual stream.
        heads: of attention; they divide the width.
        image: height and width.
        patch: of a token; it divides the image.
        batch_size: B.
        name: of the workload.

    Source: sizes from Touvron et al., "Training data-efficient image transformers", ICML 2021, table 1.

    Example:
        >>> import gradfunc as gf
        >>> gf.bench.vit(layers=1, width=8, heads=2, image=8, patch=4, batch_size=2).about
        'ViT of 1 layer, width 8, 2 heads, 5 tokens, B=2'
    """

    def module() -> nn.Module:
        return _networks.ViT(image=image, patch=patch, width=width, heads=heads, layers=layers, classes=10)

    tokens = 1 + (image // patch) ** 2
    about = f"ViT of {layers} layer{'s' * (layers > 1)}, width {width}, {heads} heads, {tokens} tokens, B={batch_size}"
    return _images(name, about, module, image, batch_size)


def lstm(
    *,
    layers: int = 2,
    features: int = 128,
    width: int = 128,
    length: int = 64,
    batch_size: int = 32,
    name: str = "lstm",
) -> Workload:
    """An LSTM and cross entropy of ten classes from its last state.

    Args:
        layers: of the LSTM.
        features: of the input.
        width: of the state.
        length: steps in a sample, T.
        batch_size: B.
        name: of the workload.

    Example:
        >>> import gradfunc as gf
        >>> gf.bench.lstm(layers=1, features=3, width=4, length=5, batch_size=2).about
        'LSTM of 1 layer, width 4, T=5, B=2'
    """

    def batch() -> tuple[Tensor, ...]:
        return torch.randn(batch_size, length, features), torch.randint(10, (batch_size,))

    about = f"LSTM of {layers} layer{'s' * (layers > 1)}, width {width}, T={length}, B={batch_size}"
    return Workload(
        name, about, lambda: _networks.LSTM(features, width, layers, 10), batch, _cross_entropy, cross_entropy
    )


def _images(name: str, about: str, module: Callable[[], nn.Module], image: int, batch_size: int) -> Workload:
    """A classifier of drawn images, ten classes."""

    def batch() -> tuple[Tensor, ...]:
        return torch.randn(batch_size, 3, image, image), torch.randint(10, (batch_size,))

    return Workload(name, about, module, batch, _cross_entropy, cross_entropy)


def _cross_entropy(output: Tensor, target: Tensor, *, reduction: str) -> Tensor:
    """torch's own, over every position."""
    loss = F.cross_entropy(output.flatten(0, -2), target.flatten(), reduction=reduction)
    return loss.view_as(target) if reduction == "none" else loss


WORKLOADS = {workload.name: workload for workload in (mlp(), gpt(), gpt(tied=True), cnn(), resnet(), vit(), lstm())}
"""Models with a batch and a loss to measure on, `{name: workload}`."""
