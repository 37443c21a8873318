"""Gradients from layer to layer."""

from __future__ import annotations

import torch
from torch import nn

from .draw import classifying


def vanishing(d, cured):
    return classifying(d, net=d.net(d.classes, hidden=8, activation=nn.ReLU if cured else nn.Sigmoid).apply(he(cured)))


def he(yes):
    def apply(layer):
        if yes and isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    return apply


def exploding(d, cured):
    net = d.net(d.classes, hidden=8, activation=nn.ReLU).apply(he(True))
    if not cured:
        for layer in net:
            if isinstance(layer, nn.Linear) and layer.out_features == layer.in_features:
                layer.weight.data *= 3
    return classifying(d, net=net)


def dead_units(d, cured):
    net = d.net(d.classes, activation=nn.ReLU)
    if not cured:
        nn.init.constant_(net[0].bias, -50.0)
    return classifying(d, net=net)


def saturated(d, cured):
    net = d.net(d.classes, activation=nn.Tanh)
    if not cured:
        net[0].weight.data *= 40
    return classifying(d, net=net)


def vanishing_under_adam(d, cured):
    """Adam makes up for it: a warning."""
    net = d.net(d.classes, hidden=8, activation=nn.ReLU if cured else nn.Sigmoid).apply(he(cured))
    return classifying(d, net=net, optimizer=torch.optim.Adam(net.parameters(), lr=1e-3))


def exploding_in_time(d, cured):
    """64 steps of a ReLU recurrence whose weight stretches by 2.5."""
    net, x = Recurrent(d, 0.9 if cured else 2.5), torch.randn(d.n, 64, 1)
    return classifying(d, net=net, x=x, y=x[:, -1, 0].argsort().argsort() * d.classes // d.n, lr=0.01)


class Recurrent(nn.Module):
    def __init__(self, d, stretch):
        super().__init__()
        self.rnn, self.head = nn.RNN(1, d.width, nonlinearity="relu", batch_first=True), nn.Linear(d.width, d.classes)
        nn.init.orthogonal_(self.rnn.weight_hh_l0, stretch)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def unused_layer(d, cured):
    """Called, and dropped."""
    return classifying(d, net=Dropped(d, cured))


class Dropped(nn.Module):
    def __init__(self, d, cured):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(d.d, d.width), nn.Linear(d.width, d.width), nn.Linear(d.width, d.classes)
        self.cured = cured

    def forward(self, x):
        h = self.a(x).tanh()
        more = self.b(h).tanh()
        return self.c(more if self.cured else h)


# name of the case -> the cause that must come first
SICK = {
    vanishing: "vanishing",
    exploding: "exploding",
    dead_units: "dead_units",
    saturated: "saturated",
    vanishing_under_adam: "vanishing",
    exploding_in_time: "exploding",
    unused_layer: "unused_parameter",
}
