"""Convolutions, in every way to place the kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._model import Net, add, floats


class _Layer(NamedTuple):
    """One layer: what it makes of a sample of a shape."""

    name: str
    hazard: str
    module: Callable[[], nn.Module]
    sample: tuple[int, ...]
    output: tuple[int, ...]


_BORDER = "the layer pads before it convolves: its saved input is not what the kernel saw"
LAYERS = [
    _Layer("conv1d", "windows of the input are the rows", lambda: nn.Conv1d(4, 6, 3), (4, 8), (6, 6)),
    _Layer(
        "conv1d, dilation and stride",
        "windows with gaps, and positions that no window reaches",
        lambda: nn.Conv1d(3, 5, 3, stride=2, padding=1, dilation=2),
        (3, 10),
        (5, 4),
    ),
    _Layer(
        "conv1d, padding mode 'reflect'", _BORDER, lambda: nn.Conv1d(4, 6, 3, padding=2, padding_mode="reflect"),
        (4, 6), (6, 8),
    ),
    _Layer(
        "conv1d, causal depthwise",
        "a group a channel, and outputs that are cut off",
        lambda: Net(lambda m, x: m.layer(x)[..., : x.shape[-1]], layer=nn.Conv1d(6, 6, 4, groups=6, padding=3)),
        (6, 5),
        (6, 5),
    ),
    _Layer("conv2d, groups", "channels of one group never meet the weights of another",
           lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 5, 4), (6, 5, 4)),
    _Layer("conv2d, depthwise, two filters a channel", "as many groups as inputs, not as outputs",
           lambda: nn.Conv2d(4, 8, 3, groups=4, stride=2), (4, 6, 7), (8, 2, 3)),
    _Layer(
        "conv2d, uneven stride, padding and dilation",
        "the two dimensions are taken for each other",
        lambda: nn.Conv2d(3, 5, (3, 2), (2, 1), (1, 2), (2, 1), bias=False),
        (3, 7, 4),
        (5, 3, 7),
    ),
    _Layer("conv2d, padding mode 'circular'", _BORDER,
           lambda: nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="circular"), (3, 4, 5), (4, 4, 7)),
    _Layer("conv2d, padding mode 'replicate'", _BORDER,
           lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode="replicate"), (3, 5, 4), (4, 3, 2)),
    _Layer(
        "conv2d, padding 'same', even kernel",
        "the two sides are padded by different amounts: one number for both is off by one",
        lambda: nn.Conv2d(3, 5, (4, 2), padding="same"),
        (3, 5, 4),
        (5, 5, 4),
    ),
    _Layer("conv2d, padding 'valid', 1x1", "a matrix product in disguise, whose rows are many more than its factors",
           lambda: nn.Conv2d(12, 10, 1, padding="valid"), (12, 1, 2), (10, 1, 2)),
    _Layer("conv2d, kernel as large as the image", "one position: rows are larger than their factors",
           lambda: nn.Conv2d(3, 8, (4, 5)), (3, 4, 5), (8, 1, 1)),
    _Layer("conv3d", "windows in three dimensions", lambda: nn.Conv3d(2, 3, 2, stride=(1, 2, 1), padding=1),
           (2, 2, 4, 3), (3, 3, 3, 4)),
    _Layer(
        "transposed conv1d, output padding",
        "inputs and outputs change places, and some outputs belong to no input",
        lambda: nn.ConvTranspose1d(4, 3, 3, stride=2, output_padding=1),
        (4, 5),
        (3, 12),
    ),
    _Layer("transposed conv2d, groups", "the weight's first dimension is the inputs', its groups the outputs'",
           lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2), (4, 3, 4), (6, 5, 7)),
    _Layer("transposed conv2d, dilation", "windows with gaps, of the cotangent and not of the input",
           lambda: nn.ConvTranspose2d(3, 4, 2, dilation=2), (3, 3, 4), (4, 5, 6)),
]  # fmt: skip
for layer in LAYERS:
    parameters = layer.module().named_parameters()
    kinds = {name: "dense" if name.endswith("bias") else "unfolded" for name, _ in parameters}
    add(layer.name, layer.hazard, layer.module, floats(layer.sample, layer.output), kinds)

add(
    "small convolutional network",
    "one exotic layer between the others, which keep their fast path",
    lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.GroupNorm(2, 6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 5),
    ),
    lambda: (torch.randn(5, 3, 4, 6), torch.randint(5, (5,))),
    {
        "0.weight": "unfolded",
        "0.bias": "dense",
        "1.weight": "dense",
        "1.bias": "dense",
        "3.weight": "unfolded",
        "3.bias": "dense",
        "6.weight": "outer",
        "6.bias": "dense",
    },
    F.cross_entropy,
)
add(
    "convolution by unfold",
    "the kernel of a convolution in a matrix product from the left",
    lambda: Net(lambda m, x: m.weight @ F.unfold(x, 3), weight=nn.Parameter(0.2 * torch.randn(12, 36))),
    floats((4, 4, 3), (12, 2)),
    {"weight": "outer"},
)
add(
    "a kernel a sample, samples as groups",
    "the batch moves into the channels, and each sample mixes kernels of its own",
    lambda: Net(lambda m, x: _mixed(m, x), kernels=nn.Parameter(torch.randn(3, 6, 4, 3)), gate=nn.Linear(28, 3)),
    floats((4, 7), (6, 5)),
    {"kernels": "dense", "gate.weight": "outer", "gate.bias": "dense"},
)


def _mixed(m: Any, x: Tensor) -> Any:
    kernels = torch.einsum("bk,koil->boil", m.gate(x.flatten(1)).softmax(1), m.kernels).flatten(0, 1)
    return F.conv1d(x.reshape(1, -1, 7), kernels, groups=len(x)).view(len(x), 6, 5)
