"""Sick and healthy trainings, drawn by seed: what `gf.diagnose.doctor` is tried on.

A sick one is made twice from one seed: as it fails, and with its cure, which changes nothing else.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F


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


# --- loss against targets -----------------------------------------------------------------------------------------


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


# --- data -----------------------------------------------------------------------------------------------------------


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


# --- parameters -----------------------------------------------------------------------------------------------------


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


# --- flow -----------------------------------------------------------------------------------------------------------


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


# --- rate -----------------------------------------------------------------------------------------------------------


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


# --- the step -------------------------------------------------------------------------------------------------------


def missing_zero_grad(d, cured):
    def change(criterion):
        def step(model, optimizer, batch):
            if cured:
                optimizer.zero_grad()
            criterion(model(batch[0]), batch[1]).backward()
            optimizer.step()

        return step

    return classifying(d, change)


def parts(cured, zero_inside=False, divide=True, k=4):
    def change(criterion):
        def step(model, optimizer, batch):
            optimizer.zero_grad()
            for x, y in zip(batch[0].chunk(k), batch[1].chunk(k), strict=True):
                if zero_inside and not cured:
                    optimizer.zero_grad()
                (criterion(model(x), y) / (k if divide or cured else 1)).backward()
            optimizer.step()

        return step

    return change


def missing_division(d, cured):
    return classifying(d, parts(cured, divide=False, k=2 if d.int(0, 2) else 4))


def only_last_part(d, cured):
    return classifying(d, parts(cured, zero_inside=True, k=2 if d.int(0, 2) else 4))


def gradient_zeroed(d, cured):
    def change(criterion):
        def step(model, optimizer, batch):
            optimizer.zero_grad()
            criterion(model(batch[0]), batch[1]).backward()
            if not cured:
                optimizer.zero_grad()
            optimizer.step()

        return step

    return classifying(d, change)


def no_step(d, cured):
    def change(criterion):
        def step(model, optimizer, batch):
            optimizer.zero_grad()
            criterion(model(batch[0]), batch[1]).backward()
            if cured:
                optimizer.step()

        return step

    return classifying(d, change)


def scaled(cured, clip=None):
    def change(criterion):
        def step(model, optimizer, batch):
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
            optimizer.zero_grad()
            scaler.scale(criterion(model(batch[0]), batch[1])).backward()
            if clip is None:
                scaler.step(optimizer) if cured else optimizer.step()
                return
            if cured:
                scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            scaler.step(optimizer)

        return step

    return change


def gradient_scale_left(d, cured):
    return classifying(d, scaled(cured))


def clipped_before_unscaling(d, cured):
    return classifying(d, scaled(cured, clip=1.0))


def clips_always(d, cured):
    def change(criterion):
        def step(model, optimizer, batch):
            optimizer.zero_grad()
            criterion(model(batch[0]), batch[1]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0 if cured else 2e-3)
            optimizer.step()

        return step

    return classifying(d, change)


def uphill_step(d, cured):
    def change(criterion):
        return plain(criterion if cured else lambda output, target: -criterion(output, target))

    return classifying(d, change)


# --- numbers, batch ---------------------------------------------------------------------------------------------------


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


class Apply(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return self.fn(x)


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


def rate_too_large_nesterov(d, cured):
    net = d.net(1)
    return case(net, nn.MSELoss(), (d.x, d.numbers()), sgd(net, 0.01 if cured else 8.0, momentum=0.9, nesterov=True))


def exploding_regression(d, cured):
    """Ten features, targets of a size of 130, 15 hidden units, batches of 32, a rate of 1/100: NaN soon."""
    x, coefficients = torch.randn(1000, 10), 100 * torch.rand(10)
    y = (x @ coefficients)[:, None] + 0.1 * torch.randn(1000, 1)
    net = nn.Sequential(nn.Linear(10, 15), nn.ReLU(), nn.Linear(15, 1))
    y = (y - y.mean()) / y.std() if cured else y
    return case(net, nn.MSELoss(), list(zip(x.split(32), y.split(32), strict=True)), sgd(net, 0.01))


def rate_of_raw_features(d, cured):
    x = torch.cat([d.x, 5000 * d.scores(1)], 1)
    net = d.net(1, inputs=d.d + 1)
    return regressing(d, net=net, x=(x - x.mean(0)) / x.std(0) if cured else x)


def cut_by_data(d, cured):
    return classifying(
        d, net=nn.Sequential(d.net(d.width), Apply(lambda x: x if cured else x.data), d.net(d.classes, inputs=d.width))
    )


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


def frozen_in_optimizer(d, cured):
    net = d.net(d.classes, hidden=2)
    net[0].requires_grad_(False)
    own = [p for p in net.parameters() if p.requires_grad] if cured else list(net.parameters())
    return classifying(d, net=net, optimizer=torch.optim.SGD(own, lr=0.05))


def step_differs(d, cured):
    def change(criterion):
        other = criterion if cured else lambda output, y: F.cross_entropy(output.tanh(), y)
        return plain(other)

    return classifying(d, change)


def moved_otherwise(d, cured):
    def change(criterion):
        def step(model, optimizer, batch):
            plain(criterion)(model, optimizer, batch)
            if not cured:
                for p in model.parameters():
                    p.data.mul_(0.999)

        return step

    return classifying(d, change)


def clips_by_value(d, cured):
    def change(criterion):
        def step(model, optimizer, batch):
            optimizer.zero_grad()
            criterion(model(batch[0]), batch[1]).backward()
            if not cured:
                torch.nn.utils.clip_grad_value_(model.parameters(), 1e-2)
            optimizer.step()

        return step

    return classifying(d, change)


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


# --- healthy ----------------------------------------------------------------------------------------------------------


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
)


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
    detached: "gradient_cut",
    no_grad: "gradient_cut",
    unused_parameter: "unused_parameter",
    all_frozen: "all_frozen",
    other_parameters: "other_parameters",
    left_out: "parameters_left_out",
    zero_init: "zero_init",
    symmetric_init: "symmetric_init",
    vanishing: "vanishing",
    exploding: "exploding",
    dead_units: "dead_units",
    saturated: "saturated",
    rate_too_large: "rate_too_large",
    rate_too_large_momentum: "rate_too_large",
    rate_too_large_adam: "rate_too_large",
    rate_too_small: "rate_too_small",
    rate_too_small_adam: "rate_too_small",
    rate_zero: "rate_zero",
    decay_overpowers: "decay_overpowers",
    ascent: "ascent",
    missing_zero_grad: "missing_zero_grad",
    missing_division: "missing_division",
    only_last_part: "only_last_part",
    gradient_zeroed: "gradient_zeroed",
    no_step: "no_step",
    gradient_scale_left: "gradient_scale_left",
    clipped_before_unscaling: "clipped_before_unscaling",
    clips_always: "clips_always",
    uphill_step: "ascent",
    wrong_backward: "wrong_backward",
    log_of_zero: "nonfinite",
    cancellation: "precision",
    update_lost: "update_lost",
    batch_coupling: "batch_coupling",
    eval_mode: "eval_mode",
    small_batch_norm: "small_batch_norm",
    nondeterministic: "nondeterministic",
    root_of_zero: "nonfinite",
    division_by_zero: "nonfinite",
    overflow: "nonfinite",
    underflow: "precision",
    wrong_hook: "wrong_backward",
    rate_too_large_nesterov: "rate_too_large",
    exploding_regression: "unscaled_target",
    rate_of_raw_features: "unscaled_features",
    cut_by_data: "gradient_cut",
    loss_fails: "loss_fails",
    worse_than_constant: "worse_than_constant",
    constant_output: "constant_output",
    frozen_in_optimizer: "frozen_in_optimizer",
    step_differs: "step_differs",
    moved_otherwise: "moved_otherwise",
    clips_by_value: "clips_by_value",
    noisy_batch: "noisy_batch",
    reductions_disagree: "reductions_disagree",
}


def sick(make, seed, *, cured=False):
    """The case, drawn with torch's generator forked."""
    with torch.random.fork_rng():
        return make(Draw(seed), cured)


def healthy(make, seed):
    with torch.random.fork_rng():
        return make(Draw(seed))
