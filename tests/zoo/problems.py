"""Models of the zoo at a precision, a plain loop over their samples, and how an engine held each parameter."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

import gradfunc as gf
from gradfunc._problem import Problem, read
from gradfunc._zoo import MODELS
from gradfunc.audit._losses import Losses

MODES = ("native", "vmap")
SEED = 3


class Posed(NamedTuple):
    """A model of the zoo with its tensors, and its losses as functions of parameters and of samples."""

    problem: Problem
    losses: Losses

    @property
    def params(self) -> dict[str, Tensor]:
        return self.problem.model.params

    def function(self, mode: str, **options) -> gf.PerSampleGrads:
        """Per-sample gradients of the losses of the batch, or of the loss of a sample."""
        native = mode == "native"
        loss = self.losses.rows if native else self.losses.one
        return gf.per_sample_grads(loss, batched=native, **{"engine": "factored", **options})


@functools.cache
def posed(name: str, dtype: torch.dtype = torch.float64) -> Posed:
    model = MODELS[name]
    torch.manual_seed(SEED)
    module = gf.stateless(model.module(), in_dims=model.in_dims, out_dims=model.out_dims)
    problem = read(name, module, model.criterion, model.batch()).cast(dtype)
    return Posed(problem, Losses(problem))


def looped(name: str, dtype: torch.dtype = torch.float64) -> tuple[dict[str, Tensor], Tensor]:
    """Rows and losses by the module itself on batches of one: torch alone."""
    model = MODELS[name]
    torch.manual_seed(SEED)
    module = model.module()
    *inputs, target = (t.to(dtype) if t.is_floating_point() else t for t in model.batch())
    module.to(dtype)
    criterion = model.criterion
    if isinstance(criterion, functools.partial) and "weight" in criterion.keywords:
        criterion = functools.partial(criterion, weight=criterion.keywords["weight"].to(dtype))
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    rows: dict[str, list[Tensor]] = {name: [] for name in named}
    losses = []
    for i in range(len(target)):
        own = [t.narrow(model.in_dims, i, 1) for t in inputs]
        loss = criterion(module(*own), target[i : i + 1], reduction="sum")
        grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        for (key, p), grad in zip(named.items(), grads, strict=True):
            rows[key].append(torch.zeros_like(p) if grad is None else grad)
        losses.append(loss.detach())
    return {key: torch.stack(value).detach() for key, value in rows.items()}, torch.stack(losses)


def held(g: gf.PerSampleGrads) -> dict[str, str]:
    """The kinds of the factors of every parameter, "-" where there is none."""
    rows = g._source.rows(slice(0, g.batch_size)).grads
    found = {name: {factor.kind for factor in rows[name].factors} if name in rows else set() for name in g.names}
    return {name: "+".join(sorted(kinds)) or "-" for name, kinds in found.items()}
