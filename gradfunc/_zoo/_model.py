"""A model of the zoo, and how one is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Batch size of a model that does not ask for another one. It divides most widths, which a careless tool falls for.
B = 4


@dataclass(frozen=True)
class Model:
    """A small module, its data, and what is known of its per-sample gradients.

    Attributes:
        name: in the field's standard terms.
        hazard: what goes wrong with it in a careless tool, in one line.
        module: makes a plain module in float32, in the mode in which it is meant to run. Draws are global: the caller
            seeds them.
        batch: makes `(*inputs, target)` likewise, samples in dimension 0 but for `in_dims`.
        criterion: `criterion(output, target, reduction="mean" | "sum" | "none")`, samples in dimension 0 under "none".
        kinds: how the rows of every trainable parameter come in the factored engine when the batch runs natively:
            "outer", "unfolded", "grouped", "rows", "dense", "outer+rows" for a sum of both, "-" for nothing (no loss
            depends on it, or it is `asleep`). Where rows are little larger, they are formed as they come.
        vmapped: the kinds that differ for a loss of one sample, which runs under vmap.
        in_dims: where the samples are in the inputs, as `gf.stateless` takes it.
        out_dims: where they are in the output, likewise.
        vmap: whether `torch.func.vmap(torch.func.grad(...))` can run it; where not, the hazard says why.
        scanned: whether gradfunc can nevertheless run a loss of one sample there, with a scan for what torch cannot
            batch.
        asleep: parameters that a loss depends on, but whose gradient is 0 as the module is built.
        reported: `{check: why}` for what `gf.testing.check_gradients` says of it and is right to say.
    """

    name: str
    hazard: str
    module: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, ...]]
    criterion: Any
    kinds: Mapping[str, str]
    vmapped: Mapping[str, str] = field(default_factory=dict)
    in_dims: Any = 0
    out_dims: Any = 0
    vmap: bool = True
    scanned: bool = False
    asleep: tuple[str, ...] = ()
    reported: Mapping[str, str] = field(default_factory=dict)


MODELS: dict[str, Model] = {}


class Net(nn.Module):
    """Named parts, and a function of them and of the inputs."""

    def __init__(self, fn: Callable[..., Any], **parts: nn.Module | Tensor | tuple[int, ...]) -> None:
        super().__init__()
        self.fn = fn
        for name, part in parts.items():
            if isinstance(part, tuple):
                setattr(self, name, nn.Parameter(0.4 * torch.randn(part)))
            elif isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> Any:
        """`fn(self, *inputs)`."""
        return self.fn(self, *inputs)


def net(fn: Callable[..., Any], **parts: nn.Module | Tensor | tuple[int, ...]) -> Callable[[], nn.Module]:
    """Makes `Net(fn, **parts)`, where every part is a shape: of a parameter with normal entries."""
    return lambda: Net(fn, **parts)


def floats(*shapes: tuple[int, ...], size: int = B) -> Callable[[], tuple[Tensor, ...]]:
    """Batches of normal numbers of these shapes a sample; the last one is the target."""
    return lambda: tuple(torch.randn(size, *shape) for shape in shapes)


def tokens(high: int, shape: tuple[int, ...], *others: tuple[int, ...], size: int = B) -> Callable[[], Any]:
    """The same behind an input of integers below `high`."""
    return lambda: (torch.randint(high, (size, *shape)), *floats(*others, size=size)())


def labels(*shapes: tuple[int, ...], classes: int, size: int = B) -> Callable[[], Any]:
    """Normal numbers, and a class a sample."""
    return lambda: (*floats(*shapes, size=size)(), torch.randint(classes, (size,)))


def add(
    name: str,
    hazard: str,
    module: Callable[[], nn.Module],
    batch: Callable[[], tuple[Tensor, ...]],
    kinds: Mapping[str, str],
    criterion: Any = F.mse_loss,
    *,
    as_built: bool = False,
    **known: Any,
) -> None:
    """Put a model into the zoo.

    Unless it is used `as_built`, a parameter that torch fills with one number (a scale of 1, a bias of 0) gets entries
    that differ: equal ones hide mistakes.
    """

    def made() -> nn.Module:
        return module() if as_built else _uneven(module())

    assert name not in MODELS, name
    MODELS[name] = Model(name, hazard, made, batch, criterion, kinds, **known)


def _uneven(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            if bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return module
