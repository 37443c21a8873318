"""Data with something wrong."""

from __future__ import annotations

import torch

from .draw import classifying, regressing


def nonfinite_input(d, cured):
    x = d.x.clone()
    x[3, 1] = 0.0 if cured else float("nan")
    return classifying(d, x=x)


def nonfinite_target(d, cured):
    y = d.numbers()
    y[5] = 0.0 if cured else float("inf")
    return regressing(d, y=y)


def unscaled_features(d, cured):
    x = d.x * torch.logspace(0, 4, d.d)
    return classifying(d, x=(x - x.mean(0)) / x.std(0) if cured else x, lr=0.01)


def unscaled_inputs(d, cured):
    x = 60 * d.x + 128
    return classifying(d, x=(x - x.mean(0)) / x.std(0) if cured else x, lr=0.01)


def identical_inputs(d, cured):
    return classifying(d, x=d.x if cured else d.x[:1].expand(d.n, -1).contiguous())


def constant_features(d, cured):
    x, y = d.x.clone(), d.labels()
    x[:, 2] = 1.0
    keep = [k for k in range(d.d) if k != 2 or not cured]
    return classifying(d, x=x[:, keep], y=y, net=d.net(d.classes, inputs=len(keep)))


def duplicates(d, cured):
    half = d.n // 2
    x, y = (torch.cat([value[:half], value[:half]]) for value in (d.x, d.labels()))
    return classifying(d, x=d.x if cured else x, y=d.labels() if cured else y)


def contradicting_labels(d, cured):
    half, y = d.n // 2, d.labels(3)
    x = d.x if cured else torch.cat([d.x[:half], d.x[:half]])
    y = y if cured else torch.cat([y[:half], (y[:half] + 1) % 3])
    return classifying(d, x=x, y=y, net=d.net(3))


def class_imbalance(d, cured):
    order = d.scores(1)[:, 0].argsort().argsort()
    return classifying(d, y=(order < d.n // (2 if cured else 20)).long(), net=d.net(2))


def labels_shuffled(d, cured):
    y = d.labels()
    return classifying(d, y=y if cured else y[torch.randperm(d.n)])


def labels_shifted(d, cured):
    y = d.labels()
    return classifying(d, y=y if cured else y.roll(1))


def rate_of_raw_features(d, cured):
    x = torch.cat([d.x, 5000 * d.scores(1)], 1)
    net = d.net(1, inputs=d.d + 1)
    return regressing(d, net=net, x=(x - x.mean(0)) / x.std(0) if cured else x)


# name of the case -> the cause that must come first
SICK = {
    nonfinite_input: "nonfinite_data",
    nonfinite_target: "nonfinite_data",
    unscaled_features: "unscaled_features",
    unscaled_inputs: "unscaled_inputs",
    identical_inputs: "identical_inputs",
    constant_features: "constant_features",
    duplicates: "duplicates",
    contradicting_labels: "contradicting_labels",
    class_imbalance: "class_imbalance",
    labels_shuffled: "labels_unrelated",
    labels_shifted: "labels_shifted",
    rate_of_raw_features: "unscaled_features",
}
