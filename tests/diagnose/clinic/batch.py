"""The batch as a whole."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from .draw import case, classifying, sgd


def batch_coupling(d, cured):
    return classifying(d, net=nn.Sequential(nn.Softmax(1 if cured else 0), d.net(d.classes)))


def eval_mode(d, cured):
    net = nn.Sequential(d.net(d.width), nn.Dropout(0.1), nn.Linear(d.width, d.classes)).train(cured)
    return classifying(d, net=net)


def small_batch_norm(d, cured):
    net = nn.Sequential(nn.Linear(d.d, d.width), nn.BatchNorm1d(d.width), nn.ReLU(), nn.Linear(d.width, d.classes))
    n = d.n if cured else 3
    y = d.labels()
    return classifying(d, net=net, x=d.x[:n], y=y[:n])


class Drawing(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x):
        return x + 0.01 * torch.randn(x.shape, generator=self.generator)


def nondeterministic(d, cured):
    last = [] if cured else [Drawing()]
    net = d.net(d.classes, *last)
    return case(net, nn.CrossEntropyLoss(), (d.x, d.labels()))


def noisy_batch(d, cured):
    """Least squares beside its optimum, where |mean gradient|^2 is a thousandth above what chance makes of 0."""
    net, x, y = nn.Linear(d.d, 1, bias=False).double(), d.x.double(), d.numbers().double()
    y = y + torch.randn_like(y)
    if not cured:
        inverse = torch.linalg.inv(x.T @ x / d.n)
        best = inverse @ (x.T @ y) / d.n
        weight, along = best, torch.randn(d.d, 1).double()
        for _ in range(50):  # the noise moves a little with the weight
            rows = 2 * x * (x @ weight - y)
            mean = rows.mean(0)
            trace = (rows - mean).square().sum() / (d.n - 1)
            weight = best + inverse @ (along / along.norm() * (1.001 * trace / d.n).sqrt()) / 2
        net.weight.data = weight.T.contiguous()
    return case(net, nn.MSELoss(), (x, y), deep=True)


def reductions_disagree(d, cured):
    net, n = d.net(d.classes), 7
    weight = None if cured else torch.arange(1.0, d.classes + 1)
    return case(net, nn.CrossEntropyLoss(weight=weight), (d.x[:n], d.labels()[:n]), deep=True)


class Noisy(nn.Module):
    """Draws outside of torch."""

    def __init__(self, net, on):
        super().__init__()
        self.net, self.on, self.draws = net, on, np.random.default_rng(0)

    def forward(self, x):
        return self.net(x + self.on * torch.as_tensor(self.draws.normal(size=x.shape), dtype=x.dtype))


def numpy_noise(d, cured):
    net = Noisy(d.net(d.classes), not cured)
    return case(net, nn.CrossEntropyLoss(), (d.x, d.labels()), sgd(net))


def time_first(d, cured):
    """A recurrence that takes the batch for time."""
    net, x = Sequence(d, cured), torch.randn(d.n, 5, d.d)
    return classifying(d, net=net, x=x, y=x[:, -1, 0].argsort().argsort() * d.classes // d.n)


class Sequence(nn.Module):
    def __init__(self, d, batch_first):
        super().__init__()
        self.lstm, self.head = nn.LSTM(d.d, d.width, batch_first=batch_first), nn.Linear(d.width, d.classes)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


# name of the case -> the cause that must come first
SICK = {
    batch_coupling: "batch_coupling",
    eval_mode: "eval_mode",
    small_batch_norm: "small_batch_norm",
    nondeterministic: "nondeterministic",
    numpy_noise: "nondeterministic",
    time_first: "batch_coupling",
    noisy_batch: "noisy_batch",
    reductions_disagree: "reductions_disagree",
}
