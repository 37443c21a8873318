"""Nothing wrong."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .draw import case, classifying, plain, regressing, sgd
from .flow import he
from .step import parts, scaled


def classifier(d):
    return classifying(d)


def regressor(d):
    return regressing(d)


def binary(d):
    net, criterion = d.net(1), nn.BCEWithLogitsLoss()
    return case(net, criterion, (d.x, d.labels(2).float()[:, None]), sgd(net), plain(criterion))


def probabilities(d):
    net = d.net(1, nn.Sigmoid())
    return case(net, nn.BCELoss(), (d.x, d.labels(2).float()[:, None]), sgd(net))


def log_probabilities(d):
    net = d.net(d.classes, nn.LogSoftmax(-1))
    return case(net, nn.NLLLoss(), (d.x, d.labels()), sgd(net))


def brier(d):
    net, y = d.net(d.classes), d.labels()
    return case(net, nn.MSELoss(), (d.x, F.one_hot(y, d.classes).float()), sgd(net))


def with_adam(d):
    net = d.net(d.classes)
    return classifying(d, net=net, optimizer=torch.optim.Adam(net.parameters(), lr=1e-3))


def with_adamw(d):
    net = d.net(d.classes)
    return classifying(d, net=net, optimizer=torch.optim.AdamW(net.parameters(), lr=1e-3))


def with_momentum(d):
    net = d.net(d.classes)
    return classifying(d, net=net, optimizer=sgd(net, 0.02, momentum=0.9, weight_decay=1e-4, nesterov=True))


def with_batch_norm(d):
    net = nn.Sequential(nn.Linear(d.d, d.width), nn.BatchNorm1d(d.width), nn.ReLU(), nn.Linear(d.width, d.classes))
    return classifying(d, net=net)


def with_layer_norm(d):
    net = nn.Sequential(nn.Linear(d.d, d.width), nn.LayerNorm(d.width), nn.GELU(), nn.Linear(d.width, d.classes))
    return classifying(d, net=net)


def norm_first(d):
    net = nn.Sequential(nn.BatchNorm1d(d.d), d.net(d.classes))
    return classifying(d, net=net, x=d.x * torch.logspace(0, 4, d.d))


def with_dropout(d):
    net = nn.Sequential(d.net(d.width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(d.width, d.classes))
    return classifying(d, net=net)


def accumulating(d):
    return classifying(d, parts(True))


def with_scaler(d):
    return classifying(d, scaled(True, clip=1.0))


def with_a_clip(d):
    def change(criterion):
        def step(model, optimizer, batch):
            optimizer.zero_grad()
            criterion(model(batch[0]), batch[1]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()

        return step

    return classifying(d, change)


def class_weights(d):
    net = d.net(d.classes)
    return case(net, nn.CrossEntropyLoss(weight=torch.rand(d.classes) + 0.5), (d.x, d.labels()), sgd(net))


def ignored_targets(d):
    net, y = d.net(d.classes), d.labels()
    y[:5] = -100
    return case(net, nn.CrossEntropyLoss(), (d.x, y), sgd(net))


def smoothed(d):
    net = d.net(d.classes)
    return case(net, nn.CrossEntropyLoss(label_smoothing=0.1), (d.x, d.labels()), sgd(net))


def zero_head(d):
    net = d.net(d.classes)
    nn.init.zeros_(net[-1].weight)
    nn.init.zeros_(net[-1].bias)
    return classifying(d, net=net)


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.b.weight)

    def forward(self, x):
        return x + self.b(self.a(x).relu())


def residual(d):
    blocks = [Residual(d.width) for _ in range(4)]
    return classifying(d, net=nn.Sequential(nn.Linear(d.d, d.width), *blocks, nn.Linear(d.width, d.classes)))


def deep_relu(d):
    return classifying(d, net=d.net(d.classes, hidden=8, activation=nn.ReLU).apply(he(True)))


def fine_tuned(d):
    net = d.net(d.classes, hidden=2)
    net[0].requires_grad_(False)
    return classifying(d, net=net, optimizer=torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.05))


def images(d):
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 2))
    x, y = torch.randn(d.n, 1, 6, 6), torch.arange(d.n) % 2
    return classifying(d, net=net, x=x + y[:, None, None, None], y=y)


class Last(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.embedding = nn.Embedding(11, d.width)
        self.lstm, self.head = nn.LSTM(d.width, d.width, batch_first=True), nn.Linear(d.width, 3)

    def forward(self, tokens):
        return self.head(self.lstm(self.embedding(tokens))[0][:, -1])


def tokens(d):
    x = torch.randint(0, 11, (d.n, 5))
    return classifying(d, net=Last(d), x=x, y=x[:, -1] % 3)


def in_double(d):
    net = d.net(1).double()
    return case(net, nn.MSELoss(), (d.x.double(), d.numbers().double()), sgd(net, 0.01))


def robust(d):
    return regressing(d, criterion=nn.SmoothL1Loss())


def trained(d):
    net, y = d.net(d.classes), d.labels()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(net(d.x), y).backward()
        optimizer.step()
    return classifying(d, net=net, y=y, lr=1e-3)


def several_batches(d):
    net, y = d.net(d.classes), d.labels()
    order = torch.randperm(d.n)
    batches = [(d.x[part], y[part]) for part in order.split(32)]
    return case(net, nn.CrossEntropyLoss(), batches, sgd(net), plain(nn.CrossEntropyLoss()))


def many(d):
    x = torch.randn(1200, d.d)
    return case(
        net := d.net(2), nn.CrossEntropyLoss(), (x, (x[:, 0] > 0).long()), sgd(net), plain(nn.CrossEntropyLoss())
    )


class Language(nn.Module):
    def __init__(self, d):
        super().__init__()
        width = 4 * d.d
        self.table, self.head = nn.Embedding(20, width), nn.Linear(width, 20)
        self.layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.head(self.layer(self.table(x))).transpose(1, 2)


def language(d):
    net, x = Language(d), torch.randint(0, 20, (32, 9))
    return case(net, nn.CrossEntropyLoss(), (x[:, :-1], x[:, 1:]), torch.optim.AdamW(net.parameters(), lr=3e-4))


def autoencoder(d):
    x = torch.rand(d.n, d.d)
    net = nn.Sequential(nn.Linear(d.d, d.width), nn.ReLU(), nn.Linear(d.width, d.d), nn.Sigmoid())
    return case(net, nn.MSELoss(), (x, x), torch.optim.Adam(net.parameters(), lr=1e-3))


def convolutional(d):
    parts = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3)]
    net = nn.Sequential(*parts, nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    y = torch.arange(64) % 4
    x = torch.randn(64, 3, 8, 8) + y[:, None, None, None]
    return classifying(d, net=net, x=x, y=y, optimizer=sgd(net, 0.05, momentum=0.9, weight_decay=5e-4))


def own_function(d):
    """A criterion that gives one number."""
    return case(net := d.net(d.classes), lambda output, y: F.cross_entropy(output, y), (d.x, d.labels()), sgd(net))


class Variational(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.encode, self.decode = nn.Linear(d.d, 4), nn.Linear(4, d.d)

    def forward(self, x):
        h = self.encode(x)
        return self.decode(h + torch.randn_like(h))


def variational(d):
    return case(net := Variational(d), nn.MSELoss(), (d.x, d.x.clone()), torch.optim.Adam(net.parameters(), lr=1e-3))


def warming_up(d):
    net = d.net(d.classes)
    optimizer = sgd(net, 0.1, momentum=0.9)
    torch.optim.lr_scheduler.LinearLR(optimizer, 0.01)
    return classifying(d, net=net, optimizer=optimizer)


def with_autocast(d):
    def change(criterion):
        def step(model, optimizer, batch):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = criterion(model(batch[0]), batch[1])
            loss.backward()
            optimizer.step()

        return step

    return classifying(d, change)


def with_lbfgs(d):
    net, criterion = d.net(1), nn.MSELoss()
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1)

    def step(model, optimizer, batch):
        def closure():
            optimizer.zero_grad()
            loss = criterion(model(batch[0]), batch[1])
            loss.backward()
            return loss

        optimizer.step(closure)

    return case(net, criterion, (d.x, d.numbers()), optimizer, step)


HEALTHY = (
    many,
    language,
    autoencoder,
    convolutional,
    classifier,
    regressor,
    binary,
    probabilities,
    log_probabilities,
    brier,
    with_adam,
    with_adamw,
    with_momentum,
    with_batch_norm,
    with_layer_norm,
    norm_first,
    with_dropout,
    accumulating,
    with_scaler,
    with_a_clip,
    class_weights,
    ignored_targets,
    smoothed,
    zero_head,
    residual,
    deep_relu,
    fine_tuned,
    images,
    tokens,
    in_double,
    robust,
    trained,
    several_batches,
    own_function,
    variational,
    warming_up,
    with_autocast,
    with_lbfgs,
)
