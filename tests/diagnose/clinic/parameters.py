"""Parameters that do not learn."""

from __future__ import annotations

import copy

import torch
from torch import nn

from .draw import Apply, classifying, sgd


class Cut(nn.Module):
    def __init__(self, d, cured, how):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(d.d, d.width), nn.Tanh()), nn.Linear(d.width, d.classes)
        self.cured, self.how = cured, how

    def forward(self, x):
        if self.cured or self.how == "unused":
            return self.head(self.body(x))
        if self.how == "no_grad":
            with torch.no_grad():
                h = self.body(x)
            return self.head(h)
        return self.head(self.body(x).detach())


def detached(d, cured):
    return classifying(d, net=Cut(d, cured, "detach"))


def no_grad(d, cured):
    return classifying(d, net=Cut(d, cured, "no_grad"))


def unused_parameter(d, cured):
    net = Cut(d, cured, "unused")
    if not cured:
        net.more = nn.Linear(d.width, d.width)
    return classifying(d, net=net)


def all_frozen(d, cured):
    net = d.net(d.classes).requires_grad_(cured)
    return classifying(d, net=net)


def other_parameters(d, cured):
    net = d.net(d.classes)
    return classifying(d, net=net, optimizer=sgd(net if cured else copy.deepcopy(net)))


def left_out(d, cured):
    net = d.net(d.classes)
    return classifying(d, net=net, optimizer=sgd(net if cured else net[0]))


def zero_init(d, cured):
    net = d.net(d.classes, hidden=2)
    if not cured:
        for p in net.parameters():
            nn.init.zeros_(p)
    return classifying(d, net=net)


def symmetric_init(d, cured):
    net = d.net(d.classes, activation=nn.Tanh)
    if not cured:
        for layer in (net[0], net[2]):
            nn.init.constant_(layer.weight, 0.1)
            nn.init.zeros_(layer.bias)
    return classifying(d, net=net)


def cut_by_data(d, cured):
    return classifying(
        d, net=nn.Sequential(d.net(d.width), Apply(lambda x: x if cured else x.data), d.net(d.classes, inputs=d.width))
    )


def frozen_in_optimizer(d, cured):
    net = d.net(d.classes, hidden=2)
    net[0].requires_grad_(False)
    own = [p for p in net.parameters() if p.requires_grad] if cured else list(net.parameters())
    return classifying(d, net=net, optimizer=torch.optim.SGD(own, lr=0.05))


def rounded(d, cured):
    """round has derivative 0."""
    middle = Apply(torch.tanh if cured else lambda x: (3 * x).round())
    return classifying(d, net=nn.Sequential(nn.Linear(d.d, d.width), middle, nn.Linear(d.width, d.classes)))


# name of the case -> the cause that must come first
SICK = {
    detached: "gradient_cut",
    no_grad: "gradient_cut",
    unused_parameter: "unused_parameter",
    all_frozen: "all_frozen",
    other_parameters: "other_parameters",
    left_out: "parameters_left_out",
    zero_init: "zero_init",
    symmetric_init: "symmetric_init",
    cut_by_data: "gradient_cut",
    rounded: "gradient_cut",
    frozen_in_optimizer: "frozen_in_optimizer",
}
