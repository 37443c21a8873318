"""Each mechanism triggered once: the smallest problem in which it acts, of any shape and seed.

Read by `gradfunc audit`, which prints measured against predicted, and by the tests, which vary n and the seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._random import forked
from .._stateless import Stateless, stateless
from .._weights import Weighted
from ._loops import YourLoop


@dataclass(frozen=True)
class Example:
    """A problem in which `mechanism` is the cause of the discrepancy of `pair`."""

    mechanism: str
    pair: tuple[str, str]
    model: nn.Module | Stateless
    criterion: Any
    batch: Any
    yours: YourLoop | None = None


@dataclass(frozen=True)
class Draw:
    """What an example is made of: n samples, a seed, and widths that follow from it."""

    n: int
    seed: int
    width: int = field(init=False)
    classes: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", 3 + self.seed % 4)
        object.__setattr__(self, "classes", 3 + self.seed % 3)

    def net(self, outputs: int | None = None, *middle: nn.Module) -> nn.Sequential:
        """A small multilayer perceptron, with layers of choice in the middle."""
        return nn.Sequential(
            nn.Linear(self.width, 8), *middle, nn.Tanh(), nn.Linear(8, self.classes if outputs is None else outputs)
        )

    def x(self, *more: int) -> Tensor:
        """Inputs."""
        return torch.randn(self.n, *(more or (self.width,)))

    def y(self, *more: int) -> Tensor:
        """Class targets."""
        return torch.randint(self.classes, (self.n, *more))

    def class_weights(self) -> Tensor:
        """Positive weights, no two alike."""
        return torch.rand(self.classes) + 0.1 + torch.arange(self.classes)


class Tokens(nn.Module):
    """Token logits `[n, C, T]`, as torch's losses want them."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, T, width] -> [n, C, T]`."""
        out: Tensor = self.head(x).transpose(1, 2)
        return out


class LogSoftmaxOverTime(nn.Module):
    """Log probabilities `[T, n, C]`, as CTCLoss wants them."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, T, width] -> [T, n, C]`."""
        return F.log_softmax(self.head(x), -1).transpose(0, 1)


def _loop(collect: Callable[[nn.Module, Any, Tensor, Tensor], None]) -> YourLoop:
    def yours(model: nn.Module, criterion: Any, batch: Any) -> None:
        collect(model, criterion, *batch)

    return yours


def _split(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _means_averaged(model: nn.Module, criterion: Any, x: Tensor, y: Tensor) -> None:
    cuts = _split(len(x), _uneven(len(x)))
    for cut in cuts:
        (criterion(model(x[cut]), y[cut]) / len(cuts)).backward()


def _means_added(model: nn.Module, criterion: Any, x: Tensor, y: Tensor) -> None:
    for cut in _split(len(x), max(1, len(x) // 2) if len(x) % 2 == 0 else len(x)):
        criterion(model(x[cut]), y[cut]).backward()


def _nominal_size(model: nn.Module, criterion: Any, x: Tensor, y: Tensor) -> None:
    cuts = _split(len(x), size := _uneven(len(x)))
    for cut in cuts:
        (criterion(model(x[cut]), y[cut]) * (cut.stop - cut.start) / (size * len(cuts))).backward()


def _nominal_window(model: nn.Module, criterion: Any, x: Tensor, y: Tensor) -> None:
    for cut in _split(len(x), (len(x) + 1) // 2 if len(x) % 2 == 0 else len(x)):
        (criterion(model(x[cut]), y[cut]) / 4).backward()


def _never_zeroed(model: nn.Module, criterion: Any, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for i in range(len(x)):
        criterion(model(x[i : i + 1]), y[i : i + 1]).backward()
        for name, p in model.named_parameters():
            assert p.grad is not None
            total[name] = total.get(name, torch.zeros_like(p)) + p.grad / len(x)
    return total


def _padding_in_the_mean(model: nn.Module, criterion: Any, x: Tensor, y: Tensor) -> None:
    elements = F.cross_entropy(model(x), y, ignore_index=criterion.ignore_index, reduction="none")
    elements.mean().backward()


def _uneven(n: int) -> int:
    """A micro-batch size that leaves a shorter last one."""
    return next((size for size in range(2, n) if n % size), max(n - 1, 1))


def _some_ignored(y: Tensor, ignored: int) -> Tensor:
    """A different number of ignored positions in each sample, none of them wholly ignored."""
    y = y.clone()
    if y.dim() == 1:
        y[::3] = ignored
        return y
    for i in range(1, len(y)):
        y[i, 1 + i % (y.shape[1] - 1) :] = ignored
    return y


def _ctc(d: Draw) -> Example:
    length, time = 4, 12
    targets = torch.randint(1, d.classes, (d.n, length))
    lengths = 1 + torch.arange(d.n) % length
    batch = (d.x(time, d.width), (targets, torch.full((d.n,), time), lengths))
    model = stateless(LogSoftmaxOverTime(d.width, d.classes), out_dims=1)
    return Example("ctc_lengths", ("sum / n", "mean"), model, nn.CTCLoss(), batch)


def _padded(d: Draw) -> tuple[nn.Module, nn.Module, Any]:
    time = 4 + d.seed % 3
    y = _some_ignored(d.y(time), -100)
    return Tokens(d.width, d.classes), nn.CrossEntropyLoss(), (d.x(time, d.width), y)


_MAKERS: dict[str, Callable[[Draw], Example]] = {
    "aliased_first_sample": lambda d: Example(
        "aliased_first_sample", ("none", "forum loop"), d.net(), nn.CrossEntropyLoss(), (d.x(), d.y())
    ),
    "class_weights": lambda d: Example(
        "class_weights", ("none", "mean"), d.net(), nn.CrossEntropyLoss(weight=d.class_weights()), (d.x(), d.y())
    ),
    "label_smoothing_weights": lambda d: Example(
        "label_smoothing_weights",
        ("sliced", "mean"),
        d.net(),
        nn.CrossEntropyLoss(weight=d.class_weights(), label_smoothing=0.2),
        (d.x(), d.y()),
    ),
    "ignore_index": lambda d: Example(
        "ignore_index", ("sum / n", "mean"), d.net(), nn.CrossEntropyLoss(), (d.x(), _some_ignored(d.y(), -100))
    ),
    "padding": lambda d: Example("padding", ("sliced", "mean"), *_padded(d)),
    "element_mean": lambda d: Example(
        "element_mean", ("none", "mean"), d.net(3), nn.MSELoss(), (d.x(), torch.randn(d.n, 3))
    ),
    "batchmean": lambda d: Example(
        "batchmean",
        ("sum / n", "mean"),
        nn.Sequential(d.net(), nn.LogSoftmax(-1)),
        nn.KLDivLoss(),
        (d.x(), torch.randn(d.n, d.classes).softmax(-1)),
    ),
    "broadcast": lambda d: Example("broadcast", ("mean", "sliced"), d.net(1), nn.MSELoss(), (d.x(), torch.randn(d.n))),
    "ctc_lengths": _ctc,
    "sample_weights": lambda d: Example(
        "sample_weights",
        ("none", "mean"),
        d.net(),
        _weighted_rows,
        (d.x(), d.y()),
    ),
    "batch_statistics": lambda d: Example(
        "batch_statistics",
        ("mean", "re-fed"),
        d.net(None, nn.BatchNorm1d(8)),
        nn.CrossEntropyLoss(),
        (d.x(), d.y()),
    ),
    "dropout": lambda d: Example(
        "dropout", ("mean", "re-fed"), d.net(None, nn.Dropout(0.4)), nn.CrossEntropyLoss(), (d.x(), d.y())
    ),
    "unequal_micro_batches": lambda d: _yours(d, "unequal_micro_batches", _means_averaged),
    "no_division": lambda d: _yours(d, "no_division", _means_added, even=True),
    "short_last_batch": lambda d: _yours(d, "short_last_batch", _nominal_size),
    "short_last_window": lambda d: _yours(d, "short_last_window", _nominal_window, even=True),
    "missing_zero_grad": lambda d: Example(
        "missing_zero_grad",
        ("mean", "yours"),
        d.net(),
        nn.CrossEntropyLoss(),
        (d.x(), d.y()),
        lambda model, criterion, batch: _never_zeroed(model, criterion, *batch),
    ),
    "padding_counted": lambda d: Example(
        "padding_counted", ("mean", "yours"), *_padded(d), _loop(_padding_in_the_mean)
    ),
}


def _weighted_rows(output: Tensor, target: Tensor) -> Any:
    return Weighted(F.cross_entropy(output, target, reduction="none"), 1.0 + target.to(output.dtype))


def _yours(d: Draw, name: str, collect: Any, even: bool = False) -> Example:
    d = Draw(d.n + d.n % 2, d.seed) if even else d
    return Example(name, ("mean", "yours"), d.net(), nn.CrossEntropyLoss(), (d.x(), d.y()), _loop(collect))


def example(mechanism: str, n: int = 7, seed: int = 0) -> Example:
    """A problem of n (or n + 1) samples in which `mechanism` acts. Needs n >= 5."""
    with forked(seed, 17, devices=[]):
        return _MAKERS[mechanism](Draw(n, seed))
