"""Learning rates and weight decay."""

from __future__ import annotations

import torch
from torch import nn

from .draw import case, regressing, sgd


def rate_too_large(d, cured):
    return regressing(d, lr=0.02 if cured else 8.0)


def rate_too_large_momentum(d, cured):
    net = d.net(1)
    lr = 0.01 if cured else 20.0
    return case(net, nn.MSELoss(), (d.x, d.numbers()), sgd(net, lr, momentum=0.9))


def rate_too_large_adam(d, cured):
    net = d.net(1)
    lr = 1e-3 if cured else 3.0
    return case(net, nn.MSELoss(), (d.x, d.numbers()), torch.optim.Adam(net.parameters(), lr=lr))


def rate_too_small(d, cured):
    return regressing(d, lr=0.02 if cured else 1e-7)


def rate_too_small_adam(d, cured):
    net = d.net(1)
    lr = 1e-3 if cured else 1e-9
    return case(net, nn.MSELoss(), (d.x, d.numbers()), torch.optim.Adam(net.double().parameters(), lr=lr)) | {
        "data": (d.x.double(), d.numbers().double())
    }


def rate_zero(d, cured):
    return regressing(d, lr=0.02 if cured else 0.0)


def decay_overpowers(d, cured):
    net = d.net(1)
    return case(net, nn.MSELoss(), (d.x, d.numbers()), sgd(net, 0.01, weight_decay=1e-4 if cured else 30.0))


def ascent(d, cured):
    net = d.net(1)
    return case(net, nn.MSELoss(), (d.x, d.numbers()), sgd(net, 0.01, maximize=not cured))


def rate_too_large_nesterov(d, cured):
    net = d.net(1)
    return case(net, nn.MSELoss(), (d.x, d.numbers()), sgd(net, 0.01 if cured else 8.0, momentum=0.9, nesterov=True))


# name of the case -> the cause that must come first
SICK = {
    rate_too_large: "rate_too_large",
    rate_too_large_momentum: "rate_too_large",
    rate_too_large_adam: "rate_too_large",
    rate_too_small: "rate_too_small",
    rate_too_small_adam: "rate_too_small",
    rate_zero: "rate_zero",
    decay_overpowers: "decay_overpowers",
    ascent: "ascent",
    rate_too_large_nesterov: "rate_too_large",
}
