"""Shapes and data of one seed, and what trainings are made of."""

from __future__ import annotations

import torch
from torch import nn


class Draw:
    """Shapes and data of one seed."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(1000 + seed)
        self.d, self.width = self.int(4, 10), self.int(12, 28)
        self.classes, self.n = self.int(2, 5), 16 * self.int(6, 11)
        self.activation = (nn.ReLU, nn.Tanh, nn.GELU)[self.int(0, 3)]
        torch.manual_seed(seed)  # of the layers' own initialisation; callers fork
        self.x = torch.randn(self.n, self.d)

    def int(self, low, high):
        return int(torch.randint(low, high, (1,), generator=self.generator))

    def scores(self, outputs):
        return self.x @ torch.randn(self.d, outputs)

    def labels(self, classes=None):
        classes = classes or self.classes
        order = self.scores(1)[:, 0].argsort().argsort()
        return order * classes // self.n  # classes of equal size, by one direction

    def numbers(self, outputs=1):
        y = self.scores(outputs) / self.d**0.5
        return y + 0.1 * torch.randn(y.shape)

    def net(self, outputs, *last, inputs=None, hidden=1, activation=None):
        parts = [nn.Linear(inputs or self.d, self.width), (activation or self.activation)()]
        for _ in range(hidden - 1):
            parts += [nn.Linear(self.width, self.width), (activation or self.activation)()]
        return nn.Sequential(*parts, nn.Linear(self.width, outputs), *last)


def plain(criterion):
    def step(model, optimizer, batch):
        optimizer.zero_grad()
        criterion(model(batch[0]), batch[1]).backward()
        optimizer.step()

    return step


def case(model, criterion, data, optimizer=None, step=None, **options):
    return {"model": model, "criterion": criterion, "data": data, "optimizer": optimizer, "step": step, **options}


def sgd(model, lr=0.05, **options):
    return torch.optim.SGD(model.parameters(), lr=lr, **options)


def classifying(d, change=None, *, net=None, lr=0.05, x=None, y=None, optimizer=None, **options):
    """A sound classifier with the update `change` in place of its own."""
    net = d.net(d.classes) if net is None else net
    criterion = nn.CrossEntropyLoss()
    data = (d.x if x is None else x, d.labels() if y is None else y)
    step = change(criterion) if change else plain(criterion)
    return case(net, criterion, data, optimizer or sgd(net, lr), step, **options)


def regressing(d, *, net=None, x=None, y=None, lr=0.01, criterion=None, **options):
    net = d.net(1) if net is None else net
    criterion = criterion or nn.MSELoss()
    return case(net, criterion, (d.x if x is None else x, d.numbers() if y is None else y), sgd(net, lr), **options)


class Apply(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return self.fn(x)
