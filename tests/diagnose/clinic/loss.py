"""Losses that do not fit their targets."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .draw import Apply, case, classifying, regressing, sgd


def softmax_before_cross_entropy(d, cured):
    return classifying(d, net=d.net(d.classes) if cured else d.net(d.classes, nn.Softmax(-1)))


def sigmoid_before_cross_entropy(d, cured):
    return classifying(d, net=d.net(d.classes) if cured else d.net(d.classes, nn.Sigmoid()))


def nll_on_logits(d, cured):
    net = d.net(d.classes, nn.LogSoftmax(-1)) if cured else d.net(d.classes)
    return case(net, nn.NLLLoss(), (d.x, d.labels()), sgd(net))


def nll_on_probabilities(d, cured):
    net = d.net(d.classes, nn.LogSoftmax(-1) if cured else nn.Softmax(-1))
    return case(net, F.nll_loss, (d.x, d.labels()), sgd(net))


def sigmoid_before_logits_loss(d, cured):
    net = d.net(1) if cured else d.net(1, nn.Sigmoid(), nn.Flatten())
    return case(net, nn.BCEWithLogitsLoss(), (d.x, d.labels(2).float()[:, None]), sgd(net))


def bce_on_logits(d, cured):
    net = d.net(1, nn.Sigmoid()) if cured else d.net(1)
    return case(net, nn.BCELoss(), (d.x, d.labels(2).float()[:, None]), sgd(net))


def mse_on_sigmoid(d, cured):
    net = d.net(1) if cured else d.net(1, nn.Sigmoid())
    y = d.labels(2).float()[:, None]
    return case(net, nn.BCEWithLogitsLoss() if cured else nn.MSELoss(), (d.x, y), sgd(net))


def classes_under_mse(d, cured):
    y = d.labels(4)
    net = d.net(4) if cured else d.net(1)
    return case(net, nn.CrossEntropyLoss() if cured else nn.MSELoss(), (d.x, y if cured else y[:, None]), sgd(net))


def broadcast_target(d, cured):
    y = d.numbers()
    return regressing(d, y=y if cured else y[:, 0])


def index_out_of_range(d, cured):
    return classifying(d, y=d.labels() + int(not cured))


def negative_index(d, cured):
    return classifying(d, y=d.labels() - int(not cured))


def target_out_of_range(d, cured):
    y = d.labels(2).float()[:, None]
    net = d.net(1)
    return case(net, nn.BCEWithLogitsLoss(), (d.x, y if cured else 2 * y - 1), sgd(net))


def target_out_of_reach(d, cured):
    return regressing(d, net=d.net(1) if cured else d.net(1, nn.ReLU()))


def tanh_out_of_reach(d, cured):
    return regressing(d, net=d.net(1) if cured else d.net(1, nn.Tanh()), y=2 * d.numbers())


def one_class(d, cured):
    net, y = d.net(1), d.labels(2)
    if cured:
        return case(net, nn.BCEWithLogitsLoss(), (d.x, y.float()[:, None]), sgd(net))
    return case(net, nn.CrossEntropyLoss(), (d.x, torch.zeros_like(y)), sgd(net))


def unscaled_target(d, cured):
    y = 300 * d.numbers() + 500
    return regressing(d, y=(y - y.mean()) / y.std() if cured else y, lr=1e-3)


def sum_reduction(d, cured):
    criterion = nn.MSELoss(reduction="mean" if cured else "sum")
    return regressing(d, criterion=criterion, lr=0.05)


def exploding_regression(d, cured):
    """Ten features, targets of a size of 130, 15 hidden units, batches of 32, a rate of 1/100: NaN soon."""
    x, coefficients = torch.randn(1000, 10), 100 * torch.rand(10)
    y = (x @ coefficients)[:, None] + 0.1 * torch.randn(1000, 1)
    net = nn.Sequential(nn.Linear(10, 15), nn.ReLU(), nn.Linear(15, 1))
    y = (y - y.mean()) / y.std() if cured else y
    return case(net, nn.MSELoss(), list(zip(x.split(32), y.split(32), strict=True)), sgd(net, 0.01))


def loss_fails(d, cured):
    net = d.net(d.classes)
    y = d.labels()
    return case(net, nn.CrossEntropyLoss(), (d.x, y if cured else y[:, None]), sgd(net))


def worse_than_constant(d, cured):
    net = d.net(d.classes)
    if not cured:
        net[-1].weight.data *= 60
    return case(net, nn.CrossEntropyLoss(), (d.x, d.labels()))


class Ignoring(nn.Module):
    """Never looks at its input."""

    def __init__(self, body, sees):
        super().__init__()
        self.body, self.sees = body, sees

    def forward(self, x):
        return self.body(x if self.sees else torch.ones_like(x))


def constant_output(d, cured):
    return classifying(d, net=Ignoring(d.net(d.classes), cured))


def one_output_a_class(d, cured):
    """Two outputs a sample against one number, 0 or 1: shapes that do not broadcast."""
    net, y = d.net(2), d.labels(2)
    return case(net, nn.CrossEntropyLoss() if cured else nn.MSELoss(), (d.x, y if cured else y.float()), sgd(net))


def classes_under_bce(d, cured):
    net, y = d.net(2), d.labels(2)
    return case(net, nn.CrossEntropyLoss() if cured else nn.BCELoss(), (d.x, y if cured else y.float()), sgd(net))


def classes_as_floats(d, cured):
    net, y = d.net(4 if cured else 1), d.labels(4)
    data = (d.x, y if cured else y.float()[:, None])
    return case(net, nn.CrossEntropyLoss() if cured else nn.MSELoss(), data, sgd(net))


def last_dimension(d, cured):
    net, x = nn.Sequential(nn.Embedding(20, d.width), nn.Linear(d.width, 20)), torch.randint(0, 20, (32, 9))
    move = Apply(lambda output: output.movedim(-1, 1) if cured else output)
    return case(nn.Sequential(net, move), nn.CrossEntropyLoss(), (x[:, :-1], x[:, 1:]), sgd(net))


def softmax_and_log_softmax(d, cured):
    net = d.net(d.classes, *([] if cured else [nn.Softmax(1)]), nn.LogSoftmax(1))
    return case(net, nn.NLLLoss(), (d.x, d.labels()), sgd(net))


def relu_on_logits(d, cured):
    return classifying(d, net=d.net(d.classes, *([] if cured else [nn.ReLU()])))


def token_beyond_table(d, cured):
    x = torch.randint(0, 20, (d.n, 5))
    x[0, 0] = 20
    net = nn.Sequential(nn.Embedding(20 + cured, d.width), nn.Flatten(), nn.Linear(5 * d.width, d.classes))
    return classifying(d, net=net, x=x, y=x[:, 0] % d.classes)


def integers_under_bce(d, cured):
    net, y = d.net(1), d.labels(2)[:, None]
    return case(net, nn.BCEWithLogitsLoss(), (d.x, y.float() if cured else y), sgd(net))


def double_inputs(d, cured):
    return classifying(d, x=d.x if cured else d.x.double())


def softmax_in_a_function(d, cured):
    """A loss of one number, written by the user."""
    net = d.net(d.classes, *([] if cured else [nn.Softmax(-1)]))
    return case(net, lambda output, y: F.cross_entropy(output, y), (d.x, d.labels()), sgd(net))


# name of the case -> the cause that must come first
SICK = {
    softmax_before_cross_entropy: "softmax_before_cross_entropy",
    sigmoid_before_cross_entropy: "softmax_before_cross_entropy",
    nll_on_logits: "nll_on_logits",
    nll_on_probabilities: "nll_on_probabilities",
    sigmoid_before_logits_loss: "sigmoid_before_logits_loss",
    bce_on_logits: "bce_on_logits",
    mse_on_sigmoid: "mse_on_sigmoid",
    classes_under_mse: "classes_under_regression",
    broadcast_target: "broadcast_target",
    index_out_of_range: "index_out_of_range",
    negative_index: "index_out_of_range",
    target_out_of_range: "target_out_of_range",
    target_out_of_reach: "target_out_of_reach",
    tanh_out_of_reach: "target_out_of_reach",
    one_class: "one_class",
    unscaled_target: "unscaled_target",
    sum_reduction: "sum_reduction",
    exploding_regression: "unscaled_target",
    loss_fails: "loss_fails",
    worse_than_constant: "worse_than_constant",
    constant_output: "constant_output",
    one_output_a_class: "classes_under_regression",
    classes_under_bce: "bce_on_logits",
    classes_as_floats: "classes_under_regression",
    last_dimension: "class_dimension",
    softmax_and_log_softmax: "softmax_before_cross_entropy",
    relu_on_logits: "relu_on_logits",
    token_beyond_table: "index_out_of_range",
    integers_under_bce: "loss_fails",
    double_inputs: "loss_fails",
    softmax_in_a_function: "softmax_before_cross_entropy",
}
