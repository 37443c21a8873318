"""Projections from what names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .._errors import message, one_of
from ._count_sketch import count_sketch
from ._dense import gaussian, rademacher
from ._per_parameter import PerParameter, Single, per_parameter
from ._two_sided import two_sided

_ONE_SIDED: dict[str, Callable[..., Single]] = {
    "gaussian": gaussian,
    "rademacher": rademacher,
    "count_sketch": count_sketch,
}


def from_dict(description: Mapping[str, Any]) -> Single | PerParameter:
    """The projection that `to_dict()` described.

    Raises:
        TypeError, ValueError: something else.

    Example:
        >>> import gradfunc as gf
        >>> projection = gf.projections.two_sided((4, 8), seed=2)
        >>> gf.projections.from_dict(projection.to_dict()) == projection
        True
    """
    call = "gf.projections.from_dict(description)"
    try:
        fields = dict(description)
        kind = fields.pop("kind")
        one_of(call, "kind", kind, [*_ONE_SIDED, "two_sided", "per_parameter"])
        if kind == "per_parameter":
            each = from_dict(fields.pop("each"))
            return per_parameter(each, **fields)  # type: ignore[arg-type]  # it refuses what is none of them
        if kind == "two_sided":
            return two_sided(tuple(fields.pop("sizes")), **fields)
        return _ONE_SIDED[kind](**fields)
    except (KeyError, TypeError) as error:
        got = f"{description!r} ({type(error).__name__}: {error})"
        raise ValueError(message(call, got=got, expected="what to_dict() gave")) from error
