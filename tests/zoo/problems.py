"""Models of the zoo at a precision, a plain loop over their samples, and how an engine held each parameter."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from oracle import Truth
from torch import Tensor, nn

import gradfunc as gf
from gradfunc._per_sample._explain import lines
from gradfunc._problem import Problem, read
from gradfunc._zoo import MODELS, Model
from gradfunc.audit._losses import Losses

MODES = ("native", "vmap")
F64 = torch.float64
SEED = 3


class Made(NamedTuple):
    """What a model of the zoo makes, at a precision."""

    model: Model
    module: nn.Module
    batch: tuple[Tensor, ...]
    criterion: Any


def made(name: str, dtype: torch.dtype = F64) -> Made:
    """The same each time."""
    model = MODELS[name]
    torch.manual_seed(SEED)
    module = model.module().to(dtype)
    batch = tuple(t.to(dtype) if t.is_floating_point() else t for t in model.batch())
    criterion = model.criterion
    if isinstance(criterion, functools.partial):
        criterion = functools.partial(criterion, weight=criterion.keywords["weight"].to(dtype))
    return Made(model, module, batch, criterion)


@functools.cache
def looped(name: str) -> Truth:
    """Rows by the module itself on batches of one, with torch alone."""
    model, module, (*inputs, target), criterion = made(name)
    named = {key: p for key, p in module.named_parameters() if p.requires_grad}
    rows: dict[str, list[Tensor]] = {key: [] for key in named}
    losses = []
    for i in range(len(target)):
        own = [t.narrow(model.in_dims, i, 1) for t in inputs]
        loss = criterion(module(*own), target[i : i + 1], reduction="sum")
        grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        for (key, p), grad in zip(named.items(), grads, strict=True):
            rows[key].append(torch.zeros_like(p) if grad is None else grad)
        losses.append(loss.detach())
    return Truth(
        {key: torch.stack(value).detach() for key, value in rows.items()}, torch.stack(losses), torch.ones(len(losses))
    )


class Posed(NamedTuple):
    """A model of the zoo as gradfunc's tools read it."""

    problem: Problem
    losses: Losses

    @property
    def params(self) -> dict[str, Tensor]:
        return self.problem.model.params

    def rows(self, mode: str, **options: Any) -> gf.PerSampleGrads:
        """Per-sample gradients of the losses of the batch, or of the loss of a sample."""
        native = mode == "native"
        loss = self.losses.rows if native else self.losses.one
        f = gf.per_sample_grads(loss, batched=native, **{"engine": "factored", **options})
        return f(self.params, *self.losses.tensors)


def posed(name: str, dtype: torch.dtype = F64) -> Posed:
    model, module, batch, criterion = made(name, dtype)
    stateless = gf.stateless(module, in_dims=model.in_dims, out_dims=model.out_dims)
    problem = read(name, stateless, criterion, batch)
    return Posed(problem, Losses(problem))


def arrived(g: gf.PerSampleGrads) -> dict[str, str]:
    """The kinds in which the rows of every parameter came, "-" where none did."""
    rows = g._source.rows(slice(0, g.batch_size)).grads
    kinds: dict[str, set[str]] = {name: set() for name in g.names}
    for line in lines(rows, g._uses):
        kinds[line.parameter] |= set(line.kind.removeprefix("dense, of ").split(" and ")) - {"none"}
    return {name: "+".join(sorted(found)) or "-" for name, found in kinds.items()}
