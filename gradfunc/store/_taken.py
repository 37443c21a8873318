"""What is appended, as it will be on disk: gradients or rows, ids, metadata; checked before anything is taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .._errors import kind_of, message
from .._factors import Gradient, Gradients, Projection
from .._per_sample import PerSampleGrads, factors_of
from .._tree import at_positions
from ._asked import check_parameters, rows_of
from ._columns import Part, Ragged, joined
from ._ids import IDS, kind_of_ids, read_ids
from ._kinds import bytes_of, described, held, key_of
from ._layout import LOSSES, METADATA, ROWS, WEIGHTS, group_of
from ._manifest import Manifest, parameters_of
from ._rows import described_metadata, metadata_of, stored


def taken(
    call: str,
    g: PerSampleGrads | Tensor,
    ids: Any,
    metadata: Mapping[str, Any] | None,
    manifest: Manifest,
    projection: Projection | None,
    first: int,
) -> tuple[Part, Manifest]:
    """Rows as a shard holds them, copies, and the manifest, which may have learnt from them.

    Args:
        call: for messages.
        g: what is appended.
        ids: of the rows; None for numbers from `first` on.
        metadata: of the rows.
        manifest: what the store says it holds.
        projection: what gradients go through.
        first: how many rows there are.

    Raises:
        TypeError, ValueError, StoreError: as `Writer.append`.
    """
    part, manifest = _gradients(call, g, manifest, projection)
    if not part.count:
        return part, manifest
    own = read_ids(call, ids, part.count, first, manifest.ids)
    kept = metadata_of(call, metadata, part.count, manifest)
    manifest = replace(manifest, ids=kind_of_ids(own))
    if manifest.metadata is None:
        manifest = replace(manifest, metadata=described_metadata(kept))
    plain = part.plain | {METADATA + name: value for name, value in kept.items()}
    if isinstance(own, Ragged):
        return Part(part.count, plain, {IDS: own, **part.ragged}), manifest
    return Part(part.count, {IDS: own, **plain}, part.ragged), manifest


def _gradients(
    call: str, g: PerSampleGrads | Tensor, manifest: Manifest, projection: Projection | None
) -> tuple[Part, Manifest]:
    if isinstance(g, PerSampleGrads):
        if manifest.is_factored:
            return _factored(call, g, manifest)
        if manifest.parameters is None:
            manifest = replace(manifest, parameters=parameters_of(g._shapes))
        rows = rows_of(call, g, manifest, projection)
    elif not isinstance(g, Tensor):
        raise TypeError(message(call, got=kind_of(g), expected="per-sample gradients, or a tensor of rows"))
    elif manifest.is_factored:
        raise TypeError(message(call, got="rows", expected="per-sample gradients, for a store of factors"))
    elif g.dim() != 2 or g.shape[1] != manifest.size or not g.is_floating_point():
        got = f"rows of shape {tuple(g.shape)} and {g.dtype}"
        raise ValueError(message(call, got=got, expected=f"floats of shape [B, {manifest.size}]"))
    else:
        rows = g
    return Part(len(rows), {ROWS: stored(call, rows, manifest.torch_dtype)}), manifest


def _factored(call: str, g: PerSampleGrads, manifest: Manifest) -> tuple[Part, Manifest]:
    """Factors where they are smaller than rows, else rows; with losses and weights."""
    check_parameters(call, manifest, parameters_of(g._shapes))
    known: dict[str, dict[str, Any]] = {name: dict(own) for name, own in manifest.factors.items()}
    parts: list[Part] = []
    order: list[Tensor] = []
    with torch.no_grad():
        for at, rows in factors_of(g, "append"):
            order.append(at_positions(at))
            parts.append(_part(call, rows, order[-1], manifest, known))
        values = {LOSSES: g.losses, WEIGHTS: g.weights}
    plain = {name: stored(call, value[:, None], torch.float64)[:, 0] for name, value in values.items()}
    if not parts:
        return Part(0, plain), manifest
    whole, where = joined(parts), torch.cat(order)
    if not where.equal(torch.arange(len(where))):
        whole = whole.take(where.argsort())
    return Part(whole.count, plain, whole.ragged), replace(manifest, factors=known)


def _part(call: str, rows: Gradients, at: Tensor, manifest: Manifest, known: dict[str, dict[str, Any]]) -> Part:
    """The rows at positions `at`; what kinds of factors there are is added to `known`."""
    ragged = {}
    for name, gradient in rows.items():
        for factor in _smaller(gradient, manifest.torch_dtype.itemsize).factors:
            key = key_of(factor)
            known.setdefault(name, {}).setdefault(key, described(factor, manifest.dtype))
            tensors = held(factor)
            length = next(iter(tensors.values())).shape[1]
            lengths = torch.full((len(at),), length, dtype=torch.int32)
            kept = {half: _kept(call, value, manifest.torch_dtype, at) for half, value in tensors.items()}
            ragged[group_of(name, key)] = Ragged(lengths, kept)
    return Part(len(at), {}, ragged)


def _smaller(gradient: Gradient, itemsize: int) -> Gradient:
    """With its rows formed, where they take no more than factors do, or are a function of entries."""
    if any(factor.kind == "mapped" for factor in gradient.factors):
        return gradient.formed()
    rows = gradient.size * gradient.like.numel() * itemsize
    return gradient.formed() if rows <= bytes_of(gradient, itemsize) else gradient


def _kept(call: str, value: Tensor, dtype: torch.dtype, at: Tensor) -> Tensor:
    """`[B, T, ...]` as entries `[B * T, ...]` of the store's type; indices as int64."""
    if not value.is_floating_point():
        return value.detach().cpu().to(torch.int64, copy=True).flatten(0, 1)
    return stored(call, value.flatten(1), dtype, at).reshape(-1, *value.shape[2:])
