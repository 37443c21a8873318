"""`gf.bench.of_model`: the user's own model as a workload."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import nn

from .._errors import message
from .._random import forked
from .._stateless import Stateless
from .._tree import copy_of, map_tensors
from ..audit._options import asked_problem
from ._workload import Workload

CALL = "gf.bench.of_model(model, criterion, batch)"


def of_model(model: nn.Module | Stateless, criterion: Any, batch: Any, *, name: str = "model") -> Workload:
    """A workload of your own model, which is referred to and copied when it is measured.

    Its forward pass runs once here. Where it draws random numbers, or writes to its inputs or buffers, it is timed, but
    results are not compared: their verdict is "cannot tell".

    Args:
        model: an `nn.Module`, in the mode you train it in, or `gf.stateless(module, ...)`.
        criterion: `criterion(output, target)` whose reduction can be varied, or that gives one loss a sample; or
            `gf.whole(fn)`. One that gives a scalar for the whole batch is measured on batches of one, and natively
            batched contenders fail.
        batch: `(*inputs, target)`, or a mapping (its entry "target" is the target).
        name: of the workload.

    Raises:
        TypeError: a model, criterion or batch of another form; a pure model.
        ValueError: an empty batch; no trainable parameter, or none that the loss depends on; a layer that normalises
            by the statistics of the batch.

    Example:
        >>> import gradfunc as gf
        >>> x, y = torch.randn(8, 4), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
        >>> workload = gf.bench.of_model(nn.Linear(4, 3), nn.CrossEntropyLoss(), (x, y), name="mine")
        >>> workload.about
        'Linear, 15 trainable parameters, B=8'
        >>> report = gf.bench.run([workload], ["gradfunc"], rounds=2, memory=False)
        >>> report.row("mine", "gradfunc").verdict
        'rounding'
    """
    problem, _ = asked_problem(CALL, model, criterion, batch, dtype=None, device=None, batch_size=None, seed=0)
    given, module = problem.model, problem.model.module
    if module is None:
        raise TypeError(message(CALL, got="a pure model", expected="an nn.Module, or gf.stateless(module)"))
    count = sum(value.numel() for value in given.params.values())
    workload = Workload(
        name=name,
        about=f"{type(module).__name__}, {count:,} trainable parameter{'s' * (count != 1)}, B={problem.size}",
        module=lambda: dataclasses.replace(given, module=copy.deepcopy(module)),
        batch=lambda: map_tensors(copy_of, problem.batch),
        criterion=criterion,
        device=next(iter(given.params.values())).device,
    )
    case = workload.case()
    with torch.enable_grad(), forked(0, 2, devices=[case.device]):
        loss = case.mean_loss()
    if not loss.requires_grad:
        expected = "a loss that depends on at least one of them"
        raise ValueError(message(CALL, got="no differentiable parameter in the loss", expected=expected))
    return workload
