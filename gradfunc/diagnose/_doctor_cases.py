"""Trainings on scikit-learn's data, each with one thing wrong and its cure, which changes nothing else; two healthy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

Step = Callable[[nn.Module, Optimizer, Any], None]
Data = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Training:
    """What `gf.diagnose.doctor` takes."""

    model: nn.Module
    criterion: nn.Module
    data: Data
    optimizer: Optimizer
    step: Step | None = None


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        name: the cause that the doctor must find first; another name of a healthy one.
        what: in words, with the data.
        make: `make(cured)` builds it, with draws of the global generator.
        sick: whether anything is wrong.
    """

    name: str
    what: str
    make: Callable[[bool], Training]
    sick: bool = True

    def training(self, *, cured: bool, seed: int) -> Training:
        """The draws are its own: sick and cured begin alike where their layers do."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.make(cured)


@cache
def digits() -> Data:
    """Pixels from 0 to 1, without those that are always 0."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return torch.as_tensor(x[:512, x[:512].std(0) > 0] / 16, dtype=torch.float32), torch.as_tensor(y[:512])


def scaled(x: Tensor) -> Tensor:
    """Mean 0, variance 1."""
    return (x - x.mean(0)) / x.std(0)


def perceptron(data: Data, outputs: int, *last: nn.Module, middle: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """One hidden layer of 32 units."""
    return nn.Sequential(nn.Linear(data[0].shape[1], 32), middle(), nn.Linear(32, outputs), *last)


def classifier(net: nn.Module | None = None, data: Data | None = None, step: Step | None = None) -> Training:
    """Sound, but for what is given."""
    data = data or digits()
    net = net or perceptron(data, 10)
    return Training(net, nn.CrossEntropyLoss(), data, SGD(net.parameters(), lr=0.1), step)


def regressor(scale_target: bool, lr: float) -> Training:
    """Diabetes: disease progression, from 25 to 346, of ten features."""
    from sklearn.datasets import load_diabetes

    x, y = (torch.as_tensor(value, dtype=torch.float32) for value in load_diabetes(return_X_y=True, scaled=False))
    data = scaled(x), scaled(y[:, None]) if scale_target else y[:, None]
    net = perceptron(data, 1)
    return Training(net, nn.MSELoss(), data, SGD(net.parameters(), lr=lr))


def softmax(cured: bool) -> Training:
    """Cross entropy takes logits."""
    return classifier(perceptron(digits(), 10, *([] if cured else [nn.Softmax(dim=1)])))


def features(cured: bool) -> Training:
    """Wine: proline goes to 1680, hues are about 1."""
    from sklearn.datasets import load_wine

    x, y = load_wine(return_X_y=True)
    x = torch.as_tensor(x, dtype=torch.float32)
    data = scaled(x) if cured else x, torch.as_tensor(y)
    return classifier(perceptron(data, 3), data)


def deep(activation: Callable[[], nn.Module], change: Callable[[Tensor], Any] | None) -> Training:
    """Eight hidden layers."""
    widths = [digits()[0].shape[1], *[32] * 8]
    parts = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), activation())]
    net = nn.Sequential(*parts, nn.Linear(32, 10))
    for layer in net:
        if change and isinstance(layer, nn.Linear):
            change(layer.weight)
            nn.init.zeros_(layer.bias)
    return classifier(net)


def vanishing(cured: bool) -> Training:
    """A sigmoid is at most a quarter as steep as the identity."""
    return deep(nn.ReLU, nn.init.kaiming_normal_) if cured else deep(nn.Sigmoid, None)


def exploding(cured: bool) -> Training:
    """Weights of variance 1 instead of 2 / fan_in."""
    return deep(nn.ReLU, nn.init.kaiming_normal_ if cured else nn.init.normal_)


def zero_grad(cured: bool) -> Training:
    """Without it gradients add up: SGD with momentum 1."""

    def step(model: nn.Module, optimizer: Optimizer, batch: Data) -> None:
        if cured:
            optimizer.zero_grad()
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()

    return classifier(step=step)


def division(cured: bool) -> Training:
    """A batch in four parts."""

    def step(model: nn.Module, optimizer: Optimizer, batch: Data) -> None:
        optimizer.zero_grad()
        for x, y in zip(batch[0].chunk(4), batch[1].chunk(4), strict=True):
            (F.cross_entropy(model(x), y) / (4 if cured else 1)).backward()
        optimizer.step()

    return classifier(step=step)


class Log(nn.Module):
    """log(relu(x) + eps)."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """-inf where eps is 0 and x is not positive."""
        return (x.relu() + self.eps).log()


def log_of_zero(cured: bool) -> Training:
    """Units that are off have no logarithm."""
    return classifier(perceptron(digits(), 10, middle=lambda: Log(1.0 if cured else 0.0)))


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return g * (1 - x.tanh())  # should be squared


class Tanh(nn.Module):
    """Its backward pass lowers the loss, and is wrong."""

    def forward(self, x: Tensor) -> Tensor:
        """tanh(x)."""
        y: Tensor = _Tanh.apply(x)  # type: ignore[no-untyped-call]
        return y


def wrong_backward(cured: bool) -> Training:
    """A custom function in place of nn.Tanh."""
    return classifier(perceptron(digits(), 10, middle=nn.Tanh if cured else Tanh))


def eval_mode(cured: bool) -> Training:
    """Left so after a validation: batch norms do not see the batch."""
    net = perceptron(digits(), 10)
    return classifier(nn.Sequential(net[0], nn.BatchNorm1d(32), net[1:]).train(cured))


def one_hot(cured: bool) -> Training:
    """A squared loss of one-hot targets: a proper score, and no fault."""
    x, y = digits()
    net = perceptron((x, y), 10)
    return Training(net, nn.MSELoss(), (x, F.one_hot(y, 10).float()), SGD(net.parameters(), lr=0.1))


CASES: tuple[Case, ...] = (
    Case("softmax_before_cross_entropy", "digits, softmax before loss", softmax),
    Case("unscaled_target", "diabetes, targets 25 to 346", lambda cured: regressor(cured, 0.01)),
    Case("unscaled_features", "wine, proline beside hue", features),
    Case("vanishing", "digits, eight sigmoid layers", vanishing),
    Case("exploding", "digits, weights from N(0, 1)", exploding),
    Case("rate_too_large", "diabetes, SGD with lr=8", lambda cured: regressor(True, 0.05 if cured else 8.0)),
    Case("missing_zero_grad", "digits, step lacks zero_grad", zero_grad),
    Case("missing_division", "digits, four parts, added", division),
    Case("nonfinite", "digits, log of ReLU", log_of_zero),
    Case("wrong_backward", "digits, custom tanh", wrong_backward),
    Case("eval_mode", "digits, batch norm in eval", eval_mode),
    Case("healthy", "digits, four parts, divided", lambda cured: division(True), sick=False),
    Case("one_hot_mse", "digits, MSE of one-hot", one_hot, sick=False),
)
