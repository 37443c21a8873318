"""A store of the gradients of a model on a batch, resumed where it was left."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._errors import message
from .._factors import Projection
from .._per_sample import per_sample_grads
from .._problem import read
from .._stateless import PureModel, Stateless
from ..audit._losses import Losses
from ._asked import check_dtype, check_kind
from ._ids import at as ids_at
from ._ids import keys, read_ids, repeated
from ._manifest import NAME
from ._store import GradientStore


def build(
    path: str | os.PathLike[str],
    model: nn.Module | PureModel | Stateless,
    criterion: Any,
    batch: Any,
    *,
    projection: Projection | None = None,
    factored: bool = False,
    ids: Any = None,
    dtype: str | torch.dtype | None = None,
    at_once: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> GradientStore:
    """The gradients of all samples of a batch, in a store; those that are there already are not computed again.

    Sample i draws by its number i, which is its id by default. Interrupted, it leaves a valid store, and the same call
    goes on.

    Args:
        path: of the store, which is made if there is none.
        model: a module, or a model as a function.
        criterion: as for `gf.audit.reductions`; a gradient is that of the sample's numerator.
        batch: `(*inputs, target)` or a mapping, all samples.
        projection: what gradients go through; None to keep them whole.
        factored: keep factors of whole gradients where they are smaller, as `GradientStore.create`.
        ids: of the samples, integers or strings, one each; by default their numbers.
        dtype: on disk, by default as `GradientStore.create`, or as it is in a store that is there.
        at_once: how many samples are computed at a time.
        progress: called with (rows that are there or wait, all) after each of these.

    Raises:
        TypeError, ValueError: something else, or samples that have no loss of their own.
        StoreError: the store is of another model, projection or dtype, or cannot be written.

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
    call = "gf.store.build(path, model, criterion, batch)"
    problem = read(call, model, criterion, batch)
    params = problem.model.params
    given = read_ids(call, ids, problem.size, 0, None)
    if repeated(given):
        raise ValueError(message(call, got="an id twice", expected="ids, each once"))
    if (Path(path) / NAME).exists():
        store = GradientStore.open(path, projection=projection, params=params)
        check_kind(call, store.manifest, factored=factored)
        check_dtype(call, store.manifest, dtype)
    else:
        store = GradientStore.create(path, projection=projection, params=params, factored=factored, dtype=dtype)
    losses = Losses(problem)
    f = per_sample_grads(losses.one)
    done = set(keys(store._view.ids()))
    left = torch.tensor([k for k, key in enumerate(keys(given)) if key not in done], dtype=torch.int64)
    with store.writer(params) as writer:
        for at in left.split(at_once):
            if not len(at):
                continue
            tensors = [tensor[at.to(tensor.device)] for tensor in losses.tensors]
            own = ids_at(given, at)
            writer.append(f.at(step=0, index=at)(params, *tensors), ids=own)
            if progress is not None:
                progress(writer.acknowledged + writer.waiting, problem.size)
    return store
