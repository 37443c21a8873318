"""Convolutions, in every way to place the kernel."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ._case import CASES, Case, add, add_module, inputs, score, weights

SIGNAL, IMAGE = inputs((4, 7)), inputs((4, 5, 6))
BIAS = {"bias": "dense"}

for name, make, args in [
    ("conv1d", lambda: nn.Conv1d(4, 6, 3), SIGNAL),
    ("conv1d, no bias", lambda: nn.Conv1d(4, 6, 3, bias=False), SIGNAL),
    ("conv1d, stride and padding", lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2), SIGNAL),
    ("conv1d, groups", lambda: nn.Conv1d(4, 6, 3, groups=2, padding=1), SIGNAL),
    ("conv1d, depthwise causal", lambda: nn.Conv1d(4, 4, 3, groups=4, padding=2), SIGNAL),
    ("conv1d, depthwise, two each", lambda: nn.Conv1d(4, 8, 3, groups=4), SIGNAL),
    ("conv1d, same padding of an even kernel", lambda: nn.Conv1d(4, 6, 4, padding="same"), SIGNAL),
    ("conv1d, circular", lambda: nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"), SIGNAL),
    ("conv1d, reflected", lambda: nn.Conv1d(4, 6, 3, padding=1, padding_mode="reflect"), SIGNAL),
    ("conv1d, kernel of 1", lambda: nn.Conv1d(4, 6, 1), SIGNAL),
    ("conv2d", lambda: nn.Conv2d(4, 6, 3), IMAGE),
    ("conv2d, stride, padding, dilation", lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), (2, 1)), IMAGE),
    ("conv2d, groups", lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), IMAGE),
    ("conv2d, depthwise", lambda: nn.Conv2d(4, 4, 3, groups=4, stride=2), IMAGE),
    ("conv2d, kernel as large as the image", lambda: nn.Conv2d(4, 6, (5, 6)), IMAGE),
    ("conv3d", lambda: nn.Conv3d(2, 3, 2, stride=(1, 2, 1), padding=1), inputs((2, 3, 4, 3))),
    ("transposed conv1d", lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1), SIGNAL),
    ("transposed conv2d, groups", lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), IMAGE),
    ("transposed conv2d, dilation", lambda: nn.ConvTranspose2d(4, 6, 2, dilation=2), IMAGE),
]:
    weight = {"weight": "unfolded"}
    add_module(name, make, args, weight if "no bias" in name else weight | BIAS)

add_module(
    "small convolutional network",
    lambda: nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1),
        nn.GroupNorm(2, 6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 3),
    ),
    IMAGE,
    {"0.weight": "unfolded", "1.weight": "dense", "3.weight": "unfolded", "6.weight": "outer", "6.bias": "dense"},
)
add_module("unfolded by hand", lambda: Unfolded(), IMAGE, {"weight": "outer"})
add(
    "one kernel at two resolutions",
    weights(w=(4, 4, 3), b=(4,)),
    SIGNAL,
    lambda p, x: torch.cat([F.conv1d(x, p["w"], p["b"]), F.conv1d(F.avg_pool1d(x, 2).sin(), p["w"])], -1),
)
add(
    "a kernel scaled before use",
    weights(w=(6, 4, 3), v=(6, 1, 1)),
    SIGNAL,
    lambda p, x: F.conv1d(x, p["w"] * p["v"].exp()),
)
add(
    "positions made by a convolution",
    weights(w=(4, 4, 3), v=(1, 4, 9)),
    SIGNAL,
    lambda p, x: x + F.conv1d(p["v"], p["w"]),
)
add(
    "a kernel a sample, samples as groups",
    weights(w=(3, 6, 4, 3)),
    lambda d, size, length: (d(size, 4, 7), d(size, 3).softmax(1)),
    lambda p, x, mix: mixed(p, x, mix),
)


def mixed(p, x, mix):
    """Dynamic convolution: the batch moves into the channels."""
    kernels = torch.einsum("bk,koil->boil", mix, p["w"]).flatten(0, 1)
    return F.conv1d(x.reshape(1, -1, 7), kernels, groups=len(x)).view(len(x), 6, 5)


class Unfolded(nn.Module):
    """A convolution as one matrix product."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(6, 36))

    def forward(self, x):
        return self.weight @ F.unfold(x, 3)


def batch_in_channels(draw, size, length):
    """A kernel across `[1, B * 4, 7]`: natively only."""
    params = {"w": draw(4, 1, 3)}

    def batched(p, x):
        out = F.conv1d(x.reshape(1, -1, 7), p["w"].repeat(len(x), 1, 1), groups=4 * len(x))
        return score(out.view(len(x), 4, 5))

    return params, None, batched


CASES["depthwise, samples as channels"] = Case(batch_in_channels, SIGNAL, modes=("native",))
