"""What comes to a store, held to what it says it holds: projections, models, gradients, queries, positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import projections
from .._errors import check_int, kind_of, message
from .._factors import Projection, tensors
from .._per_sample import PerSampleGrads
from ._error import refused
from ._gradients import asked
from ._manifest import Manifest, fingerprint, parameters_of
from ._query import Queries


def described(projection: Projection) -> dict[str, Any]:
    """A projection as a manifest holds it; one of a user's own by the name of its class, which is never looked up."""
    kinds = (projections.Gaussian, projections.Rademacher, projections.CountSketch, projections.TwoSided)
    if isinstance(projection, (*kinds, projections.PerParameter)):
        return projection.to_dict()
    return {"kind": "own", "name": f"{type(projection).__module__}.{type(projection).__qualname__}"}


def kind_and_size(
    call: str, projection: Projection | None, params: Mapping[str, Tensor] | None, size: int | None, factored: bool
) -> tuple[dict[str, Any], int]:
    """What rows of a new store are, and how long.

    Raises:
        TypeError, ValueError: neither of projection, params and size, or a size that is not theirs; factors of
            projected gradients, or of a model that is not given.
    """
    if not isinstance(factored, bool):
        raise TypeError(message(call, got=f"factored: {kind_of(factored)}", expected="a bool"))
    if factored and (projection is not None or params is None):
        got = "factored=True with a projection" if projection is not None else "factored=True without params"
        raise ValueError(message(call, got=got, expected="params, and no projection, whose rows have no factors"))
    if projection is not None:
        found = getattr(projection, "size", None)
        if not isinstance(found, int) or not callable(getattr(projection, "apply", None)):
            expected = "an object with an int `size` and apply(name, factor)"
            raise TypeError(message(call, got=f"projection: {kind_of(projection)}", expected=expected))
        kind = described(projection)
    elif params is not None:
        kind = {"kind": "factored" if factored else "full"}
        found = sum(value.numel() for value in params.values())
    elif size is not None:
        kind, found = {"kind": "none"}, size
    else:
        do = "A projection for gradients, params for whole ones, size for rows as they are."
        raise ValueError(message(call, got="none of them", expected="projection, params or size", do=do))
    if size is not None and size != found:
        raise ValueError(message(call, got=f"size={size}", expected=f"{found}, as the others say"))
    check_int(call, "size", found, 1)
    return kind, found


def same_projection(call: str, manifest: Manifest, projection: Projection | None) -> Projection | None:
    """The projection that is written down, or that is given and is the same.

    Raises:
        StoreError: another is given.
    """
    own = manifest.projection["kind"] in ("own", "full", "factored", "none")
    if projection is None:
        try:
            return None if own else projections.from_dict(manifest.projection)
        except (TypeError, ValueError) as error:
            raise refused(call, got=f"a corrupt manifest: {error}", expected="a projection of gradfunc's") from error
    given = described(projection), projection.size
    if given != (dict(manifest.projection), manifest.size):
        got, expected = f"projection {given[0]} of size {given[1]}", f"{dict(manifest.projection)} of {manifest.size}"
        raise refused(call, got=got, expected=expected, do="Rows through different projections cannot be compared.")
    return projection


def check_kind(call: str, manifest: Manifest, *, factored: bool) -> None:
    """Raise StoreError unless gradients are kept as factors where this is asked for, and only then."""
    if manifest.is_factored != factored:
        got = f"factored={factored}, and a store of {dict(manifest.projection)}"
        do = "A store keeps one kind of gradients; make another."
        raise refused(call, got=got, expected=f"factored={manifest.is_factored}", do=do)


def check_dtype(call: str, manifest: Manifest, dtype: str | torch.dtype | None) -> None:
    """Raise StoreError unless rows are kept in this type, where one is asked for."""
    name = manifest.dtype if dtype is None else str(dtype).removeprefix("torch.")
    if name != manifest.dtype:
        do = "A store keeps one type; make another."
        raise refused(call, got=f"dtype={name}, and a store of {manifest.dtype}", expected=manifest.dtype, do=do)


def check_model(call: str, manifest: Manifest, params: Mapping[str, Tensor]) -> None:
    """Raise StoreError unless these are the parameters that the store was made for."""
    check_parameters(call, manifest, parameters_of(params))
    mine, theirs = manifest.fingerprint, fingerprint(params)
    if mine is None:
        do = "Make stores with params=..., so that models can be told apart."
        raise refused(
            call, got="params for a store that was made without", expected="a store that knows its model", do=do
        )
    if mine != theirs:
        do = "Gradients of different models cannot be compared: make another store."
        raise refused(call, got=f"a model of SHA-256 {theirs[:16]}", expected=f"that of {mine[:16]}", do=do)


def check_parameters(call: str, manifest: Manifest, parameters: Mapping[str, Any]) -> None:
    """Raise StoreError unless names, shapes and dtypes are those of the store's model, if it knows them."""
    mine = manifest.parameters
    if mine is None or dict(mine) == dict(parameters):
        return
    names = [name for name in (*mine, *parameters) if mine.get(name) != parameters.get(name)]
    got = f"gradients of a model whose {names[0]!r} is {parameters.get(names[0])}"
    do = "A store holds one model's gradients; make another."
    raise refused(call, got=got, expected=f"{mine.get(names[0])}", do=do)


def rows_of(call: str, g: PerSampleGrads, manifest: Manifest, projection: Projection | None) -> Tensor:
    """Gradients as rows of the store, `[B, size]`.

    Raises:
        StoreError: they are of another model, or what rows went through is not at hand.
    """
    check_parameters(call, manifest, parameters_of(g._shapes))
    with torch.no_grad():
        if manifest.projection["kind"] == "full":
            rows = g.materialize()
            flat = [rows[name].reshape(g.batch_size, g._shapes[name].numel()) for name in manifest.parameters or rows]
            return torch.cat(flat, 1)
        if projection is None:
            got = f"per-sample gradients for rows of {dict(manifest.projection)}"
            do = "Give rows, or open(path, projection=...) with what the others went through."
            raise refused(call, got=got, expected="a projection to take them through", do=do)
        return g.project(projection)


def queries_of(
    call: str, queries: Any, manifest: Manifest, projection: Projection | None, dtype: torch.dtype
) -> tuple[Queries, int]:
    """Queries `[q, size]` on the CPU, or their factors where the store has these; and q.

    Raises:
        TypeError, ValueError: something else.
    """
    size = manifest.size
    if isinstance(queries, PerSampleGrads):
        if manifest.is_factored:
            check_parameters(call, manifest, parameters_of(queries._shapes))
            factors = asked(queries, manifest)
            if not all(half.isfinite().all() for _, rows in factors for half in tensors(rows)):
                raise ValueError(message(call, got="a query with NaN or inf", expected="finite gradients"))
            return factors, queries.batch_size
        queries = rows_of(call, queries, manifest, projection)
    if not isinstance(queries, Tensor):
        raise TypeError(message(call, got=kind_of(queries), expected=f"a tensor [q, {size}], or gradients"))
    if queries.dim() != 2 or queries.shape[1] != size or not queries.is_floating_point():
        got = f"queries of shape {tuple(queries.shape)} and {queries.dtype}"
        raise ValueError(message(call, got=got, expected=f"floats of shape [q, {size}]"))
    if not queries.isfinite().all():
        raise ValueError(message(call, got="a query with NaN or inf", expected="finite numbers"))
    rows = queries.detach().to("cpu", dtype)
    return (asked(rows, manifest) if manifest.is_factored else rows), len(rows)


def positions(call: str, at: Any, count: int) -> Tensor:
    """int64 `[m]`, none of them negative.

    Raises:
        TypeError, IndexError: no positions of `count` rows.
    """
    if at is None or isinstance(at, slice):
        return torch.arange(count)[slice(None) if at is None else at]
    expected = "a slice, or positions of rows, such as [3]"
    try:
        given = at if isinstance(at, Tensor) else torch.from_numpy(np.asarray(at, dtype=None if len(at) else np.int64))
    except (TypeError, ValueError) as error:
        raise TypeError(message(call, got=f"at: {kind_of(at)}", expected=expected)) from error
    found = given.detach().cpu()
    if found.dim() != 1 or found.dtype.is_floating_point or found.dtype == torch.bool:
        do = "mask.nonzero()[:, 0] has the positions of a mask." if found.dtype == torch.bool else ""
        got = f"at of shape {tuple(found.shape)} and {found.dtype}"
        raise TypeError(message(call, got=got, expected=expected, do=do))
    found = found.long()
    if len(found) and not -count <= int(found.min()) <= int(found.max()) < count:
        got = f"positions from {int(found.min())} to {int(found.max())}"
        raise IndexError(message(call, got=got, expected=f"positions of {count} rows"))
    return torch.where(found < 0, found + count, found)
