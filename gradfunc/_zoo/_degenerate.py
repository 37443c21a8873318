"""Parameters and samples without a gradient, and losses whose mean is not that of their samples."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._model import B, Net, add, floats, labels

ENDS = {"first.weight": "outer", "first.bias": "dense", "last.weight": "outer", "last.bias": "dense"}


def _ends(**parts: Any) -> dict[str, Any]:
    return {"first": nn.Linear(12, 12), **parts, "last": nn.Linear(12, 5)}


X = floats((12,), (5,))
add(
    "residual branch behind a gate of 0",
    "the branch looks unused until the gate opens: what is learnt of the graph now is wrong after one step",
    lambda: Net(lambda m, x: m.last(x + m.gate * m.first(x).tanh()), **_ends(gate=nn.Parameter(torch.zeros(())))),
    X,
    {**ENDS, "first.weight": "-", "first.bias": "-", "gate": "dense"},
    as_built=True,
    asleep=("first.weight", "first.bias"),
)
add(
    "low-rank adapter beside a frozen layer, b = 0",
    "a has no gradient yet; the frozen layer must have none and must cost nothing",
    lambda: _adapter(),
    floats((24,), (20,)),
    {"a": "-", "b": "outer"},
    as_built=True,
    asleep=("a",),
)
add(
    "frozen first layers",
    "rows are counted by parameters that have no gradient, and every index behind them shifts",
    lambda: _frozen(),
    X,
    {"middle.weight": "outer", "middle.bias": "dense", "last.weight": "outer", "last.bias": "dense"},
)
add(
    "some units dead in every sample",
    "a zero gradient is taken for one that was never computed",
    lambda: _dead(),
    X,
    ENDS,
)
add(
    "one sample with no gradient at all",
    "a clip factor of 0/0, and a norm of 0 that is not an error",
    lambda: Net(lambda m, x: m.last(m.first(x).tanh()) * (x[:, :1] != 0), **_ends()),
    lambda: (torch.randn(B, 12) * (torch.arange(B) != 2)[:, None], torch.randn(B, 5)),
    ENDS,
)
add(
    "equal samples",
    "rows are equal, so that one for all and each for itself cannot be told apart",
    lambda: Net(lambda m, x: m.last(m.first(x).tanh()), **_ends()),
    lambda: (torch.randn(1, 12).repeat(B, 1), torch.randn(1, 5).repeat(B, 1)),
    ENDS,
)
add(
    "unused parameter",
    "None where a row of zeros is due, or a row that belongs to another parameter",
    lambda: Net(lambda m, x: m.last(m.first(x).tanh()), **_ends(unused=nn.Linear(3, 3))),
    X,
    {**ENDS, "unused.weight": "-", "unused.bias": "-"},
)
add(
    "parameter used under no_grad",
    "a hook sees the layer run, and no gradient belongs to it",
    lambda: Net(_without_grad, **_ends(teacher=nn.Linear(12, 12))),
    X,
    {**ENDS, "teacher.weight": "-", "teacher.bias": "-"},
    reported=dict.fromkeys(("slope", "layer"), "the loss moves with the teacher, and the gradient does not say so"),
)
add(
    "parameter used once and detached once",
    "both uses run; one of them counts",
    lambda: Net(_detached, **_ends()),
    X,
    ENDS,
    reported=dict.fromkeys(("slope", "layer"), "the loss moves with both uses, and the gradient is that of one"),
)
add(
    "0-dim parameters beside a layer",
    "rows of a parameter without dimensions are [B]",
    lambda: Net(
        lambda m, x: m.last(m.first(x).tanh() * m.scale) + m.shift,
        **_ends(scale=nn.Parameter(torch.tensor(0.7)), shift=nn.Parameter(torch.tensor(-0.3))),
    ),
    X,
    {**ENDS, "scale": "dense", "shift": "dense"},
)
add(
    "dropout in eval mode",
    "back in train mode every engine would draw other masks",
    lambda: nn.Sequential(nn.Linear(12, 12), nn.Dropout(0.5).eval(), nn.ReLU(), nn.Linear(12, 5)),
    X,
    {"0.weight": "outer", "0.bias": "dense", "3.weight": "outer", "3.bias": "dense"},
)
add(
    "class weights",
    "on a batch of one, the mean divides by the sample's own weight and so loses it",
    lambda: Net(lambda m, x: m.last(m.first(x).tanh()), **_ends()),
    labels((12,), classes=5),
    ENDS,
    functools.partial(F.cross_entropy, weight=torch.tensor([0.5, 2.0, 1.0, 3.0, 0.25])),
)
add(
    "token targets, some ignored",
    "samples with other numbers of targets: a mean of means is not the mean, and no target at all gives NaN",
    lambda: Net(lambda m, x: m.last(m.first(x).tanh()).mT, **_ends()),
    lambda: (torch.randn(B, 2, 12), torch.tensor([[1, 4], [-100, 2], [-100, -100], [3, 1]])),
    ENDS,
    F.cross_entropy,
)
add(
    "hinge, some samples beyond the margin",
    "which samples have a gradient is data, and changes from batch to batch",
    lambda: Net(lambda m, x: (1 - x[:, 0] * m.last(m.first(x).tanh())[:, 0]).clamp_min(0), **_ends()),
    lambda: (torch.randn(6, 12) * torch.tensor([0.1, 9, 0.1, 0.1, 9, 0.1])[:, None], torch.zeros(6)),
    ENDS,
    F.l1_loss,
)


def _adapter() -> nn.Module:
    base = nn.Linear(24, 20).requires_grad_(False)
    parts = {"a": nn.Parameter(0.3 * torch.randn(4, 24)), "b": nn.Parameter(torch.zeros(20, 4))}
    return Net(lambda m, x: m.base(x) + F.linear(F.linear(x, m.a), m.b), base=base, **parts)


def _frozen() -> nn.Module:
    module = Net(
        lambda m, x: m.last(m.middle(m.first(x).tanh()).tanh()),
        **_ends(middle=nn.Linear(12, 12), norm=nn.LayerNorm(12)),
    )
    for name in ("first", "norm"):
        module.get_submodule(name).requires_grad_(False)
    return module


def _dead() -> nn.Module:
    parts = _ends()
    with torch.no_grad():
        parts["first"].bias[::3] = -100
    return Net(lambda m, x: m.last(m.first(x).relu()), **parts)


def _without_grad(m: Any, x: Tensor) -> Any:
    with torch.no_grad():
        target = m.teacher(x)
    return m.last(m.first(x).tanh() * target)


def _detached(m: Any, x: Tensor) -> Any:
    h = m.first(x).tanh()
    weight: Tensor = m.first.weight.detach()
    return m.last(h + F.linear(h, weight).tanh())
