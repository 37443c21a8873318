"""Networks of the benchmark beside the perceptron and the GPT, as anyone would write them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def cnn(channels: tuple[int, ...], classes: int) -> nn.Module:
    """Images `[B, 3, H, W]` to logits: convolutions with ReLU, the resolution halved after every second one."""
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(zip((3, *channels), channels, strict=False)):
        layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.ReLU()]
        if i % 2:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], classes))


class Residual(nn.Module):
    """Two convolutions with group norm, around a skip that is a convolution where shapes change."""

    def __init__(self, fan_in: int, fan_out: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(groups, fan_out)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, fan_out)
        self.skip = nn.Identity() if fan_in == fan_out and stride == 1 else nn.Conv2d(fan_in, fan_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, O, H / stride, W / stride]`."""
        h = F.relu(self.norm1(self.conv1(x)))
        out: Tensor = F.relu(self.skip(x) + self.norm2(self.conv2(h)))
        return out


def resnet(widths: tuple[int, ...], blocks: int, groups: int, classes: int) -> nn.Module:
    """Images `[B, 3, H, W]` to logits; every width after the first at half the resolution."""
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.GroupNorm(groups, widths[0])]
    layers.append(nn.ReLU())
    fan_in = widths[0]
    for i, width in enumerate(widths):
        for k in range(blocks):
            layers.append(Residual(fan_in, width, 2 if i and not k else 1, groups))
            fan_in = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(fan_in, classes))


class LSTM(nn.Module):
    """Sequences `[B, T, features]` to logits from the last state."""

    def __init__(self, features: int, width: int, layers: int, classes: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, width, layers, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, classes]`."""
        y, _ = self.lstm(x)
        out: Tensor = self.head(y[:, -1])
        return out


class Attention(nn.Module):
    """Self-attention by torch's fused kernel."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, width]` to the same."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class Encoder(nn.Module):
    """Attention and a perceptron of four times the width, each after a layer norm and around a skip."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, width]` to the same."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.perceptron(self.norm2(x))
        return out


class ViT(nn.Module):
    """Images `[B, 3, H, W]` to logits: patches and a class token through pre-norm blocks."""

    def __init__(self, *, image: int, patch: int, width: int, heads: int, layers: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, 1 + (image // patch) ** 2, width) * 0.02)
        self.blocks = nn.Sequential(*[Encoder(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, classes]`."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        out: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return out
