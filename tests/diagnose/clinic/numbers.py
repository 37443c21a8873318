"""Rounding, overflow, functions where they are not defined; backward passes that are no derivatives."""

from __future__ import annotations

import torch
from torch import nn

from .draw import Apply, case, classifying


class Wrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 - x.tanh())  # should be squared


class Tanh(nn.Module):
    def forward(self, x):
        return Wrong.apply(x)


def wrong_backward(d, cured):
    return classifying(d, net=d.net(d.classes, activation=nn.Tanh if cured else Tanh))


class Log(nn.Module):
    def __init__(self, eps):
        super().__init__()
        self.eps = eps

    def forward(self, x):
        return (x.relu() + self.eps).log()


def log_of_zero(d, cured):
    return classifying(d, net=d.net(d.classes, activation=lambda: Log(1.0 if cured else 0.0)))


class Difference(nn.Module):
    """x as a difference of large numbers."""

    def __init__(self, large):
        super().__init__()
        self.large = large

    def forward(self, x):
        return ((x + self.large).square() - x.square() - self.large**2) / (2 * self.large)


def cancellation(d, cured):
    return classifying(d, net=d.net(d.classes, activation=lambda: Difference(1.0 if cured else 3e7)))


def update_lost(d, cured):
    net = d.net(1)
    x, y = d.x, d.numbers()
    if not cured:
        net, x, y = net.bfloat16(), x.bfloat16(), y.bfloat16()
    return case(net, nn.MSELoss(), (x, y), torch.optim.Adam(net.parameters(), lr=1e-6 if not cured else 1e-3))


def between(fn, safe):
    """A classifier with a function between its layers, or the safe form of it."""

    def make(d, cured):
        return classifying(d, net=d.net(d.classes, activation=lambda: Apply(safe if cured else fn)))

    return make


root_of_zero = between(lambda x: (x * (x > 0)).square().sqrt(), lambda x: (x.square() + 1).sqrt())


division_by_zero = between(lambda x: x / (x.relu().amin(1, keepdim=True)), lambda x: x / x.norm(dim=1, keepdim=True))


overflow = between(lambda x: (x * 300).exp(), torch.tanh)


root_of_zero.__name__, division_by_zero.__name__, overflow.__name__ = "root_of_zero", "division_by_zero", "overflow"


def underflow(d, cured):
    net, x, y = d.net(1), d.x, d.numbers()
    if not cured:
        net, x, y = net.half(), x.half(), y.half()
    return case(net, lambda output, target: (1e-6 * (output - target).square()).mean(1), (x, y))


def wrong_hook(d, cured):
    net = d.net(d.classes)
    if not cured:
        net[0].register_full_backward_hook(lambda layer, given, got: (None if given[0] is None else 2 * given[0],))
        net[2].register_full_backward_hook(lambda layer, given, got: (3 * given[0],))
    return classifying(d, net=net)


# name of the case -> the cause that must come first
SICK = {
    wrong_backward: "wrong_backward",
    log_of_zero: "nonfinite",
    cancellation: "precision",
    update_lost: "update_lost",
    root_of_zero: "nonfinite",
    division_by_zero: "nonfinite",
    overflow: "nonfinite",
    underflow: "precision",
    wrong_hook: "wrong_backward",
}
