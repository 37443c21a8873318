"""A store of the gradients of a model on a batch, resumed where it was left."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._factors import Projection
from .._per_sample import per_sample_grads
from .._problem import read
from .._stateless import PureModel, Stateless
from ..audit._losses import Losses
from ._manifest import NAME
from ._store import GradientStore


def build(
    path: str | os.PathLike[str],
    model: nn.Module | PureModel | Stateless,
    criterion: Any,
    batch: Any,
    *,
    projection: Projection | None = None,
    dtype: str | torch.dtype = "float16",
    at_once: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> GradientStore:
    """The gradients of all samples of a batch, in a store; those that are there already are not computed again.

    Sample i has id i, which names its draws. Interrupted, it leaves a valid store, and the same call goes on.

    Args:
        path: of the store, which is made if there is none.
        model: a module, or a model as a function.
        criterion: as for `gf.audit.reductions`; a gradient is that of the sample's numerator.
        batch: `(*inputs, target)` or a mapping, all samples.
        projection: what gradients go through; None to keep them whole.
        dtype: of rows on disk.
        at_once: how many samples are computed at a time.
        progress: called with (rows that are there or wait, all) after each of these.

    Raises:
        TypeError, ValueError: something else, or samples that have no loss of their own.
        StoreError: the store is of another model or projection, or cannot be written.

    Example:
        >>> import tempfile, torch, gradfunc as gf
        >>> from torch import nn
        >>> batch = torch.randn(20, 8), torch.randint(3, (20,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = gf.store.build(folder, nn.Linear(8, 3), nn.CrossEntropyLoss(), batch,
        ...                            projection=gf.projections.gaussian(16))
        ...     len(store)
        20
    """
    problem = read("gf.store.build(path, model, criterion, batch)", model, criterion, batch)
    params = problem.model.params
    if (Path(path) / NAME).exists():
        store = GradientStore.open(path, projection=projection, params=params)
    else:
        store = GradientStore.create(path, projection=projection, params=params, dtype=dtype)
    losses = Losses(problem)
    f = per_sample_grads(losses.one)
    done = torch.zeros(problem.size, dtype=torch.bool)
    own = store.ids[(store.ids >= 0) & (store.ids < problem.size)]
    done[own] = True
    left = (~done).nonzero()[:, 0]
    with store.writer(params) as writer:
        for ids in left.split(at_once):
            tensors = [tensor[ids.to(tensor.device)] for tensor in losses.tensors]
            writer.append(f.at(step=0, index=ids)(params, *tensors), ids=ids)
            if progress is not None:
                progress(writer.acknowledged + writer.waiting, problem.size)
    return store
