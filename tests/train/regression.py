"""The regression that explodes: make_regression(1000, 10), an MLP 10-15-1, SGD; and its training in plain torch.

What holds for every order of the samples, and what is chaotic, over 30 orders (mean of the step losses by epoch):

| run                                | holds                                        | varies                        |
|------------------------------------|----------------------------------------------|-------------------------------|
| default init, lr 0.01              | a loss above 1e6, then NaN, within 3 epochs  | the step: 8 to 76             |
| default init, lr 0.001             | finite, falls; epoch 10 below epoch 1 / 100  | 12100 +- 3%; at last 13 to 62 |
| standardised target, lr 0.01       | finite, falls; epoch 10 below 0.03           | 0.942 +- 3%; 0.026 +- 7%      |
| kaiming init, lr 0.1               | inf or NaN at step 4                         | nothing                       |
| the same, clipped by value 1       | finite; epoch 10 below epoch 1 / 50          | 7800 to 9300; 46 to 95        |
| the same, clipped by global norm 1 | finite, falls; epoch 10 below epoch 1 / 50   | 17000 to 17700; 266 to 281    |
| the same, outputs' cotangents to 1 | finite; epoch 10 below epoch 1 / 100         | 16800 to 17500; 45 to 106     |
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from sklearn.datasets import make_regression
from torch import nn
from torch.nn import functional as F

import gradfunc as gf

BATCH = 32


class Run(NamedTuple):
    """Losses of the steps `[epochs, steps]` before each update, and the parameters at the end."""

    losses: torch.Tensor
    params: dict[str, torch.Tensor]

    @property
    def by_epoch(self):
        """The mean of the step losses of each epoch, in float64."""
        return self.losses.double().mean(1)

    @property
    def first_nonfinite(self):
        """The step whose loss is the first that is inf or NaN; None if none is."""
        bad = (~self.losses.flatten().isfinite()).nonzero()
        return int(bad[0]) if len(bad) else None


def data(*, standardised=False, dtype=torch.float32):
    """x `[1000, 10]`, y `[1000, 1]`; a standardised target has mean 0 and variance 1."""
    x, y = make_regression(n_samples=1000, n_features=10, noise=0.1, random_state=42)
    x, y = torch.as_tensor(x).float(), torch.as_tensor(y).float().view(-1, 1)
    if standardised:
        y = (y - y.mean()) / y.std()
    return x.to(dtype), y.to(dtype)


def module(init="default", dtype=torch.float32):
    """The MLP at torch.manual_seed(11); "kaiming": He uniform weights and no biases, drawn at torch.manual_seed(42)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        made = nn.Sequential()
        made.add_module("fc1", nn.Linear(10, 15))
        made.add_module("act", nn.ReLU())
        made.add_module("fc2", nn.Linear(15, 1))
        if init == "kaiming":
            torch.manual_seed(42)
            for layer in (made.fc1, made.fc2):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
    return made.to(dtype)


def model(init="default", dtype=torch.float32):
    """The same as a function of its parameters."""
    return gf.stateless(module(init, dtype))


def loss_of(model, limit=None):
    """The squared error of one sample; with `limit` the cotangent of its output is clipped to [-limit, limit]."""
    return lambda p, x, y: gf.losses.mse(_clipped(model.sample(p, x), limit), y)


def losses_of(model, limit=None):
    """The same of a batch, for `batched=True`."""
    return lambda p, x, y: gf.losses.mse(_clipped(model(p, x), limit), y, batched=True)


def _clipped(out, limit):
    return out if limit is None else gf.clip_cotangent(out, value=limit)


def orders(epochs, seed=0, size=1000):
    """Which samples each step sees, by epoch: the last of 32 steps has 8."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(size, generator=generator).split(BATCH) for _ in range(epochs)]


def by_torch(module, x, y, order, *, lr, clip=None, limit=None):
    """SGD in plain torch, on the mean of each batch.

    `clip` is called with the module between the backward pass and the step. `limit` clips the cotangent of each output
    in its own sample's loss, n times the one that comes from the mean.
    """
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)
    losses = []
    for epoch in order:
        for index in epoch:
            out = module(x[index])
            if limit is not None:
                bound = limit / len(index)
                out.register_hook(lambda grad, bound=bound: grad.clamp(-bound, bound))
            loss = F.mse_loss(out, y[index])
            optimizer.zero_grad()
            loss.backward()
            if clip is not None:
                clip(module)
            optimizer.step()
            losses.append(loss.detach())
    params = {name: value.detach().clone() for name, value in module.named_parameters()}
    return Run(torch.stack(losses).reshape(len(order), -1), params)


def clip_value(module):
    """Entries of the gradient to [-1, 1]."""
    nn.utils.clip_grad_value_(module.parameters(), 1.0)


def clip_norm(module):
    """The norm of the whole gradient to 1 (torch adds 1e-6 to it)."""
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)


def hooked(module):
    """The handles of hooks on the parameters that clip each total gradient by value as it arrives."""
    return [p.register_hook(lambda grad: grad.clamp(-1.0, 1.0)) for p in module.parameters()]
