"""Gradients from layer to layer."""

from __future__ import annotations

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


# name of the case -> the cause that must come first
SICK = {
    vanishing: "vanishing",
    exploding: "exploding",
    dead_units: "dead_units",
    saturated: "saturated",
}
