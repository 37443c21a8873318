"""Small modules, one for each way of using a parameter: a batch goes in, `[B, C]` or `[B, T, C]` comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..._zoo._opaque import Product

CLASSES = 3


class Tied(nn.Module):
    """One matrix as the embedding and as the head; `untied` has two, of the same values."""

    def __init__(self, *, untied: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, CLASSES, bias=False)
        if not untied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens `[B, T]` to `[B, T, C]`."""
        out: Tensor = self.head(self.mix(self.embedding(tokens)).tanh())
        return out


class Scan(nn.Module):
    """A recurrence written out: its matrices are used once a step."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 3, bias=False), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Numbers `[B, T, 2]` to states `[B, T, C]`."""
        states = [torch.zeros_like(self.outer(x[:, 0]))]
        for step in x.unbind(1):
            states.append((self.inner(states[-1]) + self.outer(step)).tanh())
        return torch.stack(states[1:], 1)


class Recurrent(nn.Module):
    """One of torch's own recurrent layers."""

    def __init__(self, layer: Callable[..., nn.RNNBase]) -> None:
        super().__init__()
        self.layer = layer(2, CLASSES, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Numbers `[B, T, 2]` to states `[B, T, C]`."""
        out: Tensor = self.layer(x)[0]
        return out


class Custom(nn.Linear):
    """A linear layer by an `autograd.Function` of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """`[B, 2]` to `[B, C]`."""
        out: Tensor = Product.apply(x, self.weight)  # type: ignore[no-untyped-call]
        return out + self.bias


class Normalised(nn.Linear):
    """A linear layer whose rows have length 1: what meets the data is a function of the parameter."""

    def forward(self, x: Tensor) -> Tensor:
        """`[B, 2]` to `[B, C]`."""
        return F.linear(x, F.normalize(self.weight, dim=1), self.bias)


class Experts(nn.Module):
    """One matrix for each of four positions, as one batched product."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(4, 6, 6) / 3), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, 4, 6]` to `[B, C]`."""
        out: Tensor = self.head(torch.bmm(x.transpose(0, 1), self.weight).tanh().mean(0))
        return out


class Net(nn.Module):
    """A body, dropout behind it, and a parameter that nothing uses. What it writes to itself must not be seen."""

    def __init__(self, body: nn.Module, dropout: float, unused: bool) -> None:
        super().__init__()
        self.body, self.dropout = body, nn.Dropout(dropout)
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        if unused:
            self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        """The body's output."""
        self.calls += 1
        self.last = x.shape
        out: Tensor = self.dropout(self.body(x))
        return out


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    Attributes:
        body: makes the module.
        shape: of one sample's input; "T" is the length of a sequence.
        tokens: how many different ones the input holds; 0 for numbers.
        homogeneous: whether its output scales with its input, so that huge and tiny inputs say something.
    """

    body: Callable[[], nn.Module]
    shape: tuple[int | str, ...]
    tokens: int = 0
    homogeneous: bool = False

    @property
    def sequence(self) -> bool:
        """Whether the output is `[T, C]`, of any T."""
        return "T" in self.shape


# From the simplest on: hypothesis shrinks towards the first.
KINDS = {
    "linear": Kind(lambda: nn.Linear(2, CLASSES), (2,), homogeneous=True),
    "mlp": Kind(lambda: nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, CLASSES)), (2,), homogeneous=True),
    "layer norm": Kind(lambda: nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, CLASSES)), (2,)),
    "conv1d": Kind(
        lambda: nn.Sequential(nn.Conv1d(2, 3, 2, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(6, CLASSES)),
        (2, 4),
    ),
    "conv2d, group norm": Kind(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 2, padding=1, groups=2, dilation=2),
            nn.GroupNorm(2, 4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(36, CLASSES),
        ),
        (2, 3, 3),
    ),
    "embedding, padding": Kind(
        lambda: nn.Sequential(nn.Embedding(4, 3, padding_idx=0), nn.Linear(3, CLASSES)), ("T",), tokens=4
    ),
    "tied": Kind(Tied, ("T",), tokens=CLASSES),
    "scan": Kind(Scan, ("T", 2)),
    "rnn": Kind(lambda: Recurrent(nn.RNN), ("T", 2)),
    "gru": Kind(lambda: Recurrent(nn.GRU), ("T", 2)),
    "lstm": Kind(lambda: Recurrent(nn.LSTM), ("T", 2)),
    # Wide enough for their rows to stay factors.
    "wide": Kind(lambda: nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, CLASSES)), ("T", 12)),
    "conv2d, large kernel": Kind(
        lambda: nn.Sequential(nn.Conv2d(4, 4, 5, padding=2), nn.Tanh(), nn.Flatten(), nn.Linear(36, CLASSES)), (4, 3, 3)
    ),
    "table": Kind(lambda: nn.Sequential(nn.Embedding(20, 4), nn.Linear(4, CLASSES)), ("T",), tokens=20),
    "experts": Kind(Experts, (4, 6)),
    # What no rule knows, and what is a function of its parameter.
    "custom function": Kind(lambda: Custom(2, CLASSES), (2,)),
    "normalised weight": Kind(lambda: Normalised(2, CLASSES), (2,)),
}
